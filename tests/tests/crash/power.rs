//! A host that loses its power: what ran is started again, what rested rests, and all that was asked for holds as before.

use std::time::Duration;
use testkit::{CLIENT, Echo, HOST, Lab};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;
const CONVERGES: Duration = Duration::from_secs(120);

#[test]
fn envs_outlive_a_power_failure() {
    let Some(mut lab) = Lab::new("envs_outlive_a_power_failure") else { return };
    let specs = ["--vm", "a=micro,port=7", "--vm", "b=micro"];
    lab.tt(&[&["env", "create", "ran"], &specs[..]].concat()).good();
    lab.tt(&["env", "create", "slept", "--vm", "z=micro,port=8"]).good();
    lab.tt(&["env", "create", "off", "--vm", "n=micro", "--no-wait"]).good();
    lab.tt(&["env", "stop", "off", "--mode", "kill"]).good();
    lab.serve_count("slept/z", 8);
    assert_eq!(lab.count(lab.port("slept", "z", "8")), 1);
    let boots = ["ran/a", "ran/b", "slept/z"].map(|vm| lab.boot_id(vm));
    lab.tt(&["snapshot", "create", "ran", "before"]).good();
    lab.tt(&["env", "stop", "slept"]).good();
    lab.sh("ran/a", "echo kept >/root/kept && sync");
    lab.tt(&["env", "deny-outgoing", "ran"]).good();
    lab.tt(&["vm", "update", "ran/b", "--block", &CLIENT.to_string()]).good();
    let ports = (lab.port("ran", "a", "7"), lab.addr("ran", "b"));

    lab.lose_power();
    assert_eq!(lab.machines(), []);
    lab.restart();
    lab.reaches_phase("ran", "ready", CONVERGES);
    lab.reaches_phase("slept", "suspended", CONVERGES);
    lab.reaches_phase("off", "stopped", CONVERGES);
    assert_eq!((lab.port("ran", "a", "7"), lab.addr("ran", "b")), ports);
    assert_eq!(lab.sh("ran/a", "cat /root/kept; hostname"), "kept\na");
    assert_ne!(lab.boot_id("ran/a"), boots[0]);
    lab.sh("ran/a", "ping -c 1 -W 5 b");
    policies_hold(&lab);
    lab.tt(&["env", "start", "slept"]).good();
    assert_eq!(lab.count(lab.port("slept", "z", "8")), 2, "memory was lost");
    assert_eq!(lab.boot_id("slept/z"), boots[2]);
    lab.tt(&["snapshot", "apply", "ran", "before"]).good();
    assert_eq!([lab.boot_id("ran/a"), lab.boot_id("ran/b")], boots[..2]);
    assert_ne!(lab.exec("ran/a", &["test", "-e", "/root/kept"]).code, Some(0));
    lab.assert_clean();
    lab.tt(&["env", "destroy", "ran", "slept", "off"]).good();
    lab.finish();
}

fn policies_hold(lab: &Lab) {
    let _outside = Echo::new(&lab.client, OUTSIDE);
    for vm in ["ran/a", "ran/b"] {
        lab.bring_helper(vm);
    }
    let opens = |vm: &str| {
        let line = format!("helper tcp {CLIENT} {OUTSIDE}");
        lab.exec(vm, &["sh", "-c", &line]).code == Some(0)
    };
    assert!(!opens("ran/a") && !opens("ran/b"));
    lab.serve_echo("ran/a", 7);
    assert!(lab.client.reaches_tcp((HOST, lab.port("ran", "a", "7"))));
    lab.tt(&["env", "allow-outgoing", "ran"]).good();
    assert!(opens("ran/a") && !opens("ran/b"));
}
