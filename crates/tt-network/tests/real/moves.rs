//! The host's own addresses change while Envs live.

use crate::lab::{CLIENT, Echo, HOST, Lab, Space, echoes, ip};
use crate::sites::Sites;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tt_model::EnvId;
use tt_network::Network;

/// The host's address after the first one, and that on another link.
const NEXT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Somewhere behind either link.
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

#[test]
fn the_host_moves_and_what_depends_on_its_address_follows() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let (_inner, near) = (Echo::new(&guest.space, 80), Echo::new(&lab.client, 7));
        let public = || lab.net.reached_at().unwrap().public;
        let came_from = |echo: &Echo| echo.last().map(|from| from.ip());
        assert!(guest.space.reaches((CLIENT, 7)) && lab.client.reaches((HOST, guest.tcp())));
        assert_eq!((public(), came_from(&near)), (Some(HOST), Some(IpAddr::V4(HOST))));
        // One address goes and another one comes.
        ip(&format!("addr del {HOST}/24 dev up0"));
        assert_eq!(public(), Some(HOST), "the last one that it had");
        ip(&format!("addr add {NEXT}/24 dev up0"));
        ip(&format!("route add default via {CLIENT}"));
        assert!(!lab.net.mend().unwrap(), "no rule knows an address of the host");
        assert_eq!(public(), Some(NEXT));
        assert!(lab.client.reaches((NEXT, guest.tcp())) && lab.host.reaches((NEXT, guest.tcp())));
        assert!(lab.client.misses((HOST, guest.tcp())));
        let mut open = guest.space.open((CLIENT, 7));
        assert!(echoes(&mut open));
        assert_eq!(came_from(&near), Some(IpAddr::V4(NEXT)));
        // The way out moves to another link.
        let second = Space::new();
        ip(&format!("link add up1 type veth peer name eth0 netns {}", second.path()));
        ip(&format!("addr add {OTHER}/24 dev up1"));
        ip("link set up1 up");
        second.ip("addr add 198.51.100.2/24 dev eth0");
        second.ip(&format!("addr add {FAR}/32 dev eth0"));
        second.ip("link set eth0 up");
        second.ip(&format!("route add default via {OTHER}"));
        let far = Echo::new(&second, 7);
        ip("route replace default via 198.51.100.2");
        assert_eq!(public(), Some(OTHER));
        assert!(guest.space.reaches((FAR, 7)), "by the new way");
        assert_eq!(came_from(&far), Some(IpAddr::V4(OTHER)));
        assert!(second.reaches((OTHER, guest.tcp())) && lab.client.reaches((NEXT, guest.tcp())));
        assert!(echoes(&mut open), "whose way is the old one goes on");
        assert!(guest.space.misses((OTHER, 22)) && guest.space.misses((NEXT, guest.tcp())));
    });
}

#[test]
fn who_changes_addresses_and_the_way_out_is_noticed_and_envs_are_not() {
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
            ip(line);
            let until = Instant::now() + Duration::from_secs(5);
            while told.load(Ordering::SeqCst) == before && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            told.load(Ordering::SeqCst) > before
        };
        let guest = lab.guest(EnvId(1), 0);
        lab.net.unset_net(&guest.vm).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(told.load(Ordering::SeqCst), 0, "an env comes and goes");
        assert!(is_told("addr add 192.0.2.9/24 dev up0"));
        assert!(is_told("addr del 192.0.2.9/24 dev up0"));
        assert!(is_told("route del default"));
        assert!(is_told("route add default via 192.0.2.2"));
        assert!(is_told("route del blackhole 10.0.0.0/16 metric 95"));
        lab.net.mend().unwrap();
        lab.net.close().unwrap();
    });
}

#[test]
fn the_tunnel_follows_its_host_to_another_address() {
    Sites::run(2, 1500, |sites| {
        let (a, b) = (sites.hosts[0].flat(1, 0), sites.hosts[1].flat(2, 0));
        let _echoes = [&a, &b].map(|guest| Echo::new(&guest.space, 80));
        assert!(a.space.reaches((b.addr(), 80)));
        let new = Ipv4Addr::new(198, 51, 100, 77);
        let site = &mut sites.hosts[1];
        site.space.ip(&format!("addr del {}/24 dev up0", site.addr));
        site.space.ip(&format!("addr add {new}/24 dev up0"));
        site.addr = new;
        let reached = site.space.run(|| site.net.reached_at().unwrap());
        assert_eq!(reached.underlay, Some(new));
        sites.meet();
        assert!(a.space.reaches((b.addr(), 80)) && b.space.reaches((a.addr(), 80)));
    });
}
