//! Layers over each other: what a guest would see.

use crate::oci::container;
use crate::oci::image::Image;
use crate::oci::source::Source;
use crate::oci::unpack::{Limits, Unpacker};
use crate::progress::WantedFor;
use crate::{ImageError, Quiet};
use rustix::fs::{XattrFlags, lgetxattr};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use testkit::oci::{self, Node};

/// More than any test's image needs.
pub(super) const LIMITS: Limits = Limits { bytes: 64 << 20, entries: 2000, hidden_bytes: 64 << 10 };

/// Unpacks the image in `source` into a new directory below `dir`.
pub(super) fn unpack(dir: &Path, source: &Path, limits: Limits) -> Result<PathBuf, ImageError> {
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    let source = Source::open(source, &Quiet)?;
    let image = Image::open(&source)?;
    let mut unpacker = Unpacker::new(&root, limits, &Quiet)?;
    for number in 0..image.layers() {
        let open = |bytes_max| image.open_layer(number, bytes_max);
        unpacker.layer(&image.layer_name(number), &open)?;
    }
    Ok(root)
}

/// Of every form of `image` the tree that it becomes.
fn trees(image: &oci::Image) -> Vec<(tempfile::TempDir, PathBuf)> {
    type Form = fn(&oci::Image, &Path);
    let forms: [Form; 4] = [
        |image, path| oci::write(path, &image.layout()),
        |image, path| fs::write(path, oci::archive(&image.layout())).unwrap(),
        |image, path| fs::write(path, oci::archive(&image.saved())).unwrap(),
        |image, path| oci::write(path, &image.saved()),
    ];
    let unpacked = forms.iter().map(|form| {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        form(image, &source);
        let root = unpack(dir.path(), &source, LIMITS).unwrap();
        (dir, root)
    });
    unpacked.collect()
}

/// Paths below `root`, in order.
pub(super) fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn upper_layers_hide_and_replace_what_is_below() {
    let lower = [
        Node::dir("./"),
        Node::dir("a/"),
        Node::file("a/stays", "1"),
        Node::file("a/goes", "1"),
        Node::file("a/changes", "1"),
        Node::dir("opaque"),
        Node::file("opaque/old", "1"),
        Node::dir("opaque/deep"),
        Node::file("opaque/deep/old", "1"),
        Node::dir("dir-to-file"),
        Node::file("dir-to-file/old", "1"),
        Node::file("file-to-dir", "1"),
        Node::symlink("lib", "usr/lib"),
        Node::dir("usr/lib"),
    ];
    let upper = [
        Node::file("a/.wh.goes", ""),
        Node::file("a/changes", "22"),
        // Said behind what it does not hide.
        Node::file("opaque/new", "2"),
        Node::file("opaque/.wh..wh..opq", ""),
        Node::file("dir-to-file", "2"),
        Node::file("file-to-dir/new", "2"),
        Node::file("lib/through-link", "2"),
        Node::dir("made/"),
        Node::file("made/again", "2"),
        Node::file(".wh.made", ""),
    ];
    // A directory that takes the place of a file is said to.
    let upper = [&[Node::dir("file-to-dir")][..], &upper].concat();
    let top = [Node::hard_link("a/.wh.stays", "a/.wh.other"), Node::file(".wh.nothing", "")];
    let image = oci::Image::of(&[&lower, &upper, &top]);
    for (_dir, root) in trees(&image) {
        let want = [
            "a",
            "a/changes",
            "dir-to-file",
            "file-to-dir",
            "file-to-dir/new",
            "lib",
            "made",
            "made/again",
            "opaque",
            "opaque/new",
            "usr",
            "usr/lib",
            "usr/lib/through-link",
        ];
        assert_eq!(listing(&root), want);
        assert_eq!(fs::read_to_string(root.join("a/changes")).unwrap(), "22");
    }
}

#[test]
fn owners_modes_links_times_and_attributes_are_kept() {
    let long = "n".repeat(200);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let nodes = [
        Node::file("set-id", "x").mode(0o6755).owner(1000, 3_000_000_000),
        Node::hard_link("same", "./set-id"),
        Node::symlink("link", "/etc/shadow").owner(7, 8),
        Node::dir("sticky").mode(0o1777).owner(5, 6),
        Node::new(b'6', "pipe").mode(0o620),
        Node::program("capable", "x")
            .pax("SCHILY.xattr.security.capability", capability)
            .pax("SCHILY.xattr.trusted.overlay.opaque", "y"),
        Node::file(format!("{long}/{long}"), "long"),
        Node::new(b'3', "dev/null"),
        Node::file("zeros", vec![0; 1 << 20]),
        Node::new(b'g', "global"),
    ];
    for (_dir, root) in trees(&oci::Image::of(&[&nodes])) {
        let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
        let set_id = meta("set-id");
        assert_eq!(set_id.permissions().mode() & 0o7777, 0o6755);
        assert_eq!((set_id.uid(), set_id.gid(), set_id.nlink()), (1000, 3_000_000_000, 2));
        assert_eq!(set_id.mtime(), 0o14524437400);
        assert_eq!((meta("link").uid(), meta("link").gid()), (7, 8));
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/etc/shadow"));
        assert_eq!(meta("sticky").permissions().mode() & 0o7777, 0o1777);
        assert!(meta("pipe").file_type().is_fifo());
        assert_eq!(fs::read_to_string(root.join(&long).join(&long)).unwrap(), "long");
        assert_eq!((meta("zeros").len(), meta("zeros").blocks()), (1 << 20, 0));
        let capable = root.join("capable");
        let mut value = [0; 64];
        let len = lgetxattr(&capable, "security.capability", &mut value).unwrap();
        assert_eq!(value[..len], capability);
        assert!(lgetxattr(&capable, "trusted.overlay.opaque", &mut value).is_err());
        assert!(!root.join("dev").exists());
    }
}

#[test]
fn what_user_attributes_can_not_be_kept_is_said() {
    let node = Node::file("x", "x").pax("SCHILY.xattr.user.a", "b");
    let dir = tempfile::tempdir().unwrap();
    let probe = dir.path().join("probe");
    fs::write(&probe, "").unwrap();
    let kept = rustix::fs::lsetxattr(&probe, "user.a", b"b", XattrFlags::empty()).is_ok();
    let source = dir.path().join("source");
    oci::write(&source, &oci::Image::of(&[&[node]]).layout());
    match unpack(dir.path(), &source, LIMITS) {
        Ok(root) => {
            let mut value = [0; 8];
            let len = lgetxattr(root.join("x"), "user.a", &mut value).unwrap();
            assert!(kept && &value[..len] == b"b");
        }
        Err(error) => assert!(!kept && error.to_string().contains("user.a"), "{error}"),
    }
}

#[test]
fn what_is_kept_as_a_container_is_the_same_image() {
    let layers: [&[Node]; 3] = [
        &[Node::dir("a"), Node::file("a/x", "1"), Node::file("a/y", "1")],
        &[Node::file("a/.wh.x", "")],
        &[Node::file("z", "3")],
    ];
    let made = oci::Image::of(&layers).running(serde_json::json!({ "Cmd": ["/a/y"] }));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source");
    oci::write(&path, &made.layout());
    let source = Source::open(&path, &Quiet).unwrap();
    let image = Image::open(&source).unwrap();
    let kept = dir.path().join("container.tar");
    container::write(&image, &kept, &Quiet).unwrap();
    let again = Source::open(&kept, &Quiet).unwrap();
    let again = Image::open(&again).unwrap();
    assert_eq!((&again.id, &again.entry), (&image.id, &image.entry));
    assert_eq!(again.config(), made.config());
    assert_eq!(listing(&unpack(dir.path(), &kept, LIMITS).unwrap()), ["a", "a/y", "z"]);
    // One layer was packed as older Dockers can not read it.
    let bytes = fs::read(&kept).unwrap();
    assert!(!bytes.windows(4).any(|four| four == [0x28, 0xb5, 0x2f, 0xfd]));
}

#[test]
fn a_container_that_would_fill_the_file_system_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let noise: Vec<u8> =
        (0..10_u32 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let path = dir.path().join("source");
    oci::write(&path, &oci::Image::of(&[&[Node::file("x", noise)]]).layout());
    let source = Source::open(&path, &Quiet).unwrap();
    let image = Image::open(&source).unwrap();
    crate::space::with_little_room(dir.path(), |small| {
        let kept = container::write(&image, &small.join("container.tar"), &Quiet);
        assert!(matches!(kept, Err(ImageError::NoRoom { .. })), "{kept:?}");
    });
}

#[test]
fn a_file_system_without_room_for_its_files_is_no_bad_image() {
    let nodes: Vec<Node> = (0..200).map(|number| Node::file(format!("f{number}"), "x")).collect();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    oci::write(&source, &oci::Image::of(&[&nodes]).layout());
    // There is room for all bytes, not for all files.
    crate::space::with_room(dir.path(), 512 << 20, |small| {
        let error = unpack(small, &source, LIMITS).unwrap_err();
        assert!(matches!(error, ImageError::Full { .. }), "{error:?}");
        assert_eq!(error.code(), tt_model::ErrorCode::NoRoom);
    });
}

#[test]
fn whatever_is_read_is_read_as_long_as_it_is_wanted() {
    let nodes = [Node::file("a", vec![7; 3 << 20]), Node::file(".wh.b", vec![7; 3 << 20])];
    let image = oci::Image::of(&[&nodes]);
    for times in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source");
        fs::write(&path, oci::archive(&image.saved())).unwrap();
        let wanted = WantedFor::times(times);
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let all = || {
            let source = Source::open(&path, &wanted)?;
            let image = Image::open(&source)?;
            let open = |bytes_max| image.open_layer(0, bytes_max);
            Unpacker::new(&root, LIMITS, &wanted)?.layer("layer", &open)
        };
        match all() {
            Err(ImageError::Unwanted) => {}
            // Each pass asks once in a megabyte at least.
            Ok(()) if times > 18 => return,
            all => panic!("{times}: {all:?}"),
        }
    }
}
