//! The records as a whole, to be compared.

use testkit::Lab;

/// Everything that can be listed.
pub fn records(lab: &Lab) -> Vec<String> {
    let nouns = ["env", "vm", "template", "host", "image"];
    nouns.iter().map(|noun| lab.json(&[noun, "ls"]).to_string()).collect()
}

/// Fails the test unless the records are as before, and the host is what they say.
#[track_caller]
pub fn assert_unchanged(lab: &Lab, before: &[String]) {
    let after = records(lab);
    assert!(before == after, "before: {before:#?}\nafter: {after:#?}");
    lab.assert_clean();
}
