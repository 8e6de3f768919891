//! Who may open connections to where, changed while connections are open.

use std::net::UdpSocket;
use std::time::Duration;
use testkit::{CLIENT, Echo, HOST, Lab, NAME_SERVER, within};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;
/// A connection that was held up is tried again with growing pauses.
const GOES_ON: Duration = Duration::from_secs(30);
const ANSWERS: &str = "/run/answers";

#[test]
fn policies_hold_for_open_connections_and_through_every_rest() {
    let name = "policies_hold_for_open_connections_and_through_every_rest";
    let Some(mut lab) = Lab::new(name) else { return };
    let outside = Echo::new(&lab.client, OUTSIDE);
    lab.tt(&["env", "create", "shop", "--vm", "a=micro,port=7", "--vm", "b=micro"]).good();
    lab.serve_echo("shop/a", 7);
    lab.bring_helper("shop/b");
    lab.leave_helper("shop/a", &format!("hold {CLIENT} {OUTSIDE} {ANSWERS}"));
    goes_on(&lab);
    one_member_is_denied(&lab);
    an_address_is_blocked(&lab);
    an_allow_list_and_rates_hold(&lab);
    names_in_an_allow_list_hold(&lab);
    flushed_rules_come_back(&lab);
    a_whole_env_is_denied(&mut lab);
    drop(outside);
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.finish();
}

/// How many answers the open connection of `a` brought.
#[track_caller]
fn answers(lab: &Lab) -> u64 {
    lab.sh("shop/a", &format!("wc -c <{ANSWERS}")).parse().unwrap()
}

#[track_caller]
fn goes_on(lab: &Lab) {
    let before = within(GOES_ON, || lab.exec("shop/a", &["test", "-s", ANSWERS]).code == Some(0))
        .then(|| answers(lab));
    let before = before.unwrap_or_default();
    assert!(within(GOES_ON, || answers(lab) > before), "the open connection stands still");
}

#[track_caller]
fn stands_still(lab: &Lab) {
    let before = answers(lab);
    std::thread::sleep(Duration::from_secs(1));
    // What was on its way when it was forbidden may have come.
    let after = answers(lab);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(answers(lab), after, "the open connection goes on (from {before})");
}

/// Whether a member can open a new connection.
fn opens(lab: &Lab, vm: &str) -> bool {
    let line = format!("helper tcp {CLIENT} {OUTSIDE}");
    lab.exec(vm, &["sh", "-c", &line]).code == Some(0)
}

/// Replies to the outside pass.
#[track_caller]
fn is_served(lab: &Lab) {
    assert!(lab.client.reaches_tcp((HOST, lab.port("shop", "a", "7"))), "replies are held up");
}

fn one_member_is_denied(lab: &Lab) {
    lab.tt(&["vm", "update", "shop/a", "--deny-outgoing"]).good();
    stands_still(lab);
    assert!(!opens(lab, "shop/a") && opens(lab, "shop/b"));
    is_served(lab);
    lab.sh("shop/a", "ping -c 1 -W 5 b");
    lab.tt(&["vm", "update", "shop/a", "--allow-outgoing"]).good();
    assert!(opens(lab, "shop/a"));
    goes_on(lab);
}

fn an_address_is_blocked(lab: &Lab) {
    let blocked = CLIENT.to_string();
    lab.tt(&["vm", "update", "shop/a", "--block", &blocked]).good();
    stands_still(lab);
    assert!(!opens(lab, "shop/a") && opens(lab, "shop/b"));
    // Another list takes the place of the first.
    lab.tt(&["vm", "update", "shop/a", "--block", "192.0.2.77"]).good();
    assert!(opens(lab, "shop/a"));
    goes_on(lab);
    lab.tt(&["vm", "update", "shop/a", "--block", &blocked, "--block", "192.0.2.77"]).good();
    assert!(!opens(lab, "shop/a"));
    lab.tt(&["vm", "update", "shop/a", "--no-block"]).good();
    goes_on(lab);
    let list = lab.vm("shop", "a")["state"]["net_blacklist"].clone();
    assert_eq!(list.as_array().map(Vec::len), Some(0), "{list}");
}

fn an_allow_list_and_rates_hold(lab: &Lab) {
    lab.tt(&["vm", "update", "shop/a", "--allow", "198.51.100.0/24"]).good();
    assert!(!opens(lab, "shop/a") && opens(lab, "shop/b"));
    is_served(lab);
    let to = format!("{CLIENT}/32");
    lab.tt(&["vm", "update", "shop/a", "--allow", &to, "--up", "1000", "--down", "2000"]).good();
    goes_on(lab);
    assert!(opens(lab, "shop/a"));
    let shown = lab.tt(&["vm", "show", "shop/a"]).good();
    for part in [&CLIENT.to_string(), "1000 kbit/s", "2000 kbit/s", "forbidden"] {
        assert!(shown.contains(part), "no {part} in: {shown}");
    }
    let traffic = lab.json(&["vm", "show", "shop/a"])["traffic"].clone();
    let count = |name: &str| traffic[name].as_u64().unwrap();
    assert!(count("blocked_packets") > 0 && count("sent_bytes") > 0, "{traffic}");
    lab.tt(&["vm", "update", "shop/a", "--no-allow", "--up", "0", "--down", "0"]).good();
    goes_on(lab);
}

/// Answers every question for an address with the client's, until the message `end`.
fn serve_names(socket: &UdpSocket) {
    let mut message = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut message).unwrap();
        if &message[..length] == b"end" {
            return;
        }
        // Behind the header stands the question: a name, two bytes of its kind, two of its class.
        let end = 12 + message[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let is_v4 = message[end - 4..end - 2] == [0, 1];
        let head = [&message[..2], &[0x81, 0x80, 0, 1, 0, is_v4.into(), 0, 0, 0, 0]].concat();
        let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4], &CLIENT.octets()[..]].concat();
        let record = if is_v4 { record } else { Vec::new() };
        let answer = [&head[..], &message[12..end], &record].concat();
        socket.send_to(&answer, from).unwrap();
    }
}

fn names_in_an_allow_list_hold(lab: &Lab) {
    let socket = lab.host.run(|| UdpSocket::bind(NAME_SERVER)).unwrap();
    let server = std::thread::spawn(move || serve_names(&socket));
    let resolves = |name: &str| lab.exec("shop/a", &["nslookup", name]).code == Some(0);
    let (one, below) = ("www.example.org", "*.shop.example:7000");
    lab.tt(&["vm", "update", "shop/a", "--allow", one, "--allow", below]).good();
    let shown = lab.tt(&["vm", "show", "shop/a"]).good();
    assert!(shown.contains(one) && shown.contains(below), "{shown}");
    assert!(!opens(lab, "shop/a") && opens(lab, "shop/b"));
    assert!(!resolves("example.org") && !resolves("secret.example.net") && resolves("b"));
    assert!(!opens(lab, "shop/a"));
    assert!(resolves("a.shop.example"));
    assert!(opens(lab, "shop/a"));
    // The rule under which it is open goes, and with it the way.
    lab.tt(&["vm", "update", "shop/a", "--allow", one]).good();
    assert!(!opens(lab, "shop/a") && resolves(one) && opens(lab, "shop/a"));
    lab.tt(&["vm", "update", "shop/a", "--no-allow"]).good();
    goes_on(lab);
    let end = lab.host.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    end.send_to(b"end", NAME_SERVER).unwrap();
    server.join().unwrap();
}

/// An administrator flushes all rules of the host.
fn flushed_rules_come_back(lab: &Lab) {
    lab.tt(&["vm", "update", "shop/a", "--block", "198.51.100.7"]).good();
    let flush = || std::process::Command::new("nft").args(["flush", "ruleset"]).status();
    assert!(lab.host.run(flush).unwrap().success());
    let port = (HOST, lab.port("shop", "a", "7"));
    assert!(within(GOES_ON, || lab.client.reaches_tcp(port)), "rules stay away");
    goes_on(lab);
    assert!(opens(lab, "shop/a") && opens(lab, "shop/b"));
    lab.tt(&["vm", "update", "shop/a", "--no-block"]).good();
    lab.tt(&["verify"]).good();
}

fn a_whole_env_is_denied(lab: &mut Lab) {
    lab.tt(&["env", "deny-outgoing", "shop"]).good();
    stands_still(lab);
    is_served(lab);
    lab.tt(&["env", "stop", "shop", "--mode", "suspend"]).good();
    lab.tt(&["env", "start", "shop"]).good();
    stands_still(lab);
    assert!(!opens(lab, "shop/b"), "suspended and started");
    is_served(lab);
    lab.restart();
    lab.reaches_phase("shop", "ready", Duration::from_secs(30));
    assert!(!opens(lab, "shop/b"), "after another daemon took over");
    lab.tt(&["vm", "stop", "shop/b", "--mode", "kill"]).good();
    lab.tt(&["vm", "start", "shop/b"]).good();
    assert!(!opens(lab, "shop/b"), "booted again");
    lab.tt(&["vm", "add", "shop", "c=micro"]).good();
    lab.bring_helper("shop/c");
    assert!(!opens(lab, "shop/c"), "a later member");
    lab.tt(&["env", "allow-outgoing", "shop"]).good();
    assert!(opens(lab, "shop/b") && opens(lab, "shop/c"));
    lab.assert_clean();
}
