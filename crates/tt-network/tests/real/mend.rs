//! What an administrator, or another program, does to the host's network while Envs live.

use crate::lab::{CLIENT, Echo, HOST, Lab, Space, echoes, ip, run};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tt_model::EnvId;
use tt_network::Network;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Of somebody else: nothing of it may change.
const OTHERS: [&str; 3] = [
    "add table inet others",
    "add chain inet others input { type filter hook input priority 0; policy accept; }",
    "add rule inet others input tcp dport 1 counter packets 7 bytes 77 drop",
];

fn others() -> String {
    run("nft", "list table inet others")
}

fn nft(line: &str) {
    assert_eq!(run("nft", line), "", "{line}");
}

#[test]
fn flushed_rules_are_put_back_and_open_connections_go_on() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let mut guest = lab.guest(EnvId(1), 0);
        let mut denied = lab.guest(EnvId(2), 0);
        denied.vm.deny_outgoing = true;
        lab.net.set_net(&denied.vm).unwrap();
        let (_inner, _outer) = (Echo::new(&guest.space, 80), Echo::new(&lab.client, 7));
        let mut inbound = lab.client.open((HOST, guest.tcp()));
        let mut outbound = guest.space.open((CLIENT, 7));
        assert!(echoes(&mut inbound) && echoes(&mut outbound));
        assert!(!lab.net.mend().unwrap(), "all is whole");
        let table = format!("inet {}", lab.layout.nft_table());
        for line in [
            "flush ruleset".to_owned(),
            format!("flush table {table}"),
            format!("delete table {table}"),
        ] {
            nft(&line);
            assert!(!lab.client.reaches((HOST, guest.tcp())), "{line}");
            assert!(lab.net.mend().unwrap(), "{line}");
            for vm in [&guest.vm, &denied.vm] {
                lab.net.set_net(vm).unwrap();
            }
            assert!(!lab.net.mend().unwrap(), "{line}: once");
            assert!(lab.client.reaches((HOST, guest.tcp())), "{line}");
            assert!(guest.space.reaches((CLIENT, 7)), "{line}");
            assert!(!denied.space.reaches((CLIENT, 7)), "{line}: policies hold");
            assert!(echoes(&mut inbound) && echoes(&mut outbound), "{line}");
        }
        // What was known of ports is what is there.
        nft("flush ruleset");
        assert!(lab.net.mend().unwrap());
        guest.vm.resource.port_map.clear();
        lab.net.set_net(&guest.vm).unwrap();
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.unset_net(&denied.vm).unwrap();
        lab.net.close().unwrap();
    });
}

#[test]
fn switches_routes_and_other_firewalls_are_seen_to_and_left_alone() {
    Lab::run(|lab| {
        OTHERS.iter().for_each(|line| nft(line));
        let before = others();
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let (_inner, _outer) = (Echo::new(&guest.space, 80), Echo::new(&lab.client, 7));
        let reached =
            || lab.client.reaches((HOST, guest.tcp())) && guest.space.reaches((CLIENT, 7));
        assert!(reached());
        std::fs::write(FORWARD, "0").unwrap();
        assert!(!reached());
        assert!(!lab.net.mend().unwrap());
        assert!(reached(), "the host forwards again");
        // As Docker does when it starts.
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        assert!(!reached());
        assert!(!lab.net.mend().unwrap());
        assert!(reached(), "let through");
        ip("route del blackhole 10.0.0.0/16 metric 95");
        lab.net.mend().unwrap();
        assert!(run("ip", "-o route").contains("blackhole 10.0.0.0/16"));
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.close().unwrap();
        let chain = run("nft", "list chain ip filter FORWARD");
        assert!(!chain.contains("accept"), "{chain}");
        assert_eq!(others(), before);
        assert_eq!(std::fs::read_to_string(FORWARD).unwrap().trim(), "0");
    });
}

#[test]
fn what_others_keep_on_the_host_is_out_of_reach() {
    Lab::run(|lab| {
        let service = |link: &str, net: u8| {
            let space = Space::new();
            ip(&format!("link add {link} type bridge"));
            ip(&format!("addr add 172.{net}.0.1/16 dev {link}"));
            ip(&format!("link set {link} up"));
            ip(&format!("link add v{net} type veth peer name eth0 netns {}", space.path()));
            ip(&format!("link set v{net} master {link} up"));
            space.ip(&format!("addr add 172.{net}.0.2/16 dev eth0"));
            space.ip("link set eth0 up");
            space.ip(&format!("route add default via 172.{net}.0.1"));
            space
        };
        let early = service("docker0", 17);
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let late = service("br-0123456789ab", 18);
        let plain = service("br-lan", 19);
        let _services = [&early, &late, &plain].map(|space| Echo::new(space, 5432));
        lab.net.mend().unwrap();
        let reaches = |net: u8| guest.space.reaches(([172, net, 0, 2], 5432));
        assert_eq!([17, 18, 19].map(reaches), [false, false, true]);
        assert!(lab.host.reaches(([172, 17, 0, 2], 5432)), "the host does");
        ip("link del br-0123456789ab");
        lab.net.mend().unwrap();
    });
}

#[test]
fn who_changes_rules_is_noticed_and_who_changes_elements_is_not() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let wake = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        lab.net.on_change(Arc::new(wake)).unwrap();
        let is_told = |line: &str| {
            let before = told.load(Ordering::SeqCst);
            nft(line);
            let until = Instant::now() + Duration::from_secs(5);
            while told.load(Ordering::SeqCst) == before && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            told.load(Ordering::SeqCst) > before
        };
        let guest = lab.guest(EnvId(1), 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(told.load(Ordering::SeqCst), 0, "a member's own elements");
        assert!(is_told("flush ruleset"));
        lab.net.mend().unwrap();
        lab.net.set_net(&guest.vm).unwrap();
        nft("add table ip filter");
        assert!(is_told("add chain ip filter FORWARD { type filter hook forward priority 0; }"));
        assert!(is_told("chain ip filter FORWARD { policy drop; }"), "a policy");
        assert!(is_told("delete table ip filter"));
        lab.net.unset_net(&guest.vm).unwrap();
        lab.net.close().unwrap();
    });
}
