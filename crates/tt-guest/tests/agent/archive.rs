//! File copies: what is packed comes out the same, and no hostile archive writes outside of its target.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tt_guest::Error;
use tt_guest::tar::{Limits, Packer, Unpacker};

fn pack(path: &Path, piece: usize) -> Vec<u8> {
    let mut packer = Packer::new(path).unwrap();
    let (mut archive, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match packer.fill(&mut buffer).unwrap() {
            0 => return archive,
            count => archive.extend_from_slice(&buffer[..count]),
        }
    }
}

fn unpack(archive: &[u8], target: &Path, piece: usize) -> Result<(), Error> {
    let mut unpacker = Unpacker::new(target, None, None, Limits::NONE)?;
    archive.chunks(piece).try_for_each(|bytes| unpacker.push(bytes))?;
    unpacker.finish()
}

/// One entry in the format of ustar, made without the code under test.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

/// Everything beneath a directory: path, then kind, mode and content.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let mode = about.permissions().mode() & 0o777;
        let what = if about.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if about.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            format!("dir {mode:o}")
        } else {
            format!("file {mode:o} {:?}", fs::read(&path).unwrap())
        };
        seen.insert(path.strip_prefix(root).unwrap().display().to_string(), what);
    }
    seen
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    let deep = source.join("a".repeat(90)).join("b".repeat(90)).join("c".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("exact"), [7; 1024]).unwrap();
    fs::write(source.join("empty"), "").unwrap();
    fs::write(source.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../nowhere/".repeat(20), source.join("link")).unwrap();
    for piece in [1, 511, 4096, 100_000] {
        let target = scratch.path().join(format!("target-{piece}"));
        unpack(&pack(&source, piece), &target, piece).unwrap();
        assert_eq!(tree(&target), tree(&source), "in pieces of {piece}");
        assert_eq!(fs::metadata(target.join("tool")).unwrap().permissions().mode() & 0o7777, 0o751);
    }
}

#[test]
fn the_target_follows_the_rules_of_cp() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::write(at("one"), "1").unwrap();
    fs::create_dir(at("dir")).unwrap();
    let packed = pack(&at("one"), 4096);
    unpack(&packed, &at("two"), 4096).unwrap();
    unpack(&packed, &at("dir"), 4096).unwrap();
    assert_eq!(fs::read_to_string(at("two")).unwrap(), "1");
    assert_eq!(fs::read_to_string(at("dir/one")).unwrap(), "1");
    assert!(matches!(unpack(&packed, &at("missing/"), 4096), Err(Error::AcceptPath { .. })));
    assert!(matches!(unpack(&packed, &at("missing/x"), 4096), Err(Error::AccessFile { .. })));

    let mut named = Unpacker::new(&at("dir"), Some("other"), Some(0o600), Limits::NONE).unwrap();
    named.push(&packed).unwrap();
    named.finish().unwrap();
    assert_eq!(fs::metadata(at("dir/other")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Unpacker::new(&at("dir"), Some("../x"), None, Limits::NONE).is_err());
}

#[test]
fn the_system_tar_agrees_on_the_format() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("tree");
    fs::create_dir_all(source.join("x".repeat(120))).unwrap();
    fs::write(source.join("x".repeat(120)).join("file"), "data").unwrap();
    fs::write(scratch.path().join("packed.tar"), pack(&source, 4096)).unwrap();
    let run = |arguments: &[&str]| {
        let done =
            std::process::Command::new("tar").args(arguments).current_dir(scratch.path()).status();
        assert!(done.unwrap().success(), "{arguments:?}");
    };
    fs::create_dir(scratch.path().join("out")).unwrap();
    run(&["-xf", "packed.tar", "-C", "out"]);
    assert_eq!(tree(&scratch.path().join("out/tree")), tree(&source));
    run(&["--format=gnu", "-cf", "theirs.tar", "tree"]);
    unpack(
        &fs::read(scratch.path().join("theirs.tar")).unwrap(),
        &scratch.path().join("back"),
        700,
    )
    .unwrap();
    assert_eq!(tree(&scratch.path().join("back")), tree(&source));
}

#[test]
fn hostile_archives_write_nothing_outside() {
    let file = |name: &str| entry(name, b'0', "", b"evil");
    let dir = |name: &str| entry(name, b'5', "", b"");
    let link = |name: &str, target: &str| entry(name, b'2', target, b"");
    let long = |length: usize| entry("././@LongLink", b'L', "", &vec![b'x'; length]);
    let mut endless = entry("t", b'0', "", b"x");
    endless[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    let mut wrong_sum = file("t");
    wrong_sum[0] = b'u';
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("absolute", vec![file("/tmp/tt-evil")]),
        ("parent", vec![file("../evil")]),
        ("parent inside", vec![dir("t"), file("t/../../evil")]),
        ("dot", vec![file("./evil")]),
        ("empty component", vec![dir("t"), file("t//evil")]),
        ("empty name", vec![file("")]),
        ("only a slash", vec![dir("/")]),
        ("through a link out", vec![dir("t"), link("t/out", "../../outside"), file("t/out/evil")]),
        (
            "directory over a link",
            vec![dir("t"), link("t/out", "../../outside"), dir("t/out"), file("t/out/evil")],
        ),
        ("top is a link", vec![link("t", "../outside"), file("t/evil")]),
        ("absolute link", vec![dir("t"), link("t/out", "/"), file("t/out/tmp/tt-evil")]),
        ("through a file", vec![dir("t"), file("t/f"), file("t/f/evil")]),
        ("hard link", vec![entry("t", b'1', "../outside/kept", b"")]),
        ("character device", vec![entry("t", b'3', "", b"")]),
        ("block device", vec![entry("t", b'4', "", b"")]),
        ("pipe", vec![entry("t", b'6', "", b"")]),
        ("unknown kind", vec![entry("t", b'x', "", b"path=evil")]),
        ("two tops", vec![file("t"), file(".profile")]),
        ("long name too long", vec![long(5000), file("t")]),
        ("long component", vec![long(300), file("t")]),
        ("link to nothing", vec![link("t", "")]),
        ("too deep", vec![long(0), file("t")]),
        ("data of a directory", vec![entry("t", b'5', "", b"data")]),
        ("endless size", vec![endless]),
        ("wrong checksum", vec![wrong_sum]),
        ("empty", vec![]),
    ];
    for (name, entries) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        fs::create_dir_all(scratch.path().join("outside")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(scratch.path().join("outside/kept"), "kept").unwrap();
        assert!(unpack(&archive(&entries), &target, 700).is_err(), "{name} was accepted");
        let seen = tree(scratch.path());
        assert!(!seen.keys().any(|path| path.contains("evil")), "{name} wrote: {seen:?}");
        assert_eq!(
            fs::read_to_string(scratch.path().join("outside/kept")).unwrap(),
            "kept",
            "{name}"
        );
        assert_eq!(fs::read_dir(scratch.path().join("outside")).unwrap().count(), 1, "{name}");
        assert!(!Path::new("/tmp/tt-evil").exists(), "{name}");
    }
}

#[test]
fn a_link_is_replaced_not_written_through() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("kept"), "kept").unwrap();
    symlink("kept", scratch.path().join("link")).unwrap();
    unpack(&archive(&[entry("f", b'0', "", b"new")]), &scratch.path().join("link"), 700).unwrap();
    assert_eq!(fs::read_to_string(scratch.path().join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(scratch.path().join("link")).unwrap(), "new");
}

#[test]
fn limits_hold_and_an_incomplete_file_is_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = archive(&[entry("f", b'0', "", &[1; 2000])]);
    for limits in [Limits { bytes: 1999, entries: 9 }, Limits { bytes: 9999, entries: 0 }] {
        let mut unpacker = Unpacker::new(scratch.path(), None, None, limits).unwrap();
        assert!(matches!(unpacker.push(&bytes), Err(Error::AcceptEntry { .. })));
    }
    assert!(matches!(unpack(&bytes[..1000], scratch.path(), 100), Err(Error::ReadArchive { .. })));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_and_damaged_archives_never_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..2000),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        fs::create_dir(&target).unwrap();
        let _ = unpack(&noise, &target, 300);
        let mut damaged = archive(&[entry("t", b'5', "", b""), entry("t/f", b'0', "", b"data"), entry("t/l", b'2', "f", b"")]);
        for (at, byte) in flips {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        let _ = unpack(&damaged, &target, 300);
        prop_assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
