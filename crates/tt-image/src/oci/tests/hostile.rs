//! Images as an enemy makes them: each is refused with a reason, or does no harm, and nothing is written outside.

use super::layers::{LIMITS, listing, unpack};
use crate::ImageError;
use crate::oci::unpack::Limits;
use std::fs;
use std::time::{Duration, Instant};
use testkit::oci::{self, Image, Node};

/// What was there before an attack, beside the tree and outside of the scratch directory.
const PRECIOUS: &str = "precious";

/// Unpacks these files in a scratch directory. What lies beside the tree must be untouched, whatever comes of it.
pub(super) fn attack(
    name: &str,
    files: &[(String, Vec<u8>)],
    limits: Limits,
) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let beside = dir.path().join("beside");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("file"), PRECIOUS).unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    oci::write(&source, files);
    let start = Instant::now();
    let unpacked = unpack(dir.path(), &source, limits);
    assert!(start.elapsed() < Duration::from_secs(20), "{name} took {:?}", start.elapsed());
    assert_eq!(listing(&beside), ["file"], "{name}");
    assert_eq!(fs::read_to_string(beside.join("file")).unwrap(), PRECIOUS, "{name}");
    let mut there: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(there, ["beside", "root", "source"], "{name}");
    match unpacked {
        Ok(root) => Ok(listing(&root)),
        Err(error @ ImageError::Format { .. }) => Err(error.to_string()),
        Err(error) => panic!("{name}: {error:?} is no word about the image"),
    }
}

fn beside() -> &'static str {
    "../beside/file"
}

/// A layer, and the words with which it is refused.
type Refused = (&'static str, Vec<Node>, &'static str);

fn file(path: &str) -> Node {
    Node::file(path, "evil")
}

/// Names that lead out, or nowhere.
fn names() -> Vec<Refused> {
    vec![
        ("parent directory", vec![file("../beside/file")], "holds `..`"),
        ("parent directory inside", vec![file("a/../../beside/file")], "holds `..`"),
        ("only a parent", vec![Node::dir("..")], "holds `..`"),
        ("absolute parent", vec![file("/../beside/file")], "holds `..`"),
        ("file for the root", vec![file("/")], "can be a directory only"),
        ("through a file", vec![file("a"), file("a/b")], "no directory"),
        ("long path", vec![file("a").pax("path", "a/".repeat(4000))], "4095 at most"),
        ("long part of a name", vec![file(&"a".repeat(256))], "255 bytes"),
        ("deep path", vec![file(&"a/".repeat(1000))], "too deep"),
    ]
}

/// Links that lead out, or nowhere; and devices.
fn links() -> Vec<Refused> {
    vec![
        ("link for the root", vec![Node::symlink("./", "/etc")], "can be a directory only"),
        ("link to itself", vec![Node::symlink("a", "a"), file("a/b")], "circles"),
        (
            "links in circles",
            vec![Node::symlink("a", "b"), Node::symlink("b", "a"), file("a/b")],
            "circles",
        ),
        ("link to nothing", vec![Node::symlink("a", "no"), file("a/b")], "link to nothing"),
        (
            "magic link",
            vec![Node::symlink("a", "/proc/self/root"), file("a/etc/x")],
            "link to nothing",
        ),
        ("hard link outside", vec![Node::hard_link("a", beside())], "holds `..`"),
        ("hard link to nothing", vec![Node::hard_link("a", "/etc/shadow")], "link to nothing"),
        ("hard link to itself", vec![Node::hard_link("a", "a")], "link to nothing"),
        (
            "hard link to a directory",
            vec![Node::dir("d"), Node::hard_link("a", "d")],
            "to a directory",
        ),
        (
            "hard link below itself",
            vec![file("d/x"), Node::hard_link("d", "d/x")],
            "link to what it replaces",
        ),
        ("long link", vec![Node::symlink("a", "b".repeat(5000))], "4095 at most"),
        (
            "deep path through links",
            vec![
                Node::dir("d/".repeat(100)),
                Node::symlink("l", "d/".repeat(99)),
                Node::dir(format!("l/d/{}", "d/".repeat(100))),
                Node::symlink("m", format!("l/d/{}", "d/".repeat(100))),
                Node::dir(format!("m/{}", "d/".repeat(100))),
            ],
            "too deep",
        ),
        ("empty link", vec![Node::symlink("a", "")], "empty or too long"),
        ("block device", vec![Node::new(b'4', "disk")], "it is a device"),
        ("character device", vec![Node::new(b'3', "etc/mem")], "it is a device"),
        ("overlay's whiteout", vec![Node::new(b'3', "etc/passwd")], "it is a device"),
    ]
}

/// Whiteouts of what is not theirs.
fn whiteouts() -> Vec<Refused> {
    vec![
        ("whiteout of a parent", vec![file(".wh...")], "whiteout of nothing"),
        ("whiteout of itself", vec![file("a/.wh..")], "whiteout of nothing"),
        ("whiteout of no name", vec![file("a/.wh.")], "whiteout of nothing"),
        ("file in a whiteout", vec![file(".wh.a/b")], "lies in a whiteout"),
        ("whiteout through a parent", vec![file("../beside/.wh.file")], "holds `..`"),
        (
            "whiteout as a hard link outside",
            vec![Node::hard_link("../beside/.wh.file", "x")],
            "holds `..`",
        ),
        ("opaque parent", vec![file("../beside/.wh..wh..opq")], "holds `..`"),
    ]
}

/// Headers that are malformed, or never end.
fn headers() -> Vec<Refused> {
    vec![
        ("huge pax header", vec![file("a").pax("comment", "x".repeat(2 << 20))], "extension has"),
        (
            "malformed pax",
            vec![Node { data: b"99999 path=a\n".to_vec(), ..Node::new(b'x', "p") }, file("a")],
            "malformed",
        ),
        (
            "pax without a length",
            vec![Node { data: b"path=a\n".to_vec(), ..Node::new(b'x', "p") }, file("a")],
            "malformed",
        ),
        (
            "pax that counts itself as nothing",
            vec![Node { data: b"0 path=a\n".to_vec(), ..Node::new(b'x', "p") }, file("a")],
            "malformed",
        ),
        ("zero in a pax path", vec![file("a").pax("path", "a\0b")], "zero byte"),
        ("extensions without end", (0..20).map(|_| Node::new(b'x', "p")).collect(), "extensions"),
        ("sparse file", vec![file("a").pax("GNU.sparse.major", "1")], "sparse"),
        ("old sparse file", vec![Node::new(b'S', "a")], "type 'S'"),
        ("unknown type", vec![Node::new(b'Z', "a")], "type 'Z'"),
        (
            "many attributes",
            vec![
                (0..100)
                    .fold(file("a"), |node, n| node.pax(&format!("SCHILY.xattr.user.{n}"), "x")),
            ],
            "attributes",
        ),
        (
            "large attribute",
            vec![file("a").pax("SCHILY.xattr.user.a", "x".repeat(70_000))],
            "attributes",
        ),
    ]
}

/// Numbers that are none, or too large.
fn numbers() -> Vec<Refused> {
    let huge = "9".repeat(30);
    vec![
        ("negative size", vec![file("a").size([0xff; 12])], "negative"),
        ("size that is none", vec![file("a").size("0000000009x")], "negative or none"),
        ("size beyond its end", vec![file("a").size("00000070000")], "ends in the middle"),
        (
            "huge size",
            vec![file("a").size([0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255])],
            "ends in the middle",
        ),
        ("size that overflows", vec![file("a").pax("size", &huge)], "pax record size"),
        ("negative size in pax", vec![file("a").pax("size", "-1")], "pax record size"),
        ("owner that means none", vec![file("a").owner(u32::MAX, 0)], "owner"),
        ("huge owner", vec![file("a").pax("uid", "4294967296")], "owner"),
        ("too many entries", (0..2001).map(|n| file(&n.to_string())).collect(), "too many entries"),
    ]
}

#[test]
fn hostile_layers_are_refused_and_write_nothing_outside() {
    let all = [names(), links(), whiteouts(), headers(), numbers()];
    for (name, nodes, why) in all.into_iter().flatten() {
        // Over a layer that is right, as what hides something needs one.
        let image = Image::of(&[&[Node::dir("etc"), Node::file("etc/passwd", "root")], &nodes]);
        match attack(name, &image.layout(), LIMITS) {
            Err(error) => {
                assert!(error.contains(why), "{name}: {error}");
                assert!(error.len() < 600, "{name}: an error of {} bytes", error.len());
            }
            Ok(listing) => panic!("{name} was let in: {listing:?}"),
        }
        let saved = attack(name, &image.saved(), LIMITS);
        assert!(saved.is_err_and(|error| error.contains(why)), "{name}, saved");
    }
}

#[test]
fn what_only_looks_hostile_stays_inside() {
    let cases: [(&str, Vec<Node>, &[&str]); 9] = [
        ("absolute path", vec![file("/etc/x")], &["etc", "etc/x"]),
        (
            "write through an absolute link",
            vec![Node::symlink("l", "/beside"), Node::dir("beside"), file("l/file")],
            &["beside", "beside/file", "l"],
        ),
        (
            "write through a link to a parent",
            vec![Node::symlink("l", "../../beside"), Node::dir("beside"), file("l/file")],
            &["beside", "beside/file", "l"],
        ),
        ("file over a link", vec![Node::symlink("l", "../beside/file"), file("l")], &["l"]),
        (
            "directory over a link",
            vec![Node::symlink("l", "../beside"), Node::dir("l"), file("l/file")],
            &["l", "l/file"],
        ),
        (
            "hard link to a link outside",
            vec![Node::symlink("l", "../beside/file"), Node::hard_link("h", "l"), file("h")],
            &["h", "l"],
        ),
        (
            "the same again and again",
            vec![file("a"), Node::dir("a"), file("a"), Node::hard_link("a", "a")],
            &["a"],
        ),
        ("devices of its own", vec![Node::new(b'4', "dev/sda"), Node::new(b'3', "dev/mem")], &[]),
        ("things of AUFS", vec![file(".wh..wh.plnk/a.b"), file(".wh..wh.aufs")], &[]),
    ];
    for (name, nodes, want) in cases {
        let listing = attack(name, &Image::of(&[&nodes]).layout(), LIMITS);
        assert_eq!(listing.unwrap(), want, "{name}");
    }
}

#[test]
fn whiteouts_through_links_remove_nothing_outside() {
    let lower = [
        Node::symlink("l", "../beside"),
        Node::symlink("m", "/beside"),
        Node::dir("beside"),
        Node::file("beside/file", "x"),
    ];
    let upper =
        [Node::file("l/.wh.file", ""), Node::file("m/.wh..wh..opq", ""), Node::file(".wh.l", "")];
    let listing = attack("whiteouts", &Image::of(&[&lower, &upper]).layout(), LIMITS).unwrap();
    assert_eq!(listing, ["beside", "m"]);
}

#[test]
fn bombs_are_stopped_by_what_they_unpack_to() {
    let small = Limits { bytes: 1 << 20, entries: 100, ..LIMITS };
    // 16 MB of zeros in some kilobytes, packed by each of the three.
    let bomb = Node::file("zeros", vec![0; 16 << 20]);
    let empty: &[Node] = &[];
    for at in 0..3 {
        let mut layers = vec![empty; at];
        layers.push(std::slice::from_ref(&bomb));
        let error = attack("bomb", &Image::of(&layers).layout(), small).unwrap_err();
        assert!(error.contains("more than"), "{error}");
    }
    // Many layers that are each within the bound.
    let half = Node::file("half", vec![7; 700 << 10]);
    let image = Image::of(&[std::slice::from_ref(&half), std::slice::from_ref(&half)]);
    let error = attack("two halves", &image.layout(), small).unwrap_err();
    assert!(error.contains("more than"), "{error}");
}

#[test]
fn what_a_layer_hides_takes_bounded_memory() {
    let long = "d/".repeat(50);
    let hides = |number: usize| -> Vec<Node> {
        (0..number).map(|number| file(&format!("{long}.wh.{number:04}"))).collect()
    };
    let each = (size_of::<Vec<u8>>() + 8 + long.len() + 4) as u64;
    let limits = Limits { hidden_bytes: 100 * each, ..LIMITS };
    attack("100 whiteouts", &Image::of(&[&hides(100)]).layout(), limits).unwrap();
    let error = attack("101 whiteouts", &Image::of(&[&hides(101)]).layout(), limits).unwrap_err();
    assert!(error.contains("0100") && error.contains("whiteouts take more than"), "{error}");
    // What lies too deep to be there is not kept in mind either.
    let deep = file(&format!("{}.wh.x", "d/".repeat(1500)));
    let error = attack("a deep whiteout", &Image::of(&[&[deep]]).layout(), limits).unwrap_err();
    assert!(error.contains("it lies too deep"), "{error}");
}
