//! Templates into a registry and out of it: what arrives is what was sent, and no more is sent than has to be.

use crate::http::Limits;
use crate::oci::registry::Patience;
use crate::{CONTAINER, Catalogue, DISK, Facts, INITRAMFS, ImageError, KERNEL, Progress, Quiet};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use testkit::oci::{Door, Part, Registry, Trick, digest};
use tt_model::Remote;
use tt_model::VmTemplate;

/// Two data directories with caches of their own, and a registry between them.
pub(super) struct Lab {
    pub(super) dir: TempDir,
    pub(super) registry: Registry,
    pub(super) near: Catalogue,
    pub(super) far: Catalogue,
}

/// With registries that are right: a busy machine is no reason to fail.
const PATIENCE: Patience = Patience {
    limits: Limits {
        answer: Duration::from_secs(20),
        pace: Duration::from_secs(10),
        pace_bytes: 4096,
        redirects_max: 3,
    },
    pause: Duration::from_millis(1),
};

impl Lab {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = |name: &str| {
            let path = dir.path().join(name);
            Catalogue::new(path.join("data"), path.join("cache"), "/none")
        };
        let (near, far) = (catalogue("near"), catalogue("far"));
        Self { registry: Registry::new(), near, far, dir }
    }

    pub(super) fn remote(&self, reference: &str) -> Remote {
        let reference = self.registry.reference(reference);
        Remote { reference, plain_http: false, credentials: None }
    }

    /// Makes a template here: a disk with 3 MiB of data at its beginning and a little far behind, and what else there can be.
    pub(super) fn template(&self, name: &str) -> VmTemplate {
        let draft = self.near.draft(name, &Quiet).unwrap();
        let noise: Vec<u8> =
            (0..3_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        let disk = File::create(draft.dir().join(DISK)).unwrap();
        disk.write_all_at(&noise, 0).unwrap();
        disk.write_all_at(b"far", (900 << 20) + 4097).unwrap();
        disk.set_len(1 << 30).unwrap();
        for name in [KERNEL, INITRAMFS, CONTAINER] {
            fs::write(draft.dir().join(name), name.repeat(1000)).unwrap();
        }
        let facts = Facts {
            name: name.into(),
            memo: Some("of a test".into()),
            arch: std::env::consts::ARCH.into(),
            inside: vec!["agent".into(), "uefi".into()],
        };
        self.near.finish(&draft, &facts, &Quiet).unwrap()
    }

    pub(super) fn push(
        &self,
        template: &VmTemplate,
        remote: &Remote,
    ) -> Result<String, ImageError> {
        self.near.push_within(template, remote, None, PATIENCE, &Quiet)
    }

    pub(super) fn pull(&self, name: &str, remote: &Remote) -> Result<VmTemplate, ImageError> {
        self.pull_for(name, remote, PATIENCE, &Quiet)
    }

    pub(super) fn pull_for(
        &self,
        name: &str,
        remote: &Remote,
        patience: Patience,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let draft = self.far.draft(name, &Quiet)?;
        let facts = Facts { name: name.into(), ..Facts::default() };
        self.far.pull_within(&draft, remote, &facts, patience, progress)
    }

    fn file(&self, side: &str, template: &VmTemplate, name: &str) -> PathBuf {
        self.dir.path().join(side).join("data").join(&template.path).join(name)
    }

    /// How often something was asked for.
    fn count(&self, method: &str, part: &str) -> usize {
        let asked = self.registry.asked();
        asked.iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
    }
}

#[test]
fn what_is_pulled_is_what_was_pushed() {
    let lab = Lab::new();
    let template = lab.template("a.org/x");
    let pushed = lab.push(&template, &lab.remote("me/x:1")).unwrap();
    assert_eq!(digest(&lab.registry.manifest("me/x", "1")), pushed);
    for reference in ["me/x:1".to_owned(), format!("me/x@{pushed}")] {
        // Everything that its record says is the same, its digest with it.
        assert_eq!(lab.pull("a.org/x", &lab.remote(&reference)).unwrap(), template);
    }
    for name in [DISK, KERNEL, INITRAMFS, CONTAINER] {
        let [near, far] = ["near", "far"].map(|side| lab.file(side, &template, name));
        assert!(is_same(&near, &far), "{name}");
        let meta = far.metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o644, "{name}");
        assert!(meta.blocks() * 512 < 4 << 20, "{name} takes {} blocks", meta.blocks());
    }
    assert_eq!(lab.far.drafts().unwrap().len() + lab.near.drafts().unwrap().len(), 0);
    // Under another name it is another template with the same content.
    let other = lab.pull("b.org/y", &lab.remote("me/x:1")).unwrap();
    assert_ne!(other.digest, template.digest);
    let as_before = VmTemplate { name: template.name.clone(), ..other };
    assert_eq!((as_before.memo, as_before.features), (template.memo, template.features));
}

/// Whether two files have the same content, without reading holes.
fn is_same(a: &Path, b: &Path) -> bool {
    let of = |path| crate::digest::of_sparse_file(path, &Quiet).unwrap();
    of(a) == of(b) && a.metadata().unwrap().len() == b.metadata().unwrap().len()
}

#[test]
fn what_the_registry_has_is_not_sent_and_what_is_here_is_not_fetched() {
    let lab = Lab::new();
    let template = lab.template("x");
    let first = lab.push(&template, &lab.remote("me/x:1")).unwrap();
    assert_eq!((lab.count("PUT", "/blobs/"), lab.count("PUT", "/manifests/")), (5, 1));
    lab.registry.calm();
    assert_eq!(lab.push(&template, &lab.remote("me/x:2")).unwrap(), first, "packed otherwise");
    assert_eq!((lab.count("PUT", "/blobs/"), lab.count("PUT", "/manifests/")), (0, 1));
    // Into another repository it is taken over from the first one.
    lab.registry.calm();
    let before = lab.registry.reference("me/x:1");
    let (other, elsewhere) = (lab.remote("me/y:1"), Some("docker.io/me/x:1"));
    lab.near.push_within(&template, &other, Some(&before), PATIENCE, &Quiet).unwrap();
    assert_eq!((lab.count("POST", "mount="), lab.count("PUT", "/blobs/")), (5, 0));
    lab.registry.calm();
    lab.near.push_within(&template, &lab.remote("me/z:1"), elsewhere, PATIENCE, &Quiet).unwrap();
    assert_eq!((lab.count("POST", "mount="), lab.count("PUT", "/blobs/")), (0, 5));
    lab.pull("x", &lab.remote("me/x:1")).unwrap();
    lab.registry.calm();
    lab.pull("y", &lab.remote("me/z:1")).unwrap();
    assert_eq!((lab.count("GET", "/blobs/"), lab.count("GET", "/manifests/")), (0, 1));
}

#[test]
fn a_blob_that_was_cut_off_is_gone_on_with() {
    let lab = Lab::new();
    let template = lab.template("x");
    lab.push(&template, &lab.remote("me/x:1")).unwrap();
    lab.registry.calm();
    // Four of the five of them end in the middle.
    lab.registry.trick_times(Part::Blobs, Trick::Cut, 4);
    assert_eq!(lab.pull("x", &lab.remote("me/x:1")).unwrap(), template);
    let asked = lab.registry.asked();
    assert!(asked.iter().filter(|asked| asked.range.is_some()).count() >= 3, "{asked:?}");
    // Another try, maybe of another daemon, goes on, too; and begins anew where the registry does not know of parts.
    for trick in [None, Some(Trick::NoRange)] {
        fs::remove_dir_all(lab.dir.path().join("far")).unwrap();
        lab.registry.calm();
        lab.registry.trick(Part::Blobs, Trick::Cut);
        let error = lab.pull("x", &lab.remote("me/x:1")).unwrap_err();
        assert!(error.is_retryable(), "{error}");
        lab.registry.calm();
        trick.into_iter().for_each(|trick| lab.registry.trick(Part::Blobs, trick));
        assert_eq!(lab.pull("x", &lab.remote("me/x:1")).unwrap(), template);
        assert!(lab.registry.asked().iter().any(|asked| asked.range.is_some()));
    }
}

#[test]
fn what_a_killed_pull_left_is_no_part_of_the_next_template() {
    let lab = Lab::new();
    let draft = lab.near.draft("plain", &Quiet).unwrap();
    fs::write(draft.dir().join(DISK), "disk").unwrap();
    let arch = std::env::consts::ARCH.into();
    let facts = Facts { name: "plain".into(), arch, ..Facts::default() };
    let template = lab.near.finish(&draft, &facts, &Quiet).unwrap();
    lab.push(&template, &lab.remote("me/plain:1")).unwrap();
    let draft = lab.far.draft("plain", &Quiet).unwrap();
    for name in [KERNEL, INITRAMFS, CONTAINER] {
        fs::write(draft.dir().join(name), "of another tag").unwrap();
    }
    drop(draft);
    assert_eq!(lab.pull("plain", &lab.remote("me/plain:1")).unwrap(), template);
}

#[test]
fn a_description_that_nobody_could_pull_is_left_out() {
    let lab = Lab::new();
    for (number, memo) in ["m".repeat(501), "two\nlines".into()].into_iter().enumerate() {
        let name = format!("x{number}");
        let draft = lab.near.draft(&name, &Quiet).unwrap();
        fs::write(draft.dir().join(DISK), "disk").unwrap();
        let arch = std::env::consts::ARCH.into();
        let facts = Facts { name: name.clone(), memo: Some(memo), arch, inside: Vec::new() };
        let template = lab.near.finish(&draft, &facts, &Quiet).unwrap();
        let remote = lab.remote(&format!("me/{name}:1"));
        lab.push(&template, &remote).unwrap();
        assert_eq!(lab.pull(&name, &remote).unwrap().memo, None);
    }
}

#[test]
fn a_registry_that_is_tired_is_asked_again() {
    let lab = Lab::new();
    let template = lab.template("x");
    let tired = |code: u16| Trick::Status(code, "retry-after", "1".into());
    lab.registry.trick_times(Part::Uploads, tired(503), 2);
    lab.registry.trick_times(Part::Ends, tired(500), 1);
    lab.push(&template, &lab.remote("me/x:1")).unwrap();
    lab.registry.trick_times(Part::Manifests, tired(429), 2);
    lab.registry.trick_times(Part::Blobs, tired(502), 2);
    assert_eq!(lab.pull("x", &lab.remote("me/x:1")).unwrap(), template);
}

#[test]
fn of_an_index_the_manifest_for_this_machine_is_taken() {
    let lab = Lab::new();
    let template = lab.template("x");
    lab.push(&template, &lab.remote("me/x:1")).unwrap();
    let ours = lab.registry.manifest("me/x", "1");
    let entry = |digest: &str, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": ours.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let other = digest(b"for another machine");
    let index = |entries: &[serde_json::Value]| {
        serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string()
    };
    let machine = crate::oci::spec::architecture();
    let both = index(&[entry(&other, "sparc"), entry(&digest(&ours), machine)]);
    let media_type = "application/vnd.oci.image.index.v1+json";
    lab.registry.put_manifest("me/x", "all", media_type, both.as_bytes());
    assert_eq!(lab.pull("x", &lab.remote("me/x:all")).unwrap(), template);
    let none = index(&[entry(&other, "sparc")]);
    lab.registry.put_manifest("me/x", "none", media_type, none.as_bytes());
    let error = lab.pull("y", &lab.remote("me/x:none")).unwrap_err().to_string();
    assert!(error.contains("linux/sparc"), "{error}");
}

#[test]
fn who_is_let_in_is_and_nobody_else_sees_how() {
    const SECRET: &str = "bWU6c2VjcmV0";
    let lab = Lab::new();
    let template = lab.template("x");
    let file = lab.dir.path().join("auth.json");
    let logins = serde_json::json!({ "auths": { lab.registry.host(): { "auth": SECRET } } });
    fs::write(&file, logins.to_string()).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let known = |reference: &str| Remote {
        credentials: Some(file.display().to_string()),
        ..lab.remote(reference)
    };
    let doors = [Door::Basic(SECRET.into()), Door::Token(Some(SECRET.into())), Door::Token(None)];
    for (number, door) in doors.into_iter().enumerate() {
        lab.registry.door(door.clone());
        lab.registry.calm();
        let place = format!("me/x{number}:1");
        lab.push(&template, &known(&place)).unwrap();
        assert_eq!(lab.pull("x", &known(&place)).unwrap(), template);
        if door != Door::Token(None) {
            let error = lab.pull("y", &lab.remote(&place)).unwrap_err();
            assert!(!error.is_retryable(), "{error}");
        }
        // The secret goes to where tokens are given, not along with each request.
        let told = lab.registry.asked().into_iter().filter(|asked| {
            let authorization = asked.authorization.as_deref().unwrap_or_default();
            authorization.contains(SECRET) && !asked.path.starts_with("/token")
        });
        assert_eq!(told.count() > 0, matches!(door, Door::Basic(_)), "{door:?}");
    }
}

#[test]
fn a_secret_does_not_follow_to_another_host() {
    let lab = Lab::new();
    let template = lab.template("x");
    lab.registry.door(Door::Token(None));
    lab.push(&template, &lab.remote("me/x:1")).unwrap();
    // The same server by another name: who is on this host leads to nobody else there.
    let host = lab.registry.host().replace("127.0.0.1", "localhost");
    lab.registry.trick(Part::Blobs, Trick::Redirect(format!("http://{host}/v2/me/x/blobs/away")));
    lab.pull("x", &lab.remote("me/x:1")).unwrap_err();
    let asked = lab.registry.asked();
    let away: Vec<_> = asked.iter().filter(|asked| asked.path.ends_with("/away")).collect();
    assert!(
        !away.is_empty() && away.iter().all(|asked| asked.authorization.is_none()),
        "{asked:?}"
    );
    let elsewhere = Registry::new();
    lab.registry.calm();
    lab.registry.trick(Part::Blobs, Trick::Redirect(format!("http://{}/x", elsewhere.host())));
    let error = lab.pull("y", &lab.remote("me/x:1")).unwrap_err().to_string();
    assert!(error.contains("not of the open network") && elsewhere.asked().is_empty(), "{error}");
}

#[test]
fn what_is_not_wanted_any_more_ends_at_once() {
    /// Wants some bytes only.
    struct Some(AtomicU64);
    impl Progress for Some {
        fn step(&self, _: &str) {}
        fn bytes(&self, done: u64, _: Option<u64>) {
            self.0.store(done, Ordering::Relaxed);
        }
        fn is_wanted(&self) -> bool {
            self.0.load(Ordering::Relaxed) < 100_000
        }
    }
    let lab = Lab::new();
    let template = lab.template("x");
    lab.push(&template, &lab.remote("me/x:1")).unwrap();
    let error =
        lab.pull_for("x", &lab.remote("me/x:1"), PATIENCE, &Some(AtomicU64::new(0))).unwrap_err();
    assert!(matches!(error, ImageError::Unwanted), "{error}");
    lab.registry.trick(Part::Uploads, Trick::Silent);
    let begin = std::time::Instant::now();
    let unwanted = Some(AtomicU64::new(0));
    let error = lab.near.push(&template, &lab.remote("me/y:1"), None, &unwanted).unwrap_err();
    assert!(matches!(error, ImageError::Unwanted) && begin.elapsed() < Duration::from_secs(10));
}
