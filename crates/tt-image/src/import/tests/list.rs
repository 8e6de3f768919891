//! All that is refused, in one list: `docs/hostile-imports.md` is made of it.

use super::{files, urls, wrapped};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use tt_model::ErrorCode;

/// How a hostile import is refused, whatever it is.
pub(super) const CODE: ErrorCode = ErrorCode::Template;
/// Fewer are too few.
const AT_LEAST: usize = 40;
const HEAD: &str = "# Imports that are refused\n\n\
    What strangers would like to be imported, as the tests of `crates/tt-image/src/import/tests` make it. Each is refused with\n\
    this code for this reason, in bounded time and space, and nothing is written outside of the draft, of which nothing is\n\
    left. The layers of container images have a list of their own, in `crates/tt-image/src/oci/tests/hostile.rs`. The test\n\
    `the_list_of_hostile_imports_is_the_one_that_is_checked_in` keeps this page; `TT_BLESS=1` writes it anew.\n\n\
    | kind | what | code | the refusal says |\n|---|---|---|---|\n";

/// Kind, what, and what is said of it.
fn list() -> Vec<(&'static str, &'static str, &'static str)> {
    let of = |kind, cases: &[files::Case]| -> Vec<_> {
        cases.iter().map(|(what, _, says)| (kind, *what, *says)).collect()
    };
    let mut list = of("file", files::FILES);
    list.extend(of("qcow2", files::QCOW2_DISKS));
    list.extend(of("vmdk", files::VMDK_DISKS));
    list.extend(of("vdi", files::VDI_DISKS));
    list.extend(of("packed", wrapped::PACKINGS));
    list.extend(of("tar", wrapped::ARCHIVES));
    list.extend(urls::SERVERS.iter().map(|(what, _, says)| ("server", *what, *says)));
    list.extend(urls::URLS.iter().map(|(what, _, says)| ("URL", *what, *says)));
    list
}

#[test]
fn the_list_of_hostile_imports_is_the_one_that_is_checked_in() {
    let list = list();
    let names: BTreeSet<_> = list.iter().map(|(kind, what, _)| (kind, what)).collect();
    assert_eq!(names.len(), list.len(), "two have one name");
    assert!(names.len() >= AT_LEAST, "only {}", names.len());
    let mut page = HEAD.to_owned();
    for (kind, what, says) in list {
        writeln!(page, "| {kind} | {what} | `{CODE}` | {says} |").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hostile-imports.md");
    if std::env::var_os("TT_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/hostile-imports.md is not what the tests refuse; see its head");
}
