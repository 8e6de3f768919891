//! Packings and archives of strangers.

use super::files::{Case, qcow2, run};
use super::*;
use std::io::Write;
use testkit::oci::{Node, tar};

/// Half a gigabyte of nothing.
fn zeros() -> impl std::io::Read {
    std::io::Read::take(std::io::repeat(0), 512 << 20)
}

fn gzip(mut from: impl std::io::Read) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut from, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

pub(super) const PACKINGS: &[Case] = &[
    ("a bomb of gzip", |lab| import_of(lab.write("b", gzip(zeros()))), "the most for so many"),
    (
        "a bomb of xz",
        |lab| {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            std::io::copy(&mut zeros(), &mut encoder).unwrap();
            import_of(lab.write("b", encoder.finish().unwrap()))
        },
        "the most for so many",
    ),
    (
        "a bomb of zstd",
        |lab| {
            let packed = zstd::stream::encode_all(zeros(), 1).unwrap();
            import_of(lab.write("b", packed))
        },
        "the most for so many",
    ),
    (
        "a window of zstd beyond all memory",
        |lab| {
            // Frame header (RFC 8878, 3.1.1): a window descriptor of 2^41 bytes, then a last block of nothing.
            import_of(lab.write("b", [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00]))
        },
        "can not be used",
    ),
    (
        "a dictionary of xz beyond all memory",
        |lab| {
            let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
            options.dict_size(1 << 30);
            let mut filters = liblzma::stream::Filters::new();
            filters.lzma2(&options);
            let check = liblzma::stream::Check::Crc32;
            let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(&plain()).unwrap();
            import_of(lab.write("b", encoder.finish().unwrap()))
        },
        "can not be used",
    ),
    ("packed twice", |lab| import_of(lab.write("b", gzip(&*gzip(&*plain())))), "packed twice"),
    ("packed nothing", |lab| import_of(lab.write("b", gzip(&b""[..]))), "no disk or archive"),
    (
        "cut off gzip",
        |lab| {
            let packed = gzip(&*plain());
            import_of(lab.write("b", &packed[..packed.len() / 2]))
        },
        "can not be used",
    ),
    (
        "gzip with something behind it",
        |lab| import_of(lab.write("b", [gzip(&*plain()), b"more".to_vec()].concat())),
        "can not be used",
    ),
    (
        "a broken checksum",
        |lab| {
            let mut packed = gzip(&*plain());
            let at = packed.len() - 6;
            packed[at] ^= 1;
            import_of(lab.write("b", packed))
        },
        "can not be used",
    ),
    (
        "a hostile disk in a packing",
        |lab| {
            let inner = qcow2(lab, 79, &[4]);
            let content = std::fs::read(&inner.from).unwrap();
            std::fs::remove_file(&inner.from).unwrap();
            import_of(lab.write("b", gzip(&*content)))
        },
        "in another file",
    ),
];

#[test]
fn hostile_packings_are_refused() {
    run(PACKINGS);
}

fn archive(lab: &Lab, nodes: &[Node]) -> Import {
    std::fs::create_dir_all(lab.path("outside")).unwrap();
    lab.write("outside/precious", b"precious");
    import_of(lab.write("root.tar", tar(nodes)))
}

pub(super) const ARCHIVES: &[Case] = &[
    ("a way out by ..", |lab| archive(lab, &[Node::file("../../../../outside/evil", b"x")]), ".."),
    (
        "a way out in the middle",
        |lab| archive(lab, &[Node::dir("a"), Node::file("a/../../evil", b"x")]),
        "..",
    ),
    (
        "a hard link out",
        |lab| archive(lab, &[Node::hard_link("shadow", "../../../../../../../etc/shadow")]),
        "shadow",
    ),
    (
        "a hard link to a file of the host",
        |lab| archive(lab, &[Node::hard_link("shadow", "/etc/no-such-file-in-here")]),
        "hard link to nothing",
    ),
    ("a device", |lab| archive(lab, &[Node::new(b'4', "disk")]), "it is a device"),
    ("a name beyond all bounds", |lab| archive(lab, &[Node::file("x".repeat(300), b"x")]), "x"),
    (
        "a size that is a lie",
        |lab| archive(lab, &[Node::file("x", b"x").size("77777777777")]),
        "root file system",
    ),
    (
        "a size that is no number",
        |lab| archive(lab, &[Node::file("x", b"x").size("zz")]),
        "root file system",
    ),
    ("a type that nobody knows", |lab| archive(lab, &[Node::new(b'Z', "x")]), "type \'Z\'"),
    (
        "cut off",
        |lab| {
            let content = tar(&[Node::file("x", vec![7; 10_000])]);
            import_of(lab.write("root.tar", &content[..5000]))
        },
        "root file system",
    ),
    (
        "a broken header",
        |lab| {
            let mut content = tar(&[Node::file("x", b"x"), Node::file("y", b"y")]);
            content[1024] ^= 1;
            import_of(lab.write("root.tar", content))
        },
        "root file system",
    ),
];

#[test]
fn hostile_archives_are_refused() {
    run(ARCHIVES);
}
