//! Env whose lifetime is over.

use std::time::Duration;
use testkit::Lab;

#[test]
fn lifetimes_end_as_was_asked() {
    let Some(lab) = Lab::new("lifetimes_end_as_was_asked") else { return };
    let short = ["--ttl", "5s", "--no-wait", "--vm", "a=micro"];
    lab.tt(&[&["env", "create", "gone"], &short[..]].concat()).good();
    lab.tt(&[&["env", "create", "kept", "--at-end", "stop"], &short[..]].concat()).good();
    let is_over = || lab.env("gone").is_none();
    assert!(testkit::within(Duration::from_secs(60), is_over), "{:?}", lab.env("gone"));
    lab.reaches_phase("kept", "suspended", Duration::from_secs(60));
    lab.assert_clean();
    // A longer life, and it runs again.
    lab.tt(&["env", "extend", "kept", "1h"]).good();
    lab.tt(&["env", "start", "kept"]).good();
    assert_eq!(lab.sh("kept/a", "hostname"), "a");
    lab.tt(&["env", "destroy", "kept"]).good();
    lab.finish();
}
