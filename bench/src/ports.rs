//! Many published ports: adding one beside them, and connecting through one of them.

use crate::plane::{Plane, member};
use crate::table::{Row, median, millis};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use testkit::{Must, Space};
use tt_model::Vm;
use tt_network::Network;

const ROUNDS: usize = 101;
/// Other ports that are there.
const OTHERS: [u16; 3] = [0, 1_000, 60_000];
/// As many as a request may ask for.
const PORTS_PER_VM: usize = tt_model::check::PORTS_PER_VM_MAX;
/// Number of the Env that is measured, beside the crowd.
const OWN: u16 = 1000;

/// The time of `set_net` for a member that gains or loses a port, over the same without others.
pub fn one_among_many() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut alone = None;
    for others in OTHERS {
        let (change, look) = measure(others);
        let base = *alone.get_or_insert(change);
        let what = format!("add or remove one port beside {others}, over beside 0");
        rows.push(Row::ratio(what, change, base, None));
        let port_alone = millis(change.saturating_sub(look));
        rows.push(Row::figure("  of it, more than a look that changes nothing", port_alone));
    }
    rows
}

/// Members with so many ports, each in an Env of its own: a look at an Env reads its links, and is not what is measured.
fn crowd(ports: u16) -> Vec<Vm> {
    let ports: Vec<u16> = (1..=ports).collect();
    (0..).zip(ports.chunks(PORTS_PER_VM)).map(|(env, ports)| member(env, 0, ports)).collect()
}

/// Medians of a change of one port, and of a pass that finds nothing to change.
fn measure(others: u16) -> (Duration, Duration) {
    let plane = Plane::new(&Space::new().must("a namespace"), others);
    let crowd = crowd(others);
    plane.set(&crowd);
    let with = member(OWN, 0, &[60_001]);
    let without = member(OWN, 0, &[]);
    plane.set(std::slice::from_ref(&without));
    let (mut changes, mut looks) = (Vec::new(), Vec::new());
    plane.host.run(|| {
        let timed = |vm: &Vm| {
            let begin = Instant::now();
            plane.network().set_net(vm).must("set");
            begin.elapsed()
        };
        for _ in 0..ROUNDS {
            for vm in [&with, &without] {
                changes.push(timed(vm));
                looks.push(timed(vm));
            }
        }
    });
    plane.unset(&crowd);
    plane.unset(&[without]);
    plane.close();
    (median(changes), median(looks))
}

/// Published ports beside the one that is used.
const MAPPED: [u16; 3] = [10, 1_000, 10_000];
/// Interleaved rounds of connections, and how many each has.
const CONNECT_ROUNDS: usize = 40;
const CONNECTIONS: usize = 10;
/// How much longer a connection may take among many ports: the noise between hosts that are alike.
const CONNECT_RATIO_MAX: f64 = 1.15;
/// The port that is used.
const USED: u16 = 61_000;

/// A host with so many ports, a client of it, and a server behind one of them.
struct Served {
    plane: Plane,
    client: Space,
    vms: Vec<Vm>,
    server: TcpListener,
}

impl Served {
    fn new(mapped: u16) -> Self {
        let (host, client) = testkit::spaces();
        let plane = Plane::new(&host, mapped);
        let mut vms = crowd(mapped - 1);
        vms.push(member(OWN, 0, &[USED]));
        plane.set(&vms);
        let stand_in = plane.stand_in(&vms[vms.len() - 1]);
        let any = (Ipv4Addr::UNSPECIFIED, USED);
        let server = stand_in.run(|| TcpListener::bind(any)).must("listen");
        server.set_nonblocking(true).must("a server that does not wait");
        Self { plane, client, vms, server }
    }

    /// Connects from outside, so often. Each connection waits in the server's queue until all of a round are over.
    fn connect(&self) -> Vec<Duration> {
        self.client.run(|| {
            let timed = |_| {
                let begin = Instant::now();
                let stream = TcpStream::connect((testkit::HOST, USED)).must("connect");
                (begin.elapsed(), stream)
            };
            let (times, streams): (Vec<_>, Vec<_>) = (0..CONNECTIONS).map(timed).unzip();
            drop(streams);
            while self.server.accept().is_ok() {}
            times
        })
    }
}

/// Connecting through one published port beside many, over the same beside a few.
pub fn connections_among_many() -> Vec<Row> {
    let hosts = MAPPED.map(Served::new);
    let mut times = MAPPED.map(|_| Vec::new());
    for _ in 0..CONNECT_ROUNDS {
        for (host, times) in hosts.iter().zip(&mut times) {
            times.extend(host.connect());
        }
    }
    for Served { plane, vms, .. } in hosts {
        plane.unset(&vms);
        plane.close();
    }
    let medians = times.map(median);
    let row = |(mapped, time): (u16, Duration)| {
        let what = format!("connect through one of {mapped} ports, over one of {}", MAPPED[0]);
        Row::ratio(what, time, medians[0], (mapped > MAPPED[0]).then_some(CONNECT_RATIO_MAX))
    };
    MAPPED.into_iter().zip(medians).map(row).collect()
}
