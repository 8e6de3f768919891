//! What is asked for, what it runs on, and what names mean.

use super::*;

#[test]
fn what_is_asked_for_is_checked_before_anything_is_looked_at() {
    let spec = |from: &str, digest: Option<&str>, memo: Option<&str>| TemplateSpec {
        name: "a.org/x".into(),
        memo: memo.map(str::to_owned),
        source: TemplateSource::Import {
            from: from.into(),
            digest: digest.map(str::to_owned),
            format: None,
            features: Vec::new(),
        },
    };
    let right = format!("sha256:{}", "0f".repeat(32));
    for from in ["/d/x.qcow2", "http://a/x", "https://a.org/x?y"] {
        check_spec(&spec(from, Some(&right), Some("a disk"))).unwrap();
    }
    let long = format!("/{}", "x".repeat(FROM_BYTES_MAX));
    for from in ["", "x.qcow2", "./x", "file:///etc/shadow", "ftp://a/x", "/a\nb", &long] {
        check_spec(&spec(from, None, None)).unwrap_err();
    }
    for digest in ["", "sha256:", &right.to_uppercase(), &right[7..], "md5:00"] {
        check_spec(&spec("/x", Some(digest), None)).unwrap_err();
    }
    check_spec(&spec("/x", None, Some("two\nlines"))).unwrap_err();
    check_spec(&spec("/x", None, Some(&"m".repeat(MEMO_BYTES_MAX + 1)))).unwrap_err();
    check_spec(&TemplateSpec { name: "../x".into(), ..spec("/x", None, None) }).unwrap_err();
    let said = |said: &[&str]| {
        let mut spec = spec("/x", None, None);
        if let TemplateSource::Import { features, .. } = &mut spec.source {
            *features = said.iter().map(ToString::to_string).collect();
        }
        check_spec(&spec)
    };
    said(&["cloud-init", "uefi"]).unwrap();
    for wrong in ["agent", "kernel", ""] {
        said(&["uefi", wrong]).unwrap_err();
    }
}

#[test]
fn what_is_kept_of_a_source_opens_no_door() {
    let import = |from: &str| TemplateSource::Import {
        from: from.into(),
        digest: None,
        format: None,
        features: Vec::new(),
    };
    for (from, open) in [
        ("https://u:p@a.org/x.img?X-Amz-Signature=secret", "https://a.org/x.img"),
        ("https://a.org/x.img", "https://a.org/x.img"),
        ("/d/x?y.img", "/d/x?y.img"),
    ] {
        assert_eq!(import(from).open(), import(open));
    }
}

#[test]
fn a_recipe_makes_the_template_of_its_name() {
    let spec = |name: &str, text: &str, dir: &str| TemplateSpec {
        name: name.into(),
        memo: None,
        source: TemplateSource::Recipe { text: text.into(), dir: dir.into() },
    };
    let text = "name = \"a.org/x\"\nbase = \"micro\"\n";
    check_spec(&spec("a.org/x", text, "/d")).unwrap();
    for (name, text, dir) in
        [("a.org/y", text, "/d"), ("a.org/x", text, "d"), ("a.org/x", "name = 1", "/d")]
    {
        check_spec(&spec(name, text, dir)).unwrap_err();
    }
}

#[test]
fn forms_decide_about_engines() {
    for (forms, engines) in [
        (&[][..], &[][..]),
        (&[FEATURE_DISK], &["qemu"]),
        (&[FEATURE_DISK, FEATURE_KERNEL], &["qemu", "firecracker"]),
        (&[FEATURE_KERNEL], &[]),
        (&[FEATURE_CONTAINER, FEATURE_AGENT], &["docker"]),
        (&[FEATURE_CONTAINER, FEATURE_DISK], &["qemu", "docker"]),
    ] {
        let features: Vec<String> = forms.iter().map(|form| (*form).to_owned()).collect();
        assert_eq!(engines_for(&features), engines, "{forms:?}");
    }
}

#[test]
fn a_short_name_means_the_only_template_that_ends_in_it() {
    let known = ["micro", "github.com/ktmlm/alpine", "a.org/x/debian", "b.org/debian"];
    for (wanted, want) in [
        ("micro", Some("micro")),
        ("alpine", Some("github.com/ktmlm/alpine")),
        ("ktmlm/alpine", Some("github.com/ktmlm/alpine")),
        ("x/debian", Some("a.org/x/debian")),
        ("lpine", None),
        ("", None),
    ] {
        assert_eq!(resolve(wanted, known), Ok(want), "{wanted:?}");
    }
    let refusal = resolve("debian", known).unwrap_err();
    assert!(refusal.to_string().contains("a.org/x/debian, b.org/debian"), "{refusal}");
    assert_eq!(resolve("debian", known.into_iter().chain(["debian"])), Ok(Some("debian")));
}
