//! The list of `testkit::hostile`, played by a stand-in: nothing of it arrives anywhere, what is said to stop it does and
//! counts it, and floods disturb nobody else. `tests/tests/hostile.rs` lets a real guest play it.

use crate::lab::{CLIENT, Echo, GATEWAY, Guest, HOST, Lab, Space, ip, run};
use crate::names::{ask, data};
use crate::six::{CLIENT_SIX, HOST_SIX, lead_out};
use hickory_proto::rr::RecordType;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use testkit::hostile::{METADATA, Scene, Station, Stop, cases, floods, holds};
use tt_model::EnvId;
use tt_network::{EnvNames, Network};

/// A second address of the host.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where the host's own services listen.
const SERVICE: u16 = 2222;
const HONEST: &str = "<honest>";

fn scene(me: &Guest, victim: &Guest, other: &Guest) -> Scene {
    Scene {
        me: Station::at(me.addr()),
        victim: Station::at(victim.addr()),
        gateway: Station::at(GATEWAY),
        other: other.addr(),
        other_tcp: other.tcp(),
        other_udp: other.udp(),
        host: HOST,
        second: SECOND,
        tunnel_end: None,
        outside: CLIENT,
        service: SERVICE,
        host_six: HOST_SIX,
        outside_six: CLIENT_SIX,
    }
}

/// What each of them has stopped so far, as the sets of rules count it.
struct Counters {
    env: Space,
    table: String,
}

impl Counters {
    fn read(&self) -> BTreeMap<Stop, u64> {
        let inside = self.env.run(|| run("nft", "list sets"));
        let host = run("nft", &format!("list table inet {}", self.table));
        let of = |text: &str, set: &str| packets(text, set);
        BTreeMap::from([
            (Stop::Port, of(&inside, "blocked")),
            (Stop::Limit, of(&inside, "slowed")),
            (Stop::Edge, of(&inside, "refused") + of(&inside, "refused6")),
            (Stop::Host, of(&host, "guests") + of(&host, "guests6")),
        ])
    }

    /// Those that have stopped more than `before` says.
    fn grown(&self, before: &BTreeMap<Stop, u64>) -> Vec<Stop> {
        let now = self.read();
        now.into_iter()
            .filter(|(stop, count)| *count > before[stop])
            .map(|(stop, _)| stop)
            .collect()
    }
}

/// All packets that the elements of a set have counted, of what `nft list` says.
fn packets(text: &str, set: &str) -> u64 {
    let (_, text) = text.split_once(&format!("set {set} {{")).unwrap();
    let text = text.split("\tset ").next().unwrap();
    let counts = text.split("packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn nothing_hostile_arrives_and_what_is_said_to_stop_it_counts_it() {
    Lab::run(|lab| {
        lead_out(lab);
        lab.net.init().unwrap();
        ip(&format!("addr add {SECOND}/32 dev lo"));
        lab.client.ip(&format!("addr add {METADATA}/32 dev eth0"));
        ip(&format!("route add {METADATA} dev up0"));
        let [me, victim] = [0, 1].map(|index| lab.guest(EnvId(1), index));
        let other = lab.guest(EnvId(2), 0);
        let service = Echo::new(&lab.host, SERVICE);
        let any_six = |port| (Ipv6Addr::UNSPECIFIED, port).into();
        let inner = [80, 53].map(|port| Echo::at(&other.space, any_six(port)));
        let out = me.space.frames();
        let seen = [
            ("the victim", victim.space.frames()),
            ("another env", other.space.frames()),
            ("the outside", lab.client.frames()),
        ];
        let scene = scene(&me, &victim, &other);
        let honest = |mark: &str| {
            out.send(&scene.honest(mark));
            assert!(seen[0].1.sees(mark.as_bytes()), "the way as such is open");
            out.send(&scene.beyond(CLIENT, 9, mark));
            assert!(seen[2].1.sees(mark.as_bytes()), "the way as such is open");
            let mark = format!("{mark} by IPv6");
            out.send(&scene.honest_six(&mark));
            assert!(seen[0].1.sees(mark.as_bytes()), "the way as such is open");
            out.send(&scene.honest_beyond_six(&mark));
            assert!(seen[2].1.sees(mark.as_bytes()), "the way as such is open");
        };
        honest(HONEST);
        let counters = Counters { env: lab.env(EnvId(1)), table: lab.layout.nft_table() };
        let cases = cases(&scene);
        assert!(cases.len() >= 130, "{}", cases.len());
        let (mut wrong, mut arrived) = (Vec::new(), Vec::new());
        let mut look = |mark: &str| {
            for (who, frames) in &seen {
                let frames = frames.drain();
                if frames.iter().any(|frame| holds(frame, b"<hostile")) {
                    arrived.push(format!("at {who}, by {mark}"));
                }
            }
        };
        for case in &cases {
            let before = counters.read();
            case.frames.iter().for_each(|frame| out.send(frame));
            let grown = counters.grown(&before);
            if case.stop.is_counted() && !grown.contains(&case.stop) {
                wrong.push(format!("{} by {grown:?}", case.mark()));
            }
            look(&case.mark());
        }
        std::thread::sleep(crate::lab::NEVER);
        look("one of all");
        assert_eq!(arrived, Vec::<String>::new());
        assert_eq!(wrong, Vec::<String>::new(), "stopped elsewhere");
        assert_eq!(service.last(), None, "a service of the host was reached");
        assert!(inner.iter().all(|echo| echo.last().is_none()), "another env was reached");
        honest("<honest again>");
        assert!(lab.client.reaches((HOST, other.tcp())), "all go on");
    });
}

#[test]
fn floods_disturb_nobody_else() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let [me, victim] = [0, 1].map(|index| lab.guest(EnvId(1), index));
        let other = lab.guest(EnvId(2), 0);
        let members = vec![("web".into(), victim.addr())];
        lab.net
            .set_names(EnvId(1), &EnvNames { env_name: "e".into(), members, ..EnvNames::default() })
            .unwrap();
        let (_inner, _near) = (Echo::new(&other.space, 80), Echo::new(&victim.space, 80));
        let _outer = Echo::new(&lab.client, 7);
        let out = me.space.frames();
        let counters = Counters { env: lab.env(EnvId(1)), table: lab.layout.nft_table() };
        for flood in floods(&scene(&me, &victim, &other)) {
            let (before, what) = (counters.read(), flood.what);
            std::thread::scope(|scope| {
                // A full queue of the stand-in's link is no failure of the flood.
                let flooding =
                    scope.spawn(|| flood.frames.iter().for_each(|frame| out.try_send(frame)));
                assert!(lab.client.reaches((HOST, other.tcp())), "{what}: another env answers");
                assert!(victim.space.reaches((CLIENT, 7)), "{what}: a neighbour reaches out");
                let reply = ask(&victim.space, "web.", RecordType::A);
                assert_eq!(reply, data(&victim.addr().to_string()), "{what}: names");
                flooding.join().unwrap();
            });
            let grown = counters.grown(&before);
            assert!(flood.stop.is_none_or(|stop| grown.contains(&stop)), "{what}: {grown:?}");
        }
        assert!(lab.net.traffic(&me.vm).unwrap().slowed_packets > 5000);
        assert!(other.space.reaches((CLIENT, 7)));
    });
}
