//! The table in docs/engines.md is what the suite finds. It never writes it.

use std::collections::BTreeMap;
use tt_engine::conformance::{self, Outcome};

/// Row by row, what it says of each engine.
pub fn table() -> BTreeMap<String, BTreeMap<String, String>> {
    let text = include_str!("../../../../docs/engines.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    // Another table may follow.
    let lines = text.lines().skip_while(|line| !line.starts_with("| clause"));
    let mut lines = lines.take_while(|line| line.starts_with('|')).map(cells);
    let engines = lines.next().unwrap();
    lines
        .filter(|row| !row[0].starts_with('-'))
        .map(|row| (row[0].clone(), engines.iter().cloned().zip(row).skip(1).collect()))
        .collect()
}

/// Compares what the suite found of an engine with its column.
pub fn compare(engine: &str, found: &[(&str, Outcome)]) {
    let table = table();
    for (clause, outcome) in found {
        let found = outcome.as_ref().err().map_or("yes", String::as_str);
        println!("{engine} | {clause} | {found}");
    }
    for (clause, outcome) in found {
        let found = outcome.as_ref().err().map_or("yes", String::as_str);
        let row = table.get(*clause).unwrap_or_else(|| panic!("no row for {clause:?}"));
        assert_eq!(row[engine], found, "{clause:?} of {engine} in the table");
    }
    assert!(found.iter().map(|(name, _)| *name).eq(conformance::names()));
}
