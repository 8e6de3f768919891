//! Templates by recipes of users: the one of `docs/recipes.md` is built and does what it says.

use std::fs;
use std::time::Duration;
use testkit::{Setup, eventually};

/// How long something that happens without being waited for may take.
const SOON: Duration = Duration::from_secs(120);
/// The document with the recipe.
const DOCUMENT: &str = include_str!("../../../docs/recipes.md");

#[test]
fn a_recipe_of_a_user_is_built_and_serves_its_pages() {
    let name = "a_recipe_of_a_user_is_built_and_serves_its_pages";
    let text = DOCUMENT.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (recipe, pages) = (dir.path().join("web.toml"), dir.path().join("pages"));
    fs::write(&recipe, text).unwrap();
    fs::create_dir(&pages).unwrap();
    fs::write(pages.join("index.html"), "hello from a recipe\n").unwrap();
    let Some(lab) = Setup::new(name).start_with_recipe(&recipe) else { return };
    let build = ["template", "build", recipe.to_str().unwrap()];

    fs::write(&recipe, text.replace("memo", "momo")).unwrap();
    let refused = lab.tt(&build);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    for words in ["recipe, line 3 `momo = ", "unknown field `momo`", "docs/recipes.md"] {
        assert!(refused.err.contains(words), "{refused:?}");
    }
    assert_eq!(lab.json(&["template", "ls"])["templates"].as_array().unwrap().len(), 1);

    fs::write(&recipe, text).unwrap();
    lab.tt(&build).good();
    // It is there: asked for once more, it is the same; by another recipe it is refused.
    lab.tt(&build).good();
    fs::write(&recipe, format!("{text}\ncwd = \"/\"\n")).unwrap();
    let refused = lab.tt(&build);
    assert!(refused.err.contains("ERR_TT_EXISTS"), "{refused:?}");
    let view = lab.json(&["template", "show", "web"]);
    assert_eq!(view["template"]["memo"], "pages by httpd");
    assert_eq!(view["template"]["name"], "example.org/me/web");

    lab.tt(&["env", "create", "shop", "--vm", "web=web", "--vm", "asks=micro"]).good();
    eventually("the pages are served", SOON, || {
        let asked = lab.tt(&["exec", "shop/asks", "--", "wget", "-qO-", "http://web/"]);
        (asked.out != "hello from a recipe\n").then(|| format!("{asked:?}"))
    });
    // Out of a package, and as the base has it.
    lab.sh("shop/web", "grep -q text/html /etc/mime.types && test -x /sbin/tt-guest");
    assert_eq!(lab.sh("shop/web", "hostname; cat /etc/httpd.conf"), "web\nI:index.html");
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.tt(&["template", "rm", "web"]).good();
    lab.finish();
}
