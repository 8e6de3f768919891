//! Machines that end without being asked, by whatever hand.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;
use testkit::Lab;

const CONVERGES: Duration = Duration::from_secs(90);

#[test]
fn machines_that_end_by_themselves_are_noticed() {
    let Some(mut lab) = Lab::new("machines_that_end_by_themselves_are_noticed") else { return };
    lab.tt(&["env", "create", "x", "--vm", "a=micro"]).good();
    a_killed_machine_is_started_again(&lab);
    a_machine_that_was_killed_without_a_daemon_too(&mut lab);
    a_power_off_is_a_stop(&lab);
    a_reboot_is_a_reboot(&lab);
    lab.tt(&["env", "destroy", "x"]).good();
    lab.finish();
}

fn boot_id(lab: &Lab) -> String {
    lab.sh("x/a", "cat /proc/sys/kernel/random/boot_id")
}

/// `tt env events`, written to a file until dropped.
struct Events {
    child: Child,
    path: PathBuf,
}

impl Events {
    fn follow(lab: &Lab) -> Self {
        let path = lab.dir().join("events");
        let file = File::create(&path).unwrap();
        let child = lab.command(&["--json", "env", "events", "x"]).stdout(file).spawn().unwrap();
        let events = Self { child, path };
        assert!(testkit::within(Duration::from_secs(10), || !events.seen().is_empty()));
        events
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kill_machine(lab: &Lab) {
    let machines = lab.machines();
    assert_eq!(machines.len(), 1, "{machines:?}");
    let pid = rustix::process::Pid::from_raw(machines[0].0).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn a_killed_machine_is_started_again(lab: &Lab) {
    let before = boot_id(lab);
    let events = Events::follow(lab);
    kill_machine(lab);
    // It is told for as long as it lasts, which is not long: who follows the Env sees it.
    let told = || events.seen().contains("ERR_TT_ENGINE_EXITED");
    assert!(testkit::within(Duration::from_secs(20), told), "{}", events.seen());
    lab.reaches_phase("x", "ready", CONVERGES);
    assert_ne!(boot_id(lab), before);
    lab.assert_clean();
}

fn a_machine_that_was_killed_without_a_daemon_too(lab: &mut Lab) {
    let before = boot_id(lab);
    lab.kill9();
    kill_machine(lab);
    lab.restart();
    let is_new = || {
        let now = lab.exec("x/a", &["cat", "/proc/sys/kernel/random/boot_id"]);
        now.code == Some(0) && now.out.trim() != before
    };
    assert!(testkit::within(CONVERGES, is_new), "{}", lab.vm("x", "a"));
    lab.reaches_phase("x", "ready", CONVERGES);
    lab.assert_clean();
}

fn a_reboot_is_a_reboot(lab: &Lab) {
    let before = boot_id(lab);
    // The guest may go before it says how the program ended.
    lab.exec("x/a", &["reboot"]);
    let is_new = || {
        let now = lab.exec("x/a", &["cat", "/proc/sys/kernel/random/boot_id"]);
        now.code == Some(0) && now.out.trim() != before
    };
    assert!(testkit::within(CONVERGES, is_new), "{}", lab.vm("x", "a"));
    lab.reaches_phase("x", "ready", CONVERGES);
    assert_eq!(lab.sh("x/a", "cat /root/kept; hostname"), "kept\na");
    lab.assert_clean();
}

fn a_power_off_is_a_stop(lab: &Lab) {
    lab.sh("x/a", "echo kept >/root/kept && sync");
    lab.exec("x/a", &["poweroff"]);
    let is_stopped = || lab.vm("x", "a")["status"]["phase"] == "stopped";
    assert!(testkit::within(CONVERGES, is_stopped), "{}", lab.vm("x", "a"));
    assert_eq!(lab.vm("x", "a")["goal"], "stopped");
    lab.reaches_phase("x", "stopped", CONVERGES);
    assert_eq!(lab.machines(), []);
    lab.assert_clean();
    lab.tt(&["env", "start", "x"]).good();
    assert_eq!(lab.sh("x/a", "cat /root/kept"), "kept");
}
