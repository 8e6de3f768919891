//! DHCP: real clients, and messages by hand, honest or not.

use crate::lab::{ARRIVES, GATEWAY, Guest, Lab, NEVER, has_program, run};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::hostile::frame::{self, BROADCAST};
use tt_model::{EnvId, MacAddr};
use tt_network::{EnvNames, Network};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// Writes what a client learned to a file, once for each event, and sets the address.
const SCRIPT: &str = r#"#!/bin/sh
case "${1:-}${reason:-}" in
bound|renew|BOUND|REBOOT|RENEW) ip addr replace "${ip:-$new_ip_address}/8" dev eth0 ;;
esac
[ "${1:-}${reason:-}" = PREINIT ] && ip link set eth0 up
echo "${1:-}${reason:-} ip=${ip:-$new_ip_address} router=${router:-$new_routers} \
dns=${dns:-$new_domain_name_servers} mtu=${mtu:-$new_interface_mtu} \
name=${hostname:-$new_host_name} lease=${lease:-$new_dhcp_lease_time}" >> OUT
"#;

/// A DHCP client at work.
struct Client {
    child: Child,
    out: PathBuf,
}

impl Client {
    fn start(lab: &Lab, guest: &Guest, program: &str, arguments: &[&str]) -> Self {
        guest.space.ip("addr flush dev eth0");
        let (out, script) = (lab.run_dir().join(program), lab.run_dir().join("script"));
        std::fs::write(&script, SCRIPT.replace("OUT", out.to_str().unwrap())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let replace = |argument: &&str| argument.replace("SCRIPT", script.to_str().unwrap());
        let mut command = Command::new(program);
        command.args(arguments.iter().map(replace)).current_dir(lab.run_dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = guest.space.run(|| command.spawn().unwrap());
        Self { child, out }
    }

    /// The first line that begins with one of `events`, beyond the first `seen`.
    fn hears(&self, events: &[&str], seen: usize) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            let text = std::fs::read_to_string(&self.out).unwrap_or_default();
            let mut lines = text.lines().skip(seen);
            if let Some(line) =
                lines.find(|line| events.iter().any(|e| line.starts_with(&format!("{e} "))))
            {
                return line.to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("none of {events:?} in {:?}", std::fs::read_to_string(&self.out));
    }

    fn lines(&self) -> usize {
        std::fs::read_to_string(&self.out).unwrap_or_default().lines().count()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain call with numbers; the child is ours and not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(guest: &Guest) -> EnvNames {
    let members = vec![("web".into(), guest.addr())];
    EnvNames { env_name: "shop".into(), members, ..EnvNames::default() }
}

fn expected(guest: &Guest) -> String {
    format!("ip={} router={GATEWAY} dns={GATEWAY} mtu=1500 name=web lease=86400", guest.addr())
}

#[test]
fn udhcpc_gets_its_address_renews_it_and_survives_the_daemons_absence() {
    if !has_program("busybox") {
        println!("SKIPPED udhcpc: busybox is not installed");
        return;
    }
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        lab.net.set_names(EnvId(1), &names(&guest)).unwrap();
        let options = "udhcpc -i eth0 -f -s SCRIPT -O mtu -O hostname -t 3 -T 1";
        let options: Vec<&str> = options.split(' ').collect();
        let client = Client::start(lab, &guest, "busybox", &options);
        let line = client.hears(&["bound"], 0);
        assert!(line.ends_with(&expected(&guest)), "{line}");
        let seen = client.lines();
        client.signal(libc::SIGUSR1);
        client.hears(&["renew"], seen);
        lab.die();
        let seen = client.lines();
        client.signal(libc::SIGUSR1);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(client.lines(), seen, "nobody answers, and nothing is given up");
        let address = guest.space.run(|| run("ip", "-4 -br addr show eth0"));
        assert!(address.contains(&guest.addr().to_string()), "{address}");
        lab.net.init().unwrap();
        client.signal(libc::SIGUSR1);
        client.hears(&["renew", "bound"], seen);
    });
}

#[test]
fn dhclient_gets_its_address() {
    if !has_program("dhclient") {
        println!("SKIPPED dhclient: isc-dhcp-client is not installed");
        return;
    }
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        lab.net.set_names(EnvId(1), &names(&guest)).unwrap();
        let options = "-4 -d -1 -sf SCRIPT -cf /dev/null -lf leases -pf pid eth0";
        std::fs::write(lab.run_dir().join("leases"), "").unwrap();
        let options: Vec<&str> = options.split(' ').collect();
        let client = Client::start(lab, &guest, "dhclient", &options);
        let line = client.hears(&["BOUND"], 0);
        assert!(line.ends_with(&expected(&guest)), "{line}");
        assert!(Path::new(&lab.run_dir().join("leases")).exists());
    });
}

/// A message as RFC 2131 has it.
fn message(kind: u8, mac: MacAddr, has: Ipv4Addr, wanted: Option<Ipv4Addr>, id: u8) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[7] = id;
    message[12..16].copy_from_slice(&has.octets());
    message[28..34].copy_from_slice(&mac.0);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    if let Some(wanted) = wanted {
        message.extend([50, 4]);
        message.extend(wanted.octets());
    }
    message.push(255);
    message
}

/// Sends, and returns id, kind and lent address of the answer.
fn ask(socket: &UdpSocket, to: Ipv4Addr, message: &[u8]) -> Option<(u8, u8, Ipv4Addr)> {
    socket.send_to(message, (to, 67)).unwrap();
    let mut answer = [0; 1500];
    let (length, from) = socket.recv_from(&mut answer).ok()?;
    assert_eq!((from.ip(), from.port()), (GATEWAY.into(), 67));
    assert!(length >= 300);
    let lent: [u8; 4] = answer[16..20].try_into().unwrap();
    Some((answer[7], answer[242], lent.into()))
}

/// A client's socket, as the member or as nobody.
fn socket(guest: &Guest, wait: Duration) -> UdpSocket {
    let socket = guest.space.udp((NOBODY, 68));
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    socket
}

#[test]
fn leases_are_renewed_by_unicast_and_broadcast_and_foreign_addresses_refused() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (guest, other) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let (mac, addr) = (guest.vm.resource.mac_addr, guest.addr());
        let asking = socket(&guest, ARRIVES);
        let renew = message(REQUEST, mac, addr, None, 1);
        assert_eq!(ask(&asking, GATEWAY, &renew), Some((1, ACK, addr)));
        let rebind = message(REQUEST, mac, addr, None, 2);
        assert_eq!(ask(&asking, Ipv4Addr::BROADCAST, &rebind), Some((2, ACK, addr)));
        let foreign = message(REQUEST, mac, NOBODY, Some(other.addr()), 3);
        assert_eq!(ask(&asking, Ipv4Addr::BROADCAST, &foreign), Some((3, NAK, NOBODY)));
        let foreign = message(REQUEST, mac, other.addr(), None, 4);
        assert_eq!(ask(&asking, GATEWAY, &foreign), Some((4, NAK, NOBODY)));
        lab.restart();
        let discover = message(DISCOVER, mac, NOBODY, None, 5);
        assert_eq!(ask(&asking, GATEWAY, &discover), Some((5, OFFER, addr)));
    });
}

#[test]
fn hostile_questions_get_no_answer_and_starve_nobody() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (attacker, victim) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(1), 1));
        let friend = lab.guest(EnvId(2), 0);
        let (mac, addr) = (attacker.vm.resource.mac_addr, attacker.addr());
        let victim_mac = victim.vm.resource.mac_addr;
        let (asking, hearing) = (socket(&attacker, NEVER), socket(&victim, NEVER));
        let forged = message(DISCOVER, victim_mac, NOBODY, None, 1);
        assert_eq!(ask(&asking, GATEWAY, &forged), None, "another one's hardware address");
        let mut buffer = [0; 1500];
        assert!(hearing.recv(&mut buffer).is_err(), "and the victim hears nothing");
        let nobodys = message(DISCOVER, MacAddr([0x82, 0x17, 0x0d, 9, 9, 9]), NOBODY, None, 1);
        assert_eq!(ask(&asking, GATEWAY, &nobodys), None, "nobody's hardware address");
        let frames = attacker.space.frames();
        let macs = (mac, BROADCAST);
        let all = (Ipv4Addr::BROADCAST, 67);
        let mut relayed = message(DISCOVER, mac, NOBODY, None, 1);
        relayed[24..28].copy_from_slice(&addr.octets());
        frames.send(&frame::udp(macs, (NOBODY, 68), all, &relayed));
        frames.send(&frame::udp(
            macs,
            (victim.addr(), 68),
            all,
            &message(DISCOVER, mac, NOBODY, None, 1),
        ));
        frames.send(&frame::udp(
            (victim_mac, BROADCAST),
            (NOBODY, 68),
            all,
            &message(DISCOVER, mac, NOBODY, None, 1),
        ));
        assert!(frames.sees_not(&[99, 130, 83, 99]));
        for number in 0..5000u32 {
            let mut flood = message(DISCOVER, mac, NOBODY, None, number as u8);
            flood.truncate(200 + number as usize % 100);
            let _ = asking.send_to(&flood, (GATEWAY, 67));
        }
        for _ in 0..3000 {
            let _ = asking.send_to(&message(DISCOVER, mac, NOBODY, None, 1), (GATEWAY, 67));
        }
        let asking = socket(&friend, ARRIVES);
        let honest = message(DISCOVER, friend.vm.resource.mac_addr, NOBODY, None, 7);
        assert_eq!(ask(&asking, GATEWAY, &honest), Some((7, OFFER, friend.addr())));
    });
}
