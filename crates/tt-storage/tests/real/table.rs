//! The table in docs/storage.md is what the suite finds. It never writes it.

use std::collections::BTreeMap;
use tt_model::StorageKind;
use tt_storage::conformance::{self, CLAUSES, Outcome, Rig};

/// The row that is a test of its own: `killed.rs`.
pub const KILLED: &str = "killed in the middle";

/// Row by row, what it says of each kind.
fn table() -> BTreeMap<String, BTreeMap<String, String>> {
    let text = include_str!("../../../../docs/storage.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().filter(|line| line.starts_with('|')).map(cells);
    let kinds = lines.next().unwrap();
    lines
        .filter(|row| !row[0].starts_with('-'))
        .map(|row| (row[0].clone(), kinds.iter().cloned().zip(row).skip(1).collect()))
        .collect()
}

/// Compares what the suite, or one test, found of a kind with what the table says.
pub fn compare(kind: StorageKind, found: &[(&str, Outcome)]) {
    let table = table();
    for (clause, outcome) in found {
        let found = outcome.err().unwrap_or("yes");
        println!("{:6} {clause}: {found}", kind.name());
        assert_eq!(table[*clause][kind.name()], found, "{clause} of {} in the table", kind.name());
    }
}

/// Runs the suite, and compares as [`compare`] does, clause by clause: a run that is cut short has told of those before.
pub fn run(kind: StorageKind, rig: &dyn Rig) {
    conformance::run(rig, |clause, outcome| compare(kind, &[(clause, outcome)]));
}

#[test]
fn the_table_has_a_row_for_each_clause_and_a_column_for_each_kind() {
    let mut rows: Vec<_> = CLAUSES.iter().map(|(name, _)| *name).chain([KILLED]).collect();
    rows.sort_unstable();
    let table = table();
    assert!(table.keys().eq(rows.iter()), "{:?}", table.keys());
    for (row, cells) in &table {
        // What a container holds is no disk with bytes at offsets: `tests/docker.rs` has clauses of its own.
        let kinds = StorageKind::ALL.into_iter().filter(|kind| *kind != StorageKind::Docker);
        let mut kinds: Vec<&str> = kinds.map(StorageKind::name).collect();
        kinds.sort_unstable();
        assert!(cells.keys().eq(kinds.iter()), "{row}: {cells:?}");
    }
}
