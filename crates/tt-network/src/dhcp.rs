//! What a guest that asks by DHCP is told (RFC 2131, RFC 2132). Pure: bytes in, bytes out. Nothing is
//! remembered: a member's address follows from its hardware address alone, so every answer is the
//! same before and after a restart. It never trusts a length in the message.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use tt_model::MacAddr;

/// Where servers and clients listen (IANA).
pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;
/// Largest message that is read: the option `maximum message size` is an offer, nobody needs more.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1500;
/// Least length of a message (RFC 951); some clients drop shorter ones.
const MESSAGE_BYTES_MIN: usize = 300;
/// Up to the options, the magic number among it.
const HEAD_BYTES: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Options in one message: more than there are kinds that anybody sends.
const OPTIONS_MAX: usize = 128;

/// How long an address is lent: a daemon that is away for less is not missed.
const LEASE_SECONDS: u32 = 86_400;
/// After that time a client asks again, so that it hears of changes within the hour.
const RENEW_SECONDS: u32 = 3_600;
/// After that time it asks everybody (7/8 of the lease, as RFC 2131 has it).
const REBIND_SECONDS: u32 = 75_600;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: [u8; 2] = [1, 6];
const BROADCAST_FLAG: u8 = 0x80;

// Options of RFC 2132.
const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const MTU: u8 = 26;
const ADDRESS_WANTED: u8 = 50;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const RENEW: u8 = 58;
const REBIND: u8 = 59;
const END: u8 = 255;

// Kinds of messages.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const ASK: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// What all members of an Env are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Where inner addresses come from; its first address is the gateway.
    pub(crate) range: Ipv4Net,
    /// Largest packet on the Env's bridge, in bytes.
    pub(crate) mtu: u16,
}

/// An answer and where it goes, to [`CLIENT_PORT`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) message: Vec<u8>,
    pub(crate) to: Ipv4Addr,
    /// Whose question it was.
    pub(crate) member: Ipv4Addr,
}

/// What matters of a message.
#[derive(Debug)]
struct Asked<'a> {
    head: &'a [u8],
    kind: u8,
    /// The address that it has, or none (`ciaddr`).
    has: Ipv4Addr,
    mac: MacAddr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Terms {
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 1)
    }

    /// The address of the member with that hardware address; none for another one's.
    fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        let [_, _, _, a, b, c] = mac.0;
        let [first, ..] = self.range.network().octets();
        let addr = Ipv4Addr::new(first, a, b, c);
        let is_members = MacAddr::of_ip(addr) == mac
            && self.range.contains(&addr)
            && addr != self.range.network()
            && addr != self.range.broadcast()
            && addr != self.gateway();
        is_members.then_some(addr)
    }

    /// Answers `message` that came from `from`; none if it is no question to this server. `name_of`:
    /// the name of a member.
    pub(crate) fn answer(
        &self,
        message: &[u8],
        from: Ipv4Addr,
        name_of: impl FnOnce(Ipv4Addr) -> Option<String>,
    ) -> Option<Answer> {
        let asked = read(message)?;
        let addr = self.address_of(asked.mac)?;
        // Who has an address sends from it, or from none; the rules let no other one pass.
        if !from.is_unspecified() && from != addr {
            return None;
        }
        let is_ours = asked.server.is_none_or(|server| server == self.gateway());
        let claims = Some(asked.has).filter(|has| !has.is_unspecified()).or(asked.wanted);
        let kind = match asked.kind {
            DISCOVER => OFFER,
            ASK if !is_ours => return None,
            ASK if claims == Some(addr) => ACK,
            ASK if claims.is_some() => NAK,
            INFORM if asked.has == addr => ACK,
            _ => return None,
        };
        let is_lent = kind != NAK && asked.kind != INFORM;
        let mut reply = self.head(&asked, kind, Some(addr).filter(|_| is_lent));
        if is_lent {
            option(&mut reply, LEASE, &LEASE_SECONDS.to_be_bytes());
            option(&mut reply, RENEW, &RENEW_SECONDS.to_be_bytes());
            option(&mut reply, REBIND, &REBIND_SECONDS.to_be_bytes());
        }
        if kind != NAK {
            option(&mut reply, SUBNET_MASK, &self.range.netmask().octets());
            option(&mut reply, ROUTER, &self.gateway().octets());
            option(&mut reply, DNS, &self.gateway().octets());
            option(&mut reply, MTU, &self.mtu.to_be_bytes());
            if let Some(name) = name_of(addr) {
                option(&mut reply, HOST_NAME, name.as_bytes());
            }
        }
        reply.push(END);
        reply.resize(reply.len().max(MESSAGE_BYTES_MIN), PAD);
        Some(Answer { message: reply, to: asked.answered_at(kind, addr), member: addr })
    }

    /// The fixed part, the kind and who answers.
    fn head(&self, asked: &Asked<'_>, kind: u8, lent: Option<Ipv4Addr>) -> Vec<u8> {
        let mut reply = vec![0; HEAD_BYTES];
        // Transaction, flags and hardware address are the client's.
        for part in [4..8, 10..12, 28..44] {
            reply[part.clone()].copy_from_slice(&asked.head[part]);
        }
        reply[0] = REPLY;
        reply[1..3].copy_from_slice(&ETHERNET);
        if kind == ACK {
            reply[12..16].copy_from_slice(&asked.has.octets());
        }
        if let Some(lent) = lent {
            reply[16..20].copy_from_slice(&lent.octets());
        }
        reply[236..240].copy_from_slice(&MAGIC);
        option(&mut reply, KIND, &[kind]);
        option(&mut reply, SERVER, &self.gateway().octets());
        reply
    }
}

impl Asked<'_> {
    /// RFC 2131 4.1: a refusal goes to all, an answer to the address that the client has or, if it can
    /// hear that, gets.
    fn answered_at(&self, kind: u8, addr: Ipv4Addr) -> Ipv4Addr {
        if kind == NAK {
            Ipv4Addr::BROADCAST
        } else if !self.has.is_unspecified() || self.head[10] & BROADCAST_FLAG == 0 {
            addr
        } else {
            Ipv4Addr::BROADCAST
        }
    }
}

/// None: no question of a client on Ethernet that asks without a relay.
fn read(message: &[u8]) -> Option<Asked<'_>> {
    if message.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let (head, options) = message.split_at_checked(HEAD_BYTES)?;
    let has_relay = head[24..28] != [0; 4];
    if head[0] != REQUEST || head[1..3] != ETHERNET || has_relay || head[236..240] != MAGIC {
        return None;
    }
    let mut asked = Asked {
        head,
        kind: 0,
        has: address(&head[12..16])?,
        mac: MacAddr(head[28..34].try_into().ok()?),
        wanted: None,
        server: None,
    };
    for (code, value) in read_options(options)? {
        match code {
            KIND => asked.kind = *value.first().filter(|_| value.len() == 1)?,
            ADDRESS_WANTED => asked.wanted = Some(address(value)?),
            SERVER => asked.server = Some(address(value)?),
            _ => {}
        }
    }
    Some(asked)
}

/// All options up to their end, which may be missing; none if one is longer than the message.
fn read_options(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut options = Vec::new();
    while let [code, rest @ ..] = bytes {
        match *code {
            PAD => bytes = rest,
            END => break,
            code => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if options.len() == OPTIONS_MAX {
                    return None;
                }
                options.push((code, value));
                bytes = rest;
            }
        }
    }
    Some(options)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// Values here are at most a name of 63 bytes.
fn option(message: &mut Vec<u8>, code: u8, value: &[u8]) {
    message.extend([code, value.len() as u8]);
    message.extend(value);
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
