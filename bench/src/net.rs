//! An Env's network against Docker's: setting it up, and how much passes through it.

use crate::docker::{self, Docker};
use crate::plane::{Plane, member};
use crate::table::{Row, median, millis};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::{CLIENT, Must, Space, run, within};
use tt_model::Vm;
use tt_network::Network;

/// Rounds of setting up, all of which stay until the end: what the kernel does about one that goes would hold up the next.
/// Docker has addresses for 30.
const SETUPS: u16 = 15;
/// Members of each.
const MEMBERS: u16 = 3;
/// How much of Docker's time may be taken.
const SETUP_RATIO_MAX: f64 = 0.5;

/// The network of an Env of three members, over a network of Docker's and three attachments to it.
pub fn set_up() -> Vec<Row> {
    let (host, other) = (Space::new().must("a namespace"), Space::new().must("a namespace"));
    let plane = Plane::new(&host, 1);
    let vms = |round| (0..MEMBERS).map(|index| member(round, index, &[])).collect::<Vec<_>>();
    let measured = docker::with(&other, |docker| {
        let containers = [0; MEMBERS as usize].map(|_| docker.container("bridge"));
        let (mut by_tt, mut by_docker) = (Vec::new(), Vec::new());
        for round in 0..SETUPS {
            by_tt.push(set_up_one(&plane, &vms(round)));
            by_docker.push(attach(docker, round, &containers));
        }
        (median(by_tt), median(by_docker))
    });
    for round in 0..SETUPS {
        plane.unset(&vms(round));
    }
    plane.close();
    match measured {
        Err(reason) => {
            testkit::skip("bench net", &reason);
            Vec::new()
        }
        Ok((by_tt, by_docker)) => {
            let what = "an Env's network with 3 members over Docker's network and 3 attachments";
            let aim = "  of it, at p50 (aim on a quiet machine: 15 ms)";
            vec![
                Row::ratio(what, by_tt, by_docker, Some(SETUP_RATIO_MAX)),
                Row::figure(aim, millis(by_tt)),
            ]
        }
    }
}

fn set_up_one(plane: &Plane, vms: &[Vm]) -> Duration {
    plane.host.run(|| {
        let begin = Instant::now();
        vms.iter().for_each(|vm| plane.network().set_net(vm).must("set"));
        begin.elapsed()
    })
}

fn attach(docker: &Docker, round: u16, containers: &[String]) -> Duration {
    let name = format!("net{round}");
    let begin = Instant::now();
    docker.call("POST", "/networks/create", &json!({ "Name": name, "Driver": "bridge" }));
    for id in containers {
        docker.call("POST", &format!("/networks/{name}/connect"), &json!({ "Container": id }));
    }
    begin.elapsed()
}

/// Interleaved rounds, of which the fastest counts: what else runs on the machine only makes one slower.
const FLOWS: usize = 20;
/// What is sent in each, in bytes.
const FLOW_BYTES: &str = "600M";
/// iperf3's own port.
const PORT: u16 = 5201;
/// What a time for so much is told for, in bits.
const GIGABYTE_BITS: f64 = 8e9;

/// Between members, both are a bridge with rules.
const MEMBERS_RATIO_MAX: f64 = 1.0;

/// What sends and who takes it.
struct Flow {
    from: Space,
    to: String,
    times: Vec<Duration>,
}

/// A gigabyte from member to member and from member to outside, over the same by Docker's bridge.
pub fn throughput() -> Vec<Row> {
    let ((host, client), (other, far_client)) = (testkit::spaces(), testkit::spaces());
    let plane = Plane::new(&host, 1);
    let vms = [0, 1].map(|index| member(0, index, &[]));
    plane.set(&vms);
    let [near, next] = [0, 1].map(|at| plane.stand_in(&vms[at]));
    let measured = docker::with(&other, |docker| {
        docker.call("POST", "/networks/create", &json!({ "Name": "flow", "Driver": "bridge" }));
        let [one, two] = [0, 1].map(|_| docker.container("flow"));
        let ((one, _), (two, addr)) = (docker.place(&one, "flow"), docker.place(&two, "flow"));
        let _servers = [&next, &client, &two, &far_client].map(Server::new);
        let flow = |from: &Space, to: String| Flow { from: from.clone(), to, times: Vec::new() };
        let outside = CLIENT.to_string();
        let mut flows = [
            flow(&near, vms[1].resource.ip_addr.to_string()),
            flow(&one, addr),
            flow(&near, outside.clone()),
            flow(&one, outside),
        ];
        for _ in 0..FLOWS {
            flows.iter_mut().for_each(|flow| flow.times.push(gigabyte(&flow.from, &flow.to)));
        }
        flows.map(|flow| flow.times.into_iter().min().unwrap_or_default())
    });
    plane.unset(&vms);
    plane.close();
    match measured {
        Err(reason) => {
            testkit::skip("bench flow", &reason);
            Vec::new()
        }
        Ok([members, dockers, out, dockers_out]) => {
            let near = "a gigabyte to another member, over one by Docker's bridge";
            let far = "a gigabyte to outside, over one by Docker's bridge (aim: 1.0)";
            vec![
                Row::ratio(near, members, dockers, Some(MEMBERS_RATIO_MAX)),
                Row::ratio(far, out, dockers_out, None),
            ]
        }
    }
}

/// Where `iperf3` listens, until it is dropped.
struct Server(Child);

impl Server {
    fn new(space: &Space) -> Self {
        let mut command = Command::new("iperf3");
        command.args(["--server"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(space.run(|| command.spawn()).must("start iperf3; install it"));
        let listens = within(Duration::from_secs(10), || {
            let any = (Ipv4Addr::UNSPECIFIED, PORT);
            // Somebody has its port.
            space.run(|| std::net::TcpListener::bind(any)).is_err()
        });
        assert!(listens, "iperf3 does not listen");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a gigabyte takes, by the rate of a part of it.
fn gigabyte(from: &Space, to: &str) -> Duration {
    let mut command = Command::new("iperf3");
    command.args(["--client", to, "--bytes", FLOW_BYTES, "--json"]);
    let text = from.run(|| run(&mut command, b"")).good();
    let report: Value = serde_json::from_str(&text).must("a report");
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().must("a rate");
    Duration::from_secs_f64(GIGABYTE_BITS / rate)
}
