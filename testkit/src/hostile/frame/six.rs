//! Frames with IPv6 in them.

use super::{TCP, UDP, checksum, ether};
use std::net::Ipv6Addr;
use tt_model::MacAddr;

const IPV6: u16 = 0x86dd;
/// Number of ICMP for IPv6.
pub const ICMP: u8 = 58;
/// What a neighbour's word must have left of its hops (RFC 4861).
pub const HOPS: u8 = 255;

type Macs = (MacAddr, MacAddr);
type Addrs = (Ipv6Addr, Ipv6Addr);

/// A packet whose next header is that one.
pub fn packet(macs: Macs, (from, to): Addrs, (next, hops): (u8, u8), body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    ether(macs.1, macs.0, IPV6, &packet)
}

/// UDP.
pub fn udp(macs: Macs, from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), data: &[u8]) -> Vec<u8> {
    let addrs = (from.0, to.0);
    packet(macs, addrs, (UDP, 64), &udp_body(addrs, (from.1, to.1), data))
}

/// What stands behind the header of a packet with UDP.
pub fn udp_body(addrs: Addrs, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    let mut body = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
    body.extend(data);
    sum_up(addrs, UDP, body, 6)
}

/// The beginning of a TCP connection, with data.
pub fn syn(macs: Macs, addrs: Addrs, port: u16, data: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&9u16.to_be_bytes());
    body[2..4].copy_from_slice(&port.to_be_bytes());
    (body[12], body[13], body[14]) = (0x50, 2, 0xff);
    body.extend(data);
    packet(macs, addrs, (TCP, 64), &sum_up(addrs, TCP, body, 16))
}

/// ICMP: kind, code, two bytes for the sum, and the rest.
pub fn icmp(macs: Macs, addrs: Addrs, hops: u8, body: &[u8]) -> Vec<u8> {
    packet(macs, addrs, (ICMP, hops), &sum_up(addrs, ICMP, body.to_vec(), 2))
}

/// An echo request.
pub fn ping(macs: Macs, addrs: Addrs, data: &[u8]) -> Vec<u8> {
    icmp(macs, addrs, 64, &[&[128, 0, 0, 0, 0, 1, 0, 1], data].concat())
}

/// With the checksum, which goes over a pseudo-header, too (RFC 8200 8.1).
fn sum_up((from, to): Addrs, next: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    let head = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, next]].concat();
    let sum = checksum(&[&head[..], &body].concat());
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}
