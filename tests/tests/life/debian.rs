//! A full Debian beside a micro guest: who it is, who reaches whom, its disk, its memory.

use std::process::{Command, Stdio};
use testkit::{Lab, Setup};

#[test]
fn a_whole_debian_lives_beside_a_micro_guest() {
    let name = "a_whole_debian_lives_beside_a_micro_guest";
    let Some(lab) = Setup::new(name).start_with_debian() else { return };
    lab.tt(&["template", "build", "debian-12"]).good();
    let key = lab.dir().join("key");
    let mut keygen = Command::new("ssh-keygen");
    let made = keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let (key, public) = (key.to_str().unwrap(), key.with_extension("pub"));
    let deb = "deb=debian-12,mem=384M,disk=1G";
    let create = ["env", "create", "mix", "--vm", "web=micro", "--vm", deb, "--ssh-key"];
    lab.tt(&[&create[..], &[public.to_str().unwrap()]].concat()).good();

    assert_eq!(lab.sh("mix/deb", "systemctl is-system-running --wait"), "running");
    let id = lab.json(&["vm", "show", "mix/deb"])["machine_id"].as_str().unwrap().to_owned();
    assert_eq!(lab.sh("mix/deb", "hostname; cat /etc/machine-id"), format!("deb\n{id}"));
    assert_eq!(lab.sh("mix/deb", "cat /proc/1/comm"), "systemd");
    let mb: u64 =
        lab.sh("mix/deb", "df -BM --output=size / | tail -1 | tr -dc 0-9").parse().unwrap();
    assert!((900..=1024).contains(&mb), "{mb} MB");
    lab.sh("mix/deb", "ping -c 1 web");
    lab.sh("mix/web", "ping -c 1 deb");
    assert_eq!(lab.sh("mix/deb", "cloud-init status"), "status: disabled");
    // Modules that the first stage does not load.
    lab.sh("mix/deb", "modprobe overlay");

    assert_eq!(ssh(&lab, key, "id -un; hostname; exit 7"), (Some(7), "root\ndeb\n".to_owned()));
    lab.sh("mix/deb", "sleep 10000 >/dev/null 2>&1 & echo $! > /run/before");
    lab.tt(&["snapshot", "create", "mix", "before"]).good();
    lab.sh("mix/deb", "touch /root/after; kill $(cat /run/before)");
    lab.tt(&["snapshot", "apply", "mix", "before"]).good();
    assert_eq!(lab.sh("mix/deb", "ls /root; cat /proc/$(cat /run/before)/comm"), "sleep");
    // The server is the same one, with the same key.
    assert_eq!(ssh(&lab, key, "cat /etc/machine-id"), (Some(0), format!("{id}\n")));
    lab.tt(&["env", "destroy", "mix"]).good();
    lab.finish();
}

/// The exit code and the output of `line` in the shell of who logs in.
fn ssh(lab: &Lab, key: &str, line: &str) -> (Option<i32>, String) {
    let mut command = lab.command(&["ssh", "--identity", key, "mix/deb", "--", line]);
    // Host keys are remembered there, and no agent has other keys.
    let command = command.env("XDG_STATE_HOME", lab.dir()).env_remove("SSH_AUTH_SOCK");
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}
