//! Who is there, and who watches.

use super::tricks::{INNER, OUTSIDE};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use testkit::hostile::{Frames, METADATA, Scene, Station, holds};
use testkit::{CLIENT, Echo, HOST, Lab, PATIENCE};

/// A second address of the host.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The host's and the client's by IPv6 (RFC 3849).
pub const HOST_SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const CLIENT_SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// Where the host itself listens, on all its addresses.
const SERVICE: u16 = 8022;
/// What is in frames and datagrams that must not arrive.
pub const MARK: &str = "<hostile";

/// `evil/e` attacks; `evil/n` is its neighbour, `good/v` lives in another Env.
pub fn guests(lab: &Lab) -> Scene {
    lab.tt(&["env", "create", "good", "--vm", "v=micro,port=7,port=7/udp"]).good();
    lab.tt(&["env", "create", "evil", "--vm", "e=micro", "--vm", "n=micro,port=7"]).good();
    lab.host.ip(&format!("addr add {SECOND}/32 dev lo"));
    lab.client.ip(&format!("addr add {METADATA}/32 dev eth0"));
    lab.host.ip(&format!("route add {METADATA} dev up0"));
    lab.host.ip(&format!("addr add {HOST_SIX}/64 dev up0 nodad"));
    lab.client.ip(&format!("addr add {CLIENT_SIX}/64 dev eth0 nodad"));
    lab.host.ip(&format!("-6 route add default via {CLIENT_SIX} dev up0"));
    lab.serve_echo("good/v", INNER);
    lab.serve_echo("evil/n", INNER);
    lab.bring_helper("evil/e");
    let gateway = lab.sh("evil/e", "ip route | awk '/^default/ {print $3}'").parse().unwrap();
    let tunnel = lab.host.ip("-4 -o addr show type vxlan");
    let tunnel_end = tunnel.split("inet ").nth(1).and_then(|rest| rest.split('/').next());
    Scene {
        me: Station::at(lab.addr("evil", "e")),
        victim: Station::at(lab.addr("evil", "n")),
        gateway: Station::at(gateway),
        other: lab.addr("good", "v"),
        other_tcp: lab.port("good", "v", "7"),
        other_udp: lab.port("good", "v", "7/udp"),
        host: HOST,
        second: SECOND,
        tunnel_end: Some(tunnel_end.expect("the tunnel has an end").parse().unwrap()),
        outside: CLIENT,
        service: SERVICE,
        host_six: HOST_SIX,
        outside_six: CLIENT_SIX,
    }
}

/// Sees all that comes where nothing of it may.
pub struct Observer<'a> {
    lab: &'a Lab,
    links: [(&'static str, Frames); 3],
    service: Echo,
    outside: Echo,
    metadata: Echo,
}

impl<'a> Observer<'a> {
    pub fn new(lab: &'a Lab) -> Self {
        let links = [
            ("a neighbour", lab.frames("evil", "n")),
            ("another env", lab.frames("good", "v")),
            ("the outside", lab.client.frames("eth0")),
        ];
        let service = Echo::new(&lab.host, SERVICE);
        let (outside, metadata) =
            (Echo::new(&lab.client, OUTSIDE), Echo::new(&lab.client, SERVICE));
        Self { lab, links, service, outside, metadata }
    }

    /// It would see what came to the other Env, too; the honest frames tell that of the rest.
    pub fn watches_another_env(&self) {
        let port = self.lab.port("good", "v", "7/udp");
        assert!(self.lab.client.reaches_udp((HOST, port)));
        assert!(self.links[1].1.sees(b"echo"), "another env is not watched");
    }

    /// Nothing has arrived so far; `what` was done last.
    pub fn saw_nothing(&self, what: &str) {
        for (who, link) in &self.links {
            let frames = link.drain();
            let arrived = frames.iter().find(|frame| holds(frame, MARK.as_bytes()));
            assert!(arrived.is_none(), "{what}: arrived at {who}: {arrived:02x?}");
        }
        for (who, echo) in [("a service of the host", &self.service), ("metadata", &self.metadata)]
        {
            assert!(echo.peers().is_empty(), "{what}: {who} was reached by {:?}", echo.peers());
        }
        let peers = self.outside.peers();
        assert!(peers.iter().all(|peer| peer.ip() == HOST), "{what}: forged: {peers:?}");
    }

    /// What must arrive does, and is the last of what was sent before.
    pub fn sees_the_honest(&self, player: &mut Player, scene: &Scene, mark: &str) {
        player.play(1, &[scene.honest(mark), scene.beyond(CLIENT, 9, mark)]);
        for at in [0, 2] {
            let (who, link) = &self.links[at];
            assert!(link.sees(mark.as_bytes()), "{mark:?} does not arrive at {who}");
        }
        let mark = format!("{mark} by IPv6");
        player.play(1, &[scene.honest_six(&mark), scene.honest_beyond_six(&mark)]);
        for at in [0, 2] {
            let (who, link) = &self.links[at];
            assert!(link.sees(mark.as_bytes()), "{mark:?} does not arrive at {who}");
        }
    }

    /// The host, the neighbour and the other Env are as well as before.
    pub fn all_go_on(&self, what: &str) {
        let client = &self.lab.client;
        let ports = [("good", "v"), ("evil", "n")].map(|(env, vm)| self.lab.port(env, vm, "7"));
        for port in ports {
            assert!(client.reaches_tcp((HOST, port)), "{what}: port {port}");
        }
        assert!(client.reaches_udp((HOST, self.lab.port("good", "v", "7/udp"))), "{what}");
        let line = format!("helper udp 0.0.0.0 {CLIENT} {OUTSIDE} && nslookup n");
        self.lab.sh("evil/n", &line);
    }

    /// What of the attacker's was stopped so far, as the API says.
    pub fn stopped(&self) -> u64 {
        let answer = self.lab.get("/v1/envs/evil/vms/e/traffic").unwrap();
        ["blocked_packets", "slowed_packets"]
            .map(|name| answer.body[name].as_u64().unwrap())
            .iter()
            .sum()
    }
}

/// The helper in the attacker, which sends what it is told.
pub struct Player {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
}

impl Player {
    pub fn new(lab: &Lab) -> Self {
        let mut command = lab.command(&["exec", "-i", "evil/e", "--", "helper", "frames", "eth0"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, said) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, stdin, said }
    }

    /// Sends all frames, so often; answers how many left.
    pub fn play(&mut self, often: u32, frames: &[Vec<u8>]) -> u64 {
        let mut message = [often, frames.len() as u32].map(u32::to_be_bytes).concat();
        for frame in frames {
            message.extend((frame.len() as u16).to_be_bytes());
            message.extend(frame);
        }
        self.stdin.write_all(&message).and_then(|()| self.stdin.flush()).unwrap();
        let line = self.said.recv_timeout(PATIENCE).expect("the player says that it has sent");
        line.strip_prefix("sent ").unwrap().parse().unwrap()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
