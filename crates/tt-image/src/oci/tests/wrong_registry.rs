//! Registries as an enemy runs them: each is refused in bounded time and space, and leaves nothing.

use super::registry::Lab;
use crate::http::Limits;
use crate::oci::registry::Patience;
use crate::{ImageError, Quiet};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testkit::oci::{Door, Image, Node, Part, Registry, Trick, digest};
use tt_model::Remote;

/// What is slow or silent is waited for in vain, and for all else a busy machine is no reason to fail.
pub(super) fn patience(trick: Option<&Trick>) -> Patience {
    let (answer_ms, pace_ms) = match trick {
        Some(Trick::Silent) => (700, 10_000),
        Some(Trick::Slow) => (20_000, 300),
        _ => (20_000, 10_000),
    };
    let limits = Limits {
        answer: Duration::from_millis(answer_ms),
        pace: Duration::from_millis(pace_ms),
        pace_bytes: 4096,
        redirects_max: 3,
    };
    Patience { limits, pause: Duration::from_millis(1) }
}

/// Longer than any of them takes, five tries and pauses, on a busy machine.
const TOOK_MAX: Duration = Duration::from_secs(30);
/// More than a draft has that is kept for a retry, and what is kept of blobs that were right.
const LEFT_BYTES_MAX: u64 = 8 << 20;

/// Pulls what is not to be pulled; answers why it is not.
pub(super) fn refused(lab: &Lab, what: &str, remote: &Remote, patience: Patience) -> String {
    let begin = Instant::now();
    let error = lab.pull_for("evil", remote, patience, &Quiet).expect_err(what);
    assert!(begin.elapsed() < TOOK_MAX, "{what}: {:?}", begin.elapsed());
    assert!(
        !matches!(error, ImageError::Read { .. } | ImageError::Write { .. }),
        "{what}: {error:?}"
    );
    let far = lab.dir.path().join("far");
    let left: u64 = files(&far).values().sum();
    assert!(left < LEFT_BYTES_MAX, "{what} left {left} bytes");
    lab.far.discard("evil").unwrap();
    assert_eq!(files(&far.join("data")), BTreeMap::new(), "{what}");
    assert_eq!(lab.far.list().unwrap(), [], "{what}");
    let _ = std::fs::remove_dir_all(far);
    error.to_string()
}

fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with(".lock") {
            found.insert(path, meta.blocks() * 512);
        }
    }
    found
}

pub(super) fn image() -> Image {
    Image::of(&[&[Node::file("a", "one")], &[Node::file("b", vec![7; 300_000])]])
}

/// What is wrong, with which part of the answers, how, and the words with which it is refused.
type Case = (&'static str, Part, Trick, &'static str);

fn documents() -> Vec<Case> {
    let nowhere = || Trick::Status(404, "x", "y".into());
    vec![
        ("other manifest", Part::Manifests, Trick::Other, "digest"),
        ("cut manifest", Part::Manifests, Trick::Cut, "can not be fetched"),
        ("endless manifest", Part::Manifests, Trick::Endless, "more than 4194304 bytes"),
        ("slow manifest", Part::Manifests, Trick::Slow, "too slow"),
        ("silent", Part::Manifests, Trick::Silent, "no answer within"),
        ("huge manifest", Part::Manifests, Trick::Huge(5 << 20), "more than 4194304 bytes"),
        ("manifest of blanks", Part::Manifests, Trick::Huge(100), "EOF"),
        (
            "manifest of an image of cats",
            Part::Manifests,
            Trick::Header("content-type", "image/png".into()),
            "neither",
        ),
        (
            "other digest said",
            Part::Manifests,
            Trick::Header("docker-content-digest", digest(b"x")),
            "digest",
        ),
        ("page instead", Part::Manifests, Trick::Body("<html>".into()), "expected value"),
        ("deep", Part::Manifests, Trick::Body("[".repeat(1 << 20)), "can not be used"),
        ("redirects in circles", Part::Manifests, Trick::Loop, "redirects more than 3 times"),
        (
            "redirect to a file",
            Part::Manifests,
            Trick::Redirect("file:///etc/passwd".into()),
            "not allowed",
        ),
        (
            "redirect to a socket",
            Part::Manifests,
            Trick::Redirect("unix:///run/x".into()),
            "not allowed",
        ),
        (
            "redirect with a password",
            Part::Manifests,
            Trick::Redirect("http://u:p@127.0.0.1/".into()),
            "not allowed",
        ),
        (
            "redirect to the site",
            Part::Manifests,
            Trick::Redirect("http://10.1.2.3/".into()),
            "not of the open network",
        ),
        (
            "redirect to a cloud's secrets",
            Part::Blobs,
            Trick::Redirect("http://169.254.169.254/latest/meta-data/".into()),
            "not of the open network",
        ),
        ("forbidden", Part::Manifests, Trick::Status(403, "x", "y".into()), "--credentials"),
        (
            "tired for ever",
            Part::Manifests,
            Trick::Status(503, "retry-after", "99999".into()),
            "503",
        ),
        ("no such thing", Part::Manifests, nowhere(), "404"),
    ]
}

fn contents() -> Vec<Case> {
    vec![
        ("other blob", Part::Blobs, Trick::Other, "digest"),
        ("cut blob, each time", Part::Blobs, Trick::Cut, "can not be fetched"),
        ("endless blob", Part::Blobs, Trick::Endless, "it has more than"),
        ("slow blob", Part::Blobs, Trick::Slow, "too slow"),
        ("empty blob", Part::Blobs, Trick::Huge(0), "it ends after 0 of"),
        ("large blob", Part::Blobs, Trick::Huge(8 << 20), "it has more than"),
        ("other part", Part::Blobs, Trick::OtherRange, "another part"),
        ("blob is gone", Part::Blobs, Trick::Status(404, "x", "y".into()), "404"),
        ("no part", Part::Blobs, Trick::Status(416, "x", "y".into()), "less than there is"),
        (
            "a part of nothing",
            Part::Blobs,
            Trick::Status(206, "content-range", "bytes */0".into()),
            "another part",
        ),
    ]
}

fn challenges() -> Vec<Case> {
    let challenge = |text: &str| Trick::Status(401, "www-authenticate", text.into());
    vec![
        (
            "no token ever fits",
            Part::Manifests,
            challenge("Bearer realm=\"http://HOST/token\""),
            "401",
        ),
        ("another way", Part::Manifests, challenge("Negotiate"), "not known"),
        ("no way", Part::Manifests, challenge(""), "not known"),
        (
            "realm is a file",
            Part::Manifests,
            challenge("Bearer realm=\"file:///etc/passwd\""),
            "can not be fetched",
        ),
        (
            "realm in the site",
            Part::Manifests,
            challenge("Bearer realm=\"http://192.168.0.1/token\""),
            "not of the open network",
        ),
        (
            "realm of a cloud's secrets",
            Part::Manifests,
            challenge("Bearer realm=\"http://169.254.169.254/token\""),
            "not of the open network",
        ),
        ("credentials are wanted", Part::Manifests, challenge("Basic realm=\"x\""), "name a file"),
    ]
}

fn tokens() -> Vec<Case> {
    vec![
        ("endless token", Part::Tokens, Trick::Endless, "more than 65536 bytes"),
        ("slow token", Part::Tokens, Trick::Slow, "too slow"),
        ("no token", Part::Tokens, Trick::Body("{}".into()), "without a token"),
        (
            "token of two lines",
            Part::Tokens,
            Trick::Body("{\"token\":\"a\\r\\nb: c\"}".into()),
            "none",
        ),
        ("wrong token", Part::Tokens, Trick::Body("{\"token\":\"no\"}".into()), "401"),
        ("tokens in circles", Part::Tokens, Trick::Loop, "redirects more than 3 times"),
    ]
}

/// Most of them only wait.
fn all_at_once<T: Send>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let check = &check;
            scope.spawn(move || check(case));
        }
    });
}

#[test]
fn answers_of_an_enemy_are_refused() {
    all_at_once(documents().into_iter().chain(contents()), |(what, part, trick, why)| {
        let lab = Lab::new();
        lab.registry.put_image("evil", "1", &image());
        let reference = match trick {
            // By a tag anything may come; by a digest nothing else.
            Trick::Other => format!("evil@{}", digest(&lab.registry.manifest("evil", "1"))),
            _ => "evil:1".to_owned(),
        };
        let patience = patience(Some(&trick));
        lab.registry.trick(part, trick);
        let said = refused(&lab, what, &lab.remote(&reference), patience);
        assert!(said.contains(why), "{what}: {said}");
        assert!(lab.registry.asked().len() <= 40, "{what}: {}", lab.registry.asked().len());
    });
}

#[test]
fn doors_of_an_enemy_are_left_shut() {
    all_at_once(challenges().into_iter().chain(tokens()), |(what, part, trick, why)| {
        let lab = Lab::new();
        let trick = match trick {
            Trick::Status(code, name, text) => {
                Trick::Status(code, name, text.replace("HOST", &lab.registry.host()))
            }
            trick => trick,
        };
        lab.registry.put_image("evil", "1", &image());
        if part == Part::Tokens {
            lab.registry.door(Door::Token(None));
        }
        let patience = patience(Some(&trick));
        lab.registry.trick(part, trick);
        let said = refused(&lab, what, &lab.remote("evil:1"), patience);
        assert!(said.contains(why), "{what}: {said}");
        assert!(lab.registry.asked().len() <= 12, "{what}: {}", lab.registry.asked().len());
    });
}

#[test]
fn uploads_go_nowhere_else() {
    let away = Registry::new();
    for (what, trick, why) in [
        ("no place", Trick::Status(202, "x", "y".into()), "where to send it"),
        ("a file", Trick::Status(202, "location", "file:///etc/passwd".into()), "not allowed"),
        ("the site", Trick::Status(202, "location", "http://10.0.0.1/u".into()), "open network"),
        ("denied", Trick::Status(403, "x", "y".into()), "403"),
        ("redirect", Trick::Redirect(format!("http://{}/u", away.host())), "307"),
        (
            "another service of this host",
            Trick::Status(202, "location", format!("http://{}/u", away.host())),
            "open network",
        ),
        ("endless words", Trick::Endless, "200"),
    ] {
        let lab = Lab::new();
        let template = lab.template("x");
        lab.registry.trick(Part::Uploads, trick);
        let begin = Instant::now();
        let error = lab.push(&template, &lab.remote("me/x:1")).unwrap_err().to_string();
        assert!(error.contains(why), "{what}: {error}");
        assert!(begin.elapsed() < TOOK_MAX, "{what}");
        lab.near.discard("x").unwrap();
    }
    assert_eq!(away.asked(), []);
    // The registry may keep blobs elsewhere, but whoever is there gets no token.
    let lab = Lab::new();
    let template = lab.template("x");
    lab.registry.door(Door::Token(None));
    let host = lab.registry.host().replace("127.0.0.1", "localhost");
    let to = format!("http://{host}/v2/me/x/blobs/uploads/away");
    lab.registry.trick(Part::Uploads, Trick::Status(202, "location", to));
    let _ = lab.push(&template, &lab.remote("me/x:1"));
    let asked = lab.registry.asked();
    let away: Vec<_> = asked.iter().filter(|asked| asked.path.contains("/away")).collect();
    assert!(
        !away.is_empty() && away.iter().all(|asked| asked.authorization.is_none()),
        "{asked:?}"
    );
}
