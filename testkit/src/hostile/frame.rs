//! Frames as bytes, honest or not.

use std::net::Ipv4Addr;
use tt_model::MacAddr;

pub mod six;

/// All on a link.
pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet frame.
pub fn ether(to: MacAddr, from: MacAddr, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(body);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same frame with a VLAN tag.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 1], &frame[12..]].concat()
}

/// UDP without a checksum.
pub fn udp(
    macs: (MacAddr, MacAddr),
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    data: &[u8],
) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    let mut body =
        [from.1.to_be_bytes(), to.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    body.extend(data);
    ether(macs.1, macs.0, IPV4, &ipv4(from.0, to.0, UDP, &body))
}

/// An ICMP echo request.
pub fn ping(macs: (MacAddr, MacAddr), from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let mut body = vec![8, 0, 0, 0, 0, 1, 0, 1];
    body.extend(data);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ether(macs.1, macs.0, IPV4, &ipv4(from, to, ICMP, &body))
}

/// An ARP request to all: `sender` is who it says it is from, `from` is on the frame.
pub fn arp(from: MacAddr, sender: (MacAddr, Ipv4Addr), target: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(sender.0.0);
    body.extend(sender.1.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    body.extend(data);
    ether(BROADCAST, from, ARP, &body)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    fragment((from, to), protocol, [0, 0], body)
}

/// A packet with that protocol, in a frame.
pub fn packet(
    macs: (MacAddr, MacAddr),
    addrs: (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    ether(macs.1, macs.0, IPV4, &ipv4(addrs.0, addrs.1, protocol, body))
}

/// A part of a UDP packet, in a frame: `at` is the flag and the offset of RFC 791.
pub fn udp_fragment(
    macs: (MacAddr, MacAddr),
    addrs: (Ipv4Addr, Ipv4Addr),
    at: [u8; 2],
    body: &[u8],
) -> Vec<u8> {
    ether(macs.1, macs.0, IPV4, &fragment(addrs, UDP, at, body))
}

/// The beginning of a TCP connection, with data (as TCP Fast Open has it).
pub fn syn(
    macs: (MacAddr, MacAddr),
    addrs: (Ipv4Addr, Ipv4Addr),
    port: u16,
    data: &[u8],
) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&9u16.to_be_bytes());
    body[2..4].copy_from_slice(&port.to_be_bytes());
    (body[12], body[13], body[14]) = (0x50, 2, 0xff);
    body.extend(data);
    let length = (body.len() as u16).to_be_bytes();
    let head = [&addrs.0.octets()[..], &addrs.1.octets(), &[0, TCP], &length].concat();
    let sum = checksum(&[head, body.clone()].concat());
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(macs, addrs, TCP, &body)
}

fn fragment((from, to): (Ipv4Addr, Ipv4Addr), protocol: u8, at: [u8; 2], body: &[u8]) -> Vec<u8> {
    let length = 20 + body.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x77, 0x77, at[0], at[1], 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
