//! Floods: each frame is harmless, their number is not.

use super::frame::{BROADCAST, arp, ping, syn, udp};
use super::{Scene, Stop};
use std::net::Ipv4Addr;

/// How many frames a flood has.
pub const FLOOD_FRAMES: u16 = 6000;
/// A question for the address of `web`, as RFC 1035 has it.
const QUESTION: &[u8] =
    b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";

/// More than one guest may ask of all others.
#[derive(Clone, Debug)]
pub struct Flood {
    /// What there is too much of.
    pub what: &'static str,
    /// All of it.
    pub frames: Vec<Vec<u8>>,
    /// What bounds it; nothing where all of it may be sent, because it costs nobody else anything.
    pub stop: Option<Stop>,
}

/// All floods.
pub fn floods(scene: &Scene) -> Vec<Flood> {
    let Scene { me, gateway, outside, .. } = *scene;
    let (all, to_gateway) = ((me.mac, BROADCAST), scene.to_gateway());
    let nobody = Ipv4Addr::UNSPECIFIED;
    let [a, b, c, _] = outside.octets();
    // Who refused them would end them.
    let silent = Ipv4Addr::new(a, b, c, 250);
    let flood = |what, stop, frame: &dyn Fn(u16) -> Vec<u8>| {
        let frames = (1..=FLOOD_FRAMES).map(frame).collect();
        Flood { what, frames, stop }
    };
    vec![
        flood("ARP, for thousands of addresses", Some(Stop::Limit), &|n| {
            let asked =
                Ipv4Addr::from(u32::from(gateway.addr) & 0xff00_0000 | 0x0009_0000 | u32::from(n));
            arp(me.mac, (me.mac, me.addr), asked, b"")
        }),
        flood("datagrams to all", Some(Stop::Limit), &|_| {
            udp(all, (me.addr, 9), (Ipv4Addr::BROADCAST, 9), b"flood")
        }),
        flood("questions by DHCP", Some(Stop::Limit), &|_| {
            udp(all, (nobody, 68), (Ipv4Addr::BROADCAST, 67), &[0; 240])
        }),
        flood("questions for names", Some(Stop::Limit), &|n| {
            udp(to_gateway, (me.addr, n), (gateway.addr, 53), QUESTION)
        }),
        flood("beginnings of TCP connections that nobody answers", Some(Stop::Edge), &|n| {
            syn(to_gateway, (me.addr, silent), n, b"")
        }),
        flood("pings of its gateway", None, &|_| ping(to_gateway, me.addr, gateway.addr, b"flood")),
    ]
}
