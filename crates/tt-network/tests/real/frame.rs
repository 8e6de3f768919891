//! Frames as bytes, honest or not, and a socket for them.

use crate::lab::{ARRIVES, NEVER, Space};
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use tt_model::MacAddr;

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

/// A packet socket on the stand-in's link: sees and sends whole frames.
pub struct Frames(OwnedFd);

impl Frames {
    pub fn new(space: &Space, link: &str) -> Self {
        space.run(|| {
            let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
            // SAFETY: plain calls with numbers, and one structure of integers that outlives its
            // call; the descriptor belongs to nobody else.
            let fd = unsafe {
                let fd =
                    libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
                assert!(fd >= 0);
                let mut addr: libc::sockaddr_ll = mem::zeroed();
                addr.sll_family = libc::AF_PACKET as u16;
                addr.sll_protocol = protocol as u16;
                let name = std::ffi::CString::new(link).unwrap();
                addr.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
                let length = size_of_val(&addr) as u32;
                assert_eq!(libc::bind(fd, (&raw const addr).cast(), length), 0);
                OwnedFd::from_raw_fd(fd)
            };
            let wait = Some(Duration::from_millis(20));
            rustix::net::sockopt::set_socket_timeout(
                &fd,
                rustix::net::sockopt::Timeout::Recv,
                wait,
            )
            .unwrap();
            Self(fd)
        })
    }

    pub fn send(&self, frame: &[u8]) {
        rustix::io::write(&self.0, frame).unwrap();
    }

    pub fn try_send(&self, frame: &[u8]) {
        let _ = rustix::io::write(&self.0, frame);
    }

    /// Whether a frame that contains `mark` comes in.
    pub fn sees(&self, mark: &[u8]) -> bool {
        self.waits(mark, ARRIVES)
    }

    pub fn sees_not(&self, mark: &[u8]) -> bool {
        !self.waits(mark, NEVER)
    }

    /// All that came in until now.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = [0; 2048];
        while let Ok(length) = rustix::io::read(&self.0, &mut frame) {
            frames.push(frame[..length].to_vec());
        }
        frames
    }

    fn waits(&self, mark: &[u8], wait: Duration) -> bool {
        let end = Instant::now() + wait;
        let mut frame = [0; 2048];
        while Instant::now() < end {
            if let Ok(length) = rustix::io::read(&self.0, &mut frame)
                && frame[..length].windows(mark.len()).any(|part| part == mark)
            {
                return true;
            }
        }
        false
    }
}
