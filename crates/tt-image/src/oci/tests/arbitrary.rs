//! Images by chance, near to what matters: whatever becomes of them, nothing is written outside.

use super::hostile::attack;
use super::layers::LIMITS;
use proptest::prelude::*;
use testkit::oci::{Image, Node};

/// Names that come near to what matters.
fn any_name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop_oneof![Just("a"), Just("b"), Just("l"), Just("d")].prop_map(str::to_owned),
        1 => prop_oneof![Just(".."), Just("."), Just(""), Just(".wh.a"), Just(".wh..wh..opq"), Just(".wh...")]
            .prop_map(str::to_owned),
    ];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn any_node() -> impl Strategy<Value = Node> {
    let kind = prop_oneof![Just(b'0'), Just(b'5'), Just(b'2'), Just(b'1'), Just(b'6'), Just(b'3')];
    let link = prop_oneof![any_name(), Just("/".to_owned()), Just("../../beside".to_owned())];
    (kind, any_name(), link, any::<u16>()).prop_map(|(kind, path, link, mode)| Node {
        link: link.into_bytes(),
        data: if kind == b'0' { b"data".to_vec() } else { Vec::new() },
        ..Node::new(kind, path).mode(mode.into())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_layers_stay_inside(
        layers in proptest::collection::vec(proptest::collection::vec(any_node(), 0..12), 1..4),
    ) {
        let layers: Vec<&[Node]> = layers.iter().map(Vec::as_slice).collect();
        let _ = attack("any layers", &Image::of(&layers).layout(), LIMITS);
    }

    #[test]
    fn any_flipped_bytes_are_survived(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let nodes = [Node::dir("d"), Node::file("d/a", "x").pax("mtime", "1.5"), Node::symlink("l", "d")];
        let mut image = Image::of(&[&nodes]);
        for (at, byte) in flips {
            let at = at.index(image.layers[0].len());
            image.layers[0][at] = byte;
        }
        // The digests are of what was flipped, so that the reader of archives gets to see it.
        let _ = attack("flipped bytes", &image.layout(), LIMITS);
    }

    #[test]
    fn any_documents_are_survived(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), which in 0_usize..2,
    ) {
        let image = Image::of(&[&[Node::file("a", "x")]]);
        let mut files = if which == 0 { image.layout() } else { image.saved() };
        let last = files.len() - 1;
        let file = if which == 0 { 1 } else { last };
        let at = at.index(files[file].1.len());
        files[file].1[at] = byte;
        let _ = attack("any documents", &files, LIMITS);
    }
}
