//! A member that the program of somebody else runs, beside one that QEMU's driver runs.

use std::time::Duration;
use testkit::{CLIENT, HOST, Lab, Setup};

const CONVERGES: Duration = Duration::from_secs(120);

#[test]
fn a_program_of_others_runs_members_as_any_engine_does() {
    let setup = Setup::new("a_program_of_others_runs_members_as_any_engine_does");
    let Some(mut lab) = setup.start_with_example() else { return };
    let shown = lab.json(&["host", "show"]);
    assert!(shown.to_string().contains("\"exec\""), "{shown}");
    let members = ["--vm", "a=micro", "--vm", "x=micro,engine=exec,port=7"];
    lab.tt(&[&["env", "create", "mixed"], &members[..]].concat()).good();
    let engines = ["a", "x"].map(|vm| lab.vm("mixed", vm)["engine"].clone());
    assert_eq!(engines, ["qemu", "exec"]);
    assert_eq!(lab.sh("mixed/x", "hostname"), "x");
    reach_each_other(&lab);

    // What a snapshot takes it can not, and that is said before anything is touched.
    let refused = lab.tt(&["snapshot", "create", "mixed", "s"]);
    assert!(refused.code != Some(0) && refused.err.contains("exec"), "{refused:?}");
    let boot = lab.boot_id("mixed/x");
    lab.restart();
    assert_eq!(lab.boot_id("mixed/x"), boot);
    lab.tt(&["env", "stop", "mixed", "--mode", "pause"]).good();
    lab.tt(&["env", "start", "mixed"]).good();
    assert_eq!(lab.boot_id("mixed/x"), boot);
    // The one keeps its memory, the other one can not.
    lab.tt(&["env", "stop", "mixed"]).good();
    lab.tt(&["env", "start", "mixed"]).good();
    assert_eq!(lab.sh("mixed/x", "cat /root/kept"), "kept");
    assert_ne!(lab.boot_id("mixed/x"), boot);
    reach_each_other(&lab);

    // Its process has no name of ours.
    let of_others = lab.machines().into_iter().find(|(_, line)| !line.contains(" -name tt-"));
    let pid = of_others.and_then(|(pid, _)| rustix::process::Pid::from_raw(pid));
    let boot = lab.boot_id("mixed/x");
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    testkit::eventually("another boot", CONVERGES, || {
        let now = lab.exec("mixed/x", &["cat", "/proc/sys/kernel/random/boot_id"]);
        (now.code != Some(0) || now.out.trim() == boot).then_some(now.err)
    });
    lab.tt(&["env", "destroy", "mixed"]).good();
    lab.assert_empty();
    lab.finish();
}

fn reach_each_other(lab: &Lab) {
    lab.sh("mixed/a", "ping -c 1 -W 5 x");
    lab.sh("mixed/x", "ping -c 1 -W 5 a && echo kept >/root/kept && sync");
    lab.serve_echo("mixed/x", 7);
    assert!(lab.client.reaches_tcp((HOST, lab.port("mixed", "x", "7"))), "from {CLIENT}");
}
