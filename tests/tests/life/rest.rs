//! Rest and return: paused guests go on as if nothing had been; stopped ones come back with their disks.

use std::time::Duration;
use testkit::{HOST, Lab, is_alive};

#[test]
fn guests_come_back_from_every_rest() {
    let Some(lab) = Lab::new("guests_come_back_from_every_rest") else { return };
    lab.tt(&["env", "create", "inn", "--vm", "a=micro,port=7", "--vm", "b=micro"]).good();
    let planned = (lab.addr("inn", "a"), lab.port("inn", "a", "7"));
    a_pause_is_not_noticed(&lab);
    disks_survive(&lab, "shutdown");
    disks_survive(&lab, "kill");
    one_member_rests_alone(&lab);
    assert_eq!((lab.addr("inn", "a"), lab.port("inn", "a", "7")), planned);
    lab.tt(&["env", "destroy", "inn"]).good();
    lab.finish();
}

fn a_pause_is_not_noticed(lab: &Lab) {
    lab.serve_echo("inn/a", 7);
    lab.sh("inn/a", "setsid sh -c 'while :; do date +%s >>/run/beats; sleep 1; done' </dev/null >/dev/null 2>&1 &");
    let mut stream = lab.client.connect((HOST, lab.port("inn", "a", "7"))).unwrap();
    assert!(is_alive(&mut stream));
    let boot = lab.sh("inn/a", "cat /proc/sys/kernel/random/boot_id");
    lab.tt(&["env", "stop", "inn", "--mode", "pause"]).good();
    lab.reaches_phase("inn", "paused", Duration::ZERO);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(!is_alive(&mut stream), "a paused guest answers");
    let refused = lab.exec("inn/a", &["true"]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    lab.assert_clean();
    lab.tt(&["env", "start", "inn"]).good();
    lab.reaches_phase("inn", "ready", Duration::ZERO);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The answer to what was sent meanwhile comes first.
    assert!(
        testkit::within(Duration::from_secs(20), || is_alive(&mut stream)),
        "the connection is lost"
    );
    assert_eq!(lab.sh("inn/a", "cat /proc/sys/kernel/random/boot_id"), boot);
    let beats = || lab.sh("inn/a", "wc -l </run/beats").parse::<u32>().unwrap();
    let before = beats();
    assert!(
        testkit::within(Duration::from_secs(20), || beats() > before),
        "the process stands still"
    );
}

fn disks_survive(lab: &Lab, mode: &str) {
    let boot = lab.sh("inn/b", "cat /proc/sys/kernel/random/boot_id");
    lab.sh("inn/b", &format!("echo {mode} >/root/kept && sync"));
    lab.tt(&["env", "stop", "inn", "--mode", mode]).good();
    lab.reaches_phase("inn", "stopped", Duration::ZERO);
    says_that_it_is_stopped(lab, true);
    lab.assert_clean();
    lab.exec("inn/b", &["true"]).fails(125, "ERR_TT_STATE");
    lab.tt(&["env", "start", "inn"]).good();
    lab.reaches_phase("inn", "ready", Duration::ZERO);
    says_that_it_is_stopped(lab, false);
    assert_eq!(lab.sh("inn/b", "cat /root/kept"), mode);
    assert_ne!(lab.sh("inn/b", "cat /proc/sys/kernel/random/boot_id"), boot);
}

fn says_that_it_is_stopped(lab: &Lab, is_it: bool) {
    assert_eq!(lab.env("inn").unwrap()["state"]["is_stopped"], is_it);
    for vm in ["a", "b"] {
        assert_eq!(lab.vm("inn", vm)["state"]["during_stop"], is_it, "{vm}");
    }
}

fn one_member_rests_alone(lab: &Lab) {
    let boot = lab.sh("inn/a", "cat /proc/sys/kernel/random/boot_id");
    lab.tt(&["vm", "stop", "inn/b", "--mode", "kill"]).good();
    assert_eq!(lab.vm("inn", "b")["status"]["phase"], "stopped");
    let during_stop = |vm| lab.vm("inn", vm)["state"]["during_stop"] == true;
    assert!(during_stop("b") && !during_stop("a"));
    assert_eq!(lab.env("inn").unwrap()["state"]["is_stopped"], false);
    assert_eq!(lab.vm("inn", "a")["status"]["phase"], "ready");
    assert_eq!(lab.sh("inn/a", "cat /proc/sys/kernel/random/boot_id"), boot);
    lab.tt(&["vm", "start", "inn/b"]).good();
    assert_eq!(lab.vm("inn", "b")["status"]["phase"], "ready");
    assert_eq!(lab.sh("inn/b", "cat /root/kept"), "kill");
    lab.sh("inn/a", "ping -c 1 -W 5 b");
}
