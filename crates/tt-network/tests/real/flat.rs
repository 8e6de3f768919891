//! Members with flat addresses, on several hosts: who reaches them and who does not, what a cut and a
//! replaced host do to the others, and that full-size packets arrive.

use crate::lab::{Echo, Guest, Space, echoes, is_cut, run};
use crate::sites::{CLIENT, Site, Sites};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use testkit::hostile::frame;
use tt_model::{MacAddr, NetKind};
use tt_network::{Network, TUNNEL_ID, TUNNEL_PORT};

/// Of the link between hosts, unless a test says otherwise.
const MTU: u32 = 1500;
/// What the tunnel takes of it.
const OVERHEAD: u32 = 50;
/// TCP tries again after 0.2 s, 0.4 s and so on.
const HEALS: Duration = Duration::from_secs(20);

/// One flat member on each host, with a server.
fn guests(sites: &Sites) -> Vec<(Guest, Echo)> {
    let guest = |site: &Site| {
        let guest = site.flat(u64::from(site.number), 0);
        let echo = Echo::new(&guest.space, 80);
        (guest, echo)
    };
    sites.hosts.iter().map(guest).collect()
}

fn route_range(client: &Space, site: &Site) {
    client.ip(&format!("route replace 10.0.0.0/8 via {}", site.addr));
}

#[test]
fn three_hosts_reach_each_other_and_a_client_reaches_all_through_any() {
    Sites::run(3, MTU, |sites| {
        let guests = guests(sites);
        for (from, _) in &guests {
            for (to, echo) in &guests {
                assert!(from.space.reaches((to.addr(), 80)), "{} to {}", from.addr(), to.addr());
                assert_eq!(echo.last().unwrap().ip(), from.addr(), "its own address is seen");
                assert!(from.space.reaches_udp((to.addr(), 80)));
            }
        }
        for site in &sites.hosts {
            for (to, _) in &guests {
                assert!(site.space.reaches((to.addr(), 80)), "{} to {}", site.addr, to.addr());
            }
            route_range(&sites.client, site);
            for (to, echo) in &guests {
                assert!(sites.client.reaches((to.addr(), 80)), "through {}", site.addr);
                assert_eq!(echo.last().unwrap().ip(), CLIENT);
            }
        }
        for site in &sites.hosts {
            // However many Vms: one of each for each other host.
            let tunnel = site.layout.tunnel();
            site.flat(9, 1);
            let count = |text: String| text.lines().count();
            let look = |what: &str| site.space.run(|| run("ip", &format!("{what} dev {tunnel}")));
            assert_eq!(count(look("-4 route show")), 2);
            assert_eq!(count(look("-4 neigh show")), 2);
            let entries = site.space.run(|| run("bridge", &format!("fdb show dev {tunnel}")));
            assert_eq!(count(entries), 2);
        }
    });
}

#[test]
fn a_cut_disturbs_nobody_else_and_heals() {
    Sites::run(3, MTU, |sites| {
        let guests = guests(sites);
        let open = |from: usize, to: usize| guests[from].0.space.open((guests[to].0.addr(), 80));
        let (mut cut, mut other) = (open(0, 1), open(0, 2));
        assert!(echoes(&mut cut) && echoes(&mut other));
        sites.set_cut(1, true);
        assert!(is_cut(&mut cut));
        other.set_read_timeout(Some(HEALS)).unwrap();
        assert!(echoes(&mut other));
        assert!(guests[2].0.space.misses((guests[1].0.addr(), 80)));
        let local = sites.hosts[1].flat(2, 1);
        assert!(local.space.reaches((guests[1].0.addr(), 80)), "it goes on by itself");
        sites.set_cut(1, false);
        cut.set_read_timeout(Some(HEALS)).unwrap();
        let mut answer = [0; 4];
        cut.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"echo", "what was sent meanwhile arrives");
        assert!(echoes(&mut cut) && echoes(&mut other));
        assert!(guests[2].0.space.reaches((guests[1].0.addr(), 80)));
    });
}

#[test]
fn a_host_is_removed_and_another_one_takes_its_block() {
    Sites::run(3, MTU, |sites| {
        let mut guests = guests(sites);
        let mut other = guests[0].0.space.open((guests[2].0.addr(), 80));
        let (gone, echo) = guests.remove(1);
        assert!(guests[0].0.space.reaches((gone.addr(), 80)) && echo.last().is_some());
        let site = sites.hosts.remove(1);
        sites.meet();
        assert!(guests[0].0.space.misses((gone.addr(), 80)));
        assert!(gone.space.misses((guests[0].0.addr(), 80)), "and does not reach them");
        assert!(echoes(&mut other));
        sites.add(site.number, 20);
        drop((gone, echo, site));
        sites.meet();
        let heir = sites.hosts[2].flat(2, 0);
        let _echo = Echo::new(&heir.space, 80);
        for (guest, _) in &guests {
            assert!(guest.space.reaches((heir.addr(), 80)));
            assert!(heir.space.reaches((guest.addr(), 80)));
        }
        assert!(echoes(&mut other));
    });
}

#[test]
fn a_daemons_restart_breaks_nothing_and_its_end_leaves_nothing() {
    Sites::run(2, MTU, |sites| {
        let mut guests = guests(sites);
        let mut open = guests[0].0.space.open((guests[1].0.addr(), 80));
        assert!(echoes(&mut open));
        sites.hosts[0].restart();
        assert!(echoes(&mut open), "before it was told of others");
        sites.meet();
        assert!(echoes(&mut open));
        guests.clear();
        let site = &sites.hosts[0];
        let member = site.flat(1, 0);
        site.space.run(|| {
            site.net.unset_net(&member.vm).unwrap();
            assert!(run("ip", "-br link").contains(&site.layout.tunnel()));
            site.net.close().unwrap();
            assert!(!run("ip", "-br link").contains(&site.layout.tunnel()));
            assert_eq!(run("nft", "list ruleset"), "");
            assert!(!run("ip", "route").contains("10."), "no route is left");
        });
    });
}

/// A datagram of that many bytes there and back; packets that do not fit are sent again, smaller.
fn carries(socket: &UdpSocket, bytes: usize) -> bool {
    let data = vec![7; bytes];
    let end = Instant::now() + Duration::from_secs(5);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while Instant::now() < end {
        let mut answer = vec![0; bytes + 1];
        let _ = socket.send(&data);
        if socket.recv(&mut answer).is_ok_and(|length| length == bytes) {
            return true;
        }
    }
    false
}

/// What the kernel has learned of the way to whom the socket is connected.
fn path_mtu(socket: &UdpSocket) -> u32 {
    let (mut mtu, mut length) = (0i32, 4u32);
    // SAFETY: the option writes one number of four bytes, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU,
            (&raw mut mtu).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    mtu as u32
}

fn echo_datagrams(space: &Space) {
    let socket = space.udp(([0, 0, 0, 0], 99));
    std::thread::spawn(move || {
        let mut data = [0; 9000];
        socket.set_read_timeout(Some(HEALS)).unwrap();
        while let Ok((length, from)) = socket.recv_from(&mut data) {
            if length == 1 {
                return;
            }
            let _ = socket.send_to(&data[..length], from);
        }
    });
}

#[test]
fn full_size_packets_arrive_whatever_the_underlay_takes() {
    for mtu in [MTU, 1400, 9000] {
        Sites::run(2, mtu, |sites| {
            let guests = guests(sites);
            let to = guests[1].0.addr();
            route_range(&sites.client, &sites.hosts[0]);
            let inner = (mtu - OVERHEAD).min(MTU);
            echo_datagrams(&guests[1].0.space);
            // From a member of another host, and from a client through a third one.
            let member = (&guests[0].0.space, MTU, inner);
            for (space, link, expected) in [member, (&sites.client, mtu, inner)] {
                let socket = space.udp(([0, 0, 0, 0], 0));
                socket.connect((to, 99)).unwrap();
                for packet in [expected, link] {
                    assert!(carries(&socket, packet as usize - 28), "{packet} bytes over {mtu}");
                }
                let learned = path_mtu(&socket);
                assert!((inner..=mtu - OVERHEAD).contains(&learned), "{learned} over {mtu}");
                let mut stream = space.open((to, 80));
                let data: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
                let mut copy = vec![0; data.len()];
                let mut reader = stream.try_clone().unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| stream.write_all(&data).unwrap());
                    reader.read_exact(&mut copy).unwrap();
                });
                assert_eq!(copy, data);
                // A reply of one packet, whose sender knows nothing of the way yet.
                socket.send(&[7]).unwrap();
                echo_again(&guests[1].0.space);
            }
        });
    }
}

/// The server above ends with a datagram of one byte; the next client finds another one.
fn echo_again(space: &Space) {
    let end = Instant::now() + HEALS;
    while Instant::now() < end {
        let free = space.run(|| UdpSocket::bind(("0.0.0.0", 99)));
        if free.is_ok() {
            drop(free);
            return echo_datagrams(space);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the server goes on");
}

#[test]
fn only_flat_members_are_reached_and_nothing_else_through_the_tunnel() {
    Sites::run(2, MTU, |sites| {
        let [here, there] = &sites.hosts[..] else { panic!() };
        let (flat, plain) = (here.flat(1, 0), here.guest(2, 0, NetKind::Nat));
        let (far, far_plain) = (there.flat(1, 0), there.guest(2, 0, NetKind::Nat));
        let mixed = here.guest(1, 1, NetKind::Nat);
        let all = [&flat, &plain, &far, &far_plain, &mixed];
        let _echoes: Vec<Echo> = all.iter().map(|guest| Echo::new(&guest.space, 80)).collect();
        let _services = [Echo::new(&here.space, 2222), Echo::new(&there.space, 2222)];
        route_range(&sites.client, here);
        assert!(flat.space.reaches((far.addr(), 80)) && far.space.reaches((flat.addr(), 80)));
        assert!(mixed.space.reaches((flat.addr(), 80)), "members of one env");
        for to in [plain.addr(), far_plain.addr(), mixed.addr()] {
            assert!(far.space.misses((to, 80)) || to == far_plain.addr());
            assert!(sites.client.misses((to, 80)), "{to} has published ports only");
        }
        assert!(flat.space.misses((plain.addr(), 80)) && flat.space.misses((far_plain.addr(), 80)));
        for from in [&plain, &mixed] {
            assert!(from.space.misses((far.addr(), 80)), "{} is not flat", from.addr());
        }
        assert!(plain.space.misses((flat.addr(), 80)));
        let tunnel_end = Ipv4Addr::new(10, 2, 255, 254);
        for to in [tunnel_end, here.addr, Ipv4Addr::new(10, 1, 255, 254)] {
            assert!(flat.space.misses((to, 2222)), "{to} is a host");
            assert!(flat.space.misses_udp((to, 2222)), "{to} is a host");
        }
        assert!(flat.space.misses((tunnel_end, far_plain.tcp())), "a published port");
        assert!(flat.space.reaches((there.addr, far_plain.tcp())), "as anybody outside");
        // Its limits are those of every member.
        let mut vm = flat.vm.clone();
        vm.deny_outgoing = true;
        here.space.run(|| here.net.set_net(&vm).unwrap());
        assert!(flat.space.misses((far.addr(), 80)) && far.space.reaches((flat.addr(), 80)));
        vm.deny_outgoing = false;
        vm.state.net_blacklist = vec![far.addr().into()];
        here.space.run(|| here.net.set_net(&vm).unwrap());
        assert!(flat.space.misses((far.addr(), 80)) && sites.client.reaches((flat.addr(), 80)));
        vm.net_kind = NetKind::Nat;
        here.space.run(|| here.net.set_net(&vm).unwrap());
        assert!(sites.client.misses((flat.addr(), 80)));
    });
}

/// A packet to a member as the tunnel carries it.
fn tunnelled(id: u32, from: Ipv4Addr, to: &Guest, mark: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = [10, to.addr().octets()[1], 255, 254u8];
    let mac = MacAddr([0x82, 0x17, 0x0f, a, b, c]);
    let other = MacAddr([0x82, 0x17, 0x0f, 1, 255, 254]);
    let inner = frame::udp((other, mac), (from, 9), (to.addr(), 9), mark);
    let mut data = vec![8, 0, 0, 0];
    data.extend(&id.to_be_bytes()[1..]);
    data.push(0);
    data.extend(inner);
    data
}

#[test]
fn nobody_but_a_peer_puts_anything_into_the_tunnel() {
    Sites::run(2, MTU, |sites| {
        let [here, there] = &sites.hosts[..] else { panic!() };
        let (flat, far) = (here.flat(1, 0), there.flat(1, 0));
        let seen = far.space.frames();
        let forged = |mark: &[u8]| tunnelled(TUNNEL_ID, Ipv4Addr::new(10, 1, 7, 7), &far, mark);
        let send = |space: &Space, mark: &[u8]| {
            let socket = space.udp(([0, 0, 0, 0], 0));
            socket.send_to(&forged(mark), (there.addr, TUNNEL_PORT)).unwrap();
        };
        send(&here.space, b"from a peer");
        assert!(seen.sees(b"from a peer"));
        send(&sites.client, b"from a stranger");
        assert!(seen.sees_not(b"from a stranger"));
        send(&flat.space, b"from a guest");
        assert!(seen.sees_not(b"from a guest"), "its host's address would make it a peer's");
        let own = tunnelled(TUNNEL_ID, Ipv4Addr::new(10, 2, 7, 7), &far, b"from inside");
        here.space.udp(([0, 0, 0, 0], 0)).send_to(&own, (there.addr, TUNNEL_PORT)).unwrap();
        assert!(seen.sees_not(b"from inside"), "an address of the host's own block");
        // Somebody else's tunnel on the same port goes on.
        let theirs = there.space.udp(([0, 0, 0, 0], 0));
        theirs.connect((CLIENT, 1)).unwrap();
        there.space.ip(&format!(
            "link add vx9 type vxlan id 9 dstport {TUNNEL_PORT} local {} remote {CLIENT}",
            there.addr
        ));
        there.space.ip("addr add 172.30.0.1/24 dev vx9");
        there.space.ip("link set vx9 up");
        sites.client.ip(&format!(
            "link add vx9 type vxlan id 9 dstport {TUNNEL_PORT} local {CLIENT} remote {}",
            there.addr
        ));
        sites.client.ip("addr add 172.30.0.2/24 dev vx9");
        sites.client.ip("link set vx9 up");
        let _echo = Echo::new(&there.space, 7);
        assert!(sites.client.reaches((Ipv4Addr::new(172, 30, 0, 1), 7)));
    });
}
