//! Who may log in, and how a guest's server is reached whose port nobody published.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use testkit::Lab;

/// More than any buffer on the way.
const BYTES: usize = 2 << 20;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBPb7VJ+7BUBqjXSCGEHKNYvXdD/0zfYWVhGTaFOxAZB me@home";

#[test]
fn keys_reach_guests_and_their_ports_are_reached_through_the_daemon() {
    let name = "keys_reach_guests_and_their_ports_are_reached_through_the_daemon";
    let Some(lab) = Lab::new(name) else { return };
    let file = |name: &str| lab.dir().join(name).to_str().unwrap().to_owned();
    let (key, wrong, user_data) = (file("key.pub"), file("key"), file("user-data"));
    fs::write(&key, format!("# mine\n{KEY}\n")).unwrap();
    fs::write(&wrong, "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    fs::write(&user_data, "#cloud-config\n{}\n").unwrap();
    let create = ["env", "create", "desk", "--vm", "a=micro"];
    let refused = lab.tt(&[&create[..], &["--ssh-key", &wrong]].concat());
    refused.fails(2, "it is a private key");
    assert!(!refused.err.contains("c2VjcmV0"), "{}", refused.err);
    // The agent is there, cloud-init is not.
    lab.tt(&[&create[..], &["--user-data", &user_data]].concat()).fails(1, "cloud-init");
    assert!(lab.env("desk").is_none());

    lab.tt(&[&create[..], &["--ssh-key", &key]].concat()).good();
    assert_eq!(lab.sh("desk/a", "cat /root/.ssh/authorized_keys"), KEY);
    assert_eq!(lab.sh("desk/a", "stat -c %a /root/.ssh /root/.ssh/authorized_keys"), "700\n600");
    lab.sh("desk/a", "echo own >> /root/.ssh/authorized_keys; sync");
    // A server that listens a while after the client has come, and echoes.
    lab.sh("desk/a", "(sleep 2; nc -l -p 22 -e /bin/cat) >/dev/null 2>&1 </dev/null &");
    bytes_go_both_ways(&lab);

    lab.tt(&["env", "stop", "desk", "--mode", "shutdown"]).good();
    lab.tt(&["env", "start", "desk"]).good();
    assert_eq!(lab.sh("desk/a", "cat /root/.ssh/authorized_keys"), format!("{KEY}\nown"));
    lab.tt(&["env", "destroy", "desk"]).good();
    lab.finish();
}

fn bytes_go_both_ways(lab: &Lab) {
    let mut command = lab.command(&["proxy", "desk/a", "22"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent: Vec<u8> = (0..BYTES).map(|n| (n * 7 / 5) as u8).collect();
    let mut back = vec![0; sent.len()];
    thread::scope(|scope| {
        scope.spawn(|| to.write_all(&sent).unwrap());
        from.read_exact(&mut back).unwrap();
    });
    assert!(back == sent, "what came back is not what went");
    drop(to);
    assert!(child.wait().unwrap().success());
}
