//! Several daemons on one machine.

use std::collections::BTreeSet;
use testkit::{HOST, Lab, Setup, run};

#[test]
fn daemons_live_side_by_side_but_not_on_one_directory() {
    let name = "daemons_live_side_by_side_but_not_on_one_directory";
    let Some(one) = Lab::new(name) else { return };
    let Some(two) = Setup::new(name).beside(&one).start() else { return };
    let blocks: BTreeSet<String> =
        [&one, &two].map(|lab| lab.json(&["host", "show"])["block"].to_string()).into();
    assert_eq!(blocks.len(), 2, "{blocks:?}");
    // The same names in both.
    let create = ["env", "create", "shop", "--vm", "web=micro,port=80"];
    for lab in [&one, &two] {
        lab.tt(&create).good();
        lab.serve_echo("shop/web", 80);
    }
    assert_ne!(one.addr("shop", "web"), two.addr("shop", "web"));
    for lab in [&one, &two] {
        let port = lab.port("shop", "web", "80");
        assert!(lab.client.reaches_tcp((HOST, port)), "{port}");
        assert!(lab.host.reaches_tcp((HOST, port)), "{port}");
        lab.assert_clean();
    }
    a_second_one_is_refused(&one);
    // The end of one is nothing to the other.
    two.tt(&["env", "destroy", "shop"]).good();
    two.finish();
    assert!(one.client.reaches_tcp((HOST, one.port("shop", "web", "80"))));
    one.assert_clean();
    one.tt(&["env", "destroy", "shop"]).good();
    one.finish();
}

fn a_second_one_is_refused(lab: &Lab) {
    let socket = lab.run_dir().join("second.sock").display().to_string();
    let mut command = lab.daemon_command(&["--config", &lab.config(), "--socket", &socket]);
    let refused = lab.host.run(|| run(&mut command, b""));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let data = lab.data().display().to_string();
    assert!(refused.err.contains(&data) && refused.err.contains("another"), "{}", refused.err);
    assert_eq!(lab.sh("shop/web", "hostname"), "web");
}
