//! Where a Vm may connect to: a network or a name, and one of its ports if not all. Values only.

use crate::InnerPort;
use crate::check::quoted;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A name in a rule has at most that many bytes, so that a rule fits the comment of an element of nftables (255).
pub const RULE_NAME_BYTES_MAX: usize = 240;
/// Bytes of a label (RFC 1035 2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Any name below another one.
const BELOW: &str = "*.";

/// A destination with a port or all ports. Written `192.0.2.7`, `192.0.2.0/24`, `192.0.2.7:443` (TCP),
/// `192.0.2.0/24:53/udp`, `2001:db8::/32`, `[2001:db8::7]:443`, `example.org`, `*.example.org:443`. Without a port it covers every protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetRule {
    /// Where.
    pub to: Destination,
    /// The port; all if missing.
    pub port: Option<InnerPort>,
}

/// See [`NetRule`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// Addresses; no bit is set beyond the prefix.
    Net(IpNet),
    /// What the Env's resolver finds under a name.
    Name(NamePattern),
}

/// A name, or any name below one: `example.org`, `*.example.org`. In lower case, of letters, digits, `-`
/// and `_`, of two labels at least: names of one label are those of members.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    name: String,
    is_below: bool,
}

impl NetRule {
    /// The name whose addresses it covers, if it is no network.
    pub fn name(&self) -> Option<&NamePattern> {
        match &self.to {
            Destination::Net(_) => None,
            Destination::Name(name) => Some(name),
        }
    }
}

impl NamePattern {
    /// Whether `name` is covered: in lower case, without a dot at its end. `*.example.org` covers neither
    /// `example.org` nor what is written with other characters than names of hosts.
    pub fn covers(&self, name: &str) -> bool {
        if !name.bytes().all(|byte| is_name_byte(byte) || byte == b'.') {
            return false;
        }
        match self.is_below {
            false => name == self.name,
            true => name
                .strip_suffix(&self.name)
                .is_some_and(|head| head.strip_suffix('.').is_some_and(|below| !below.is_empty())),
        }
    }
}

impl FromStr for NamePattern {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, is_below) = match text.strip_prefix(BELOW) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let labels: Vec<&str> = name.split('.').collect();
        let is_label = |label: &&str| {
            let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
            let bytes = label.as_bytes();
            bytes.len() <= LABEL_BYTES_MAX
                && bytes.iter().all(|byte| is_name_byte(*byte))
                && is_edge(bytes.first().copied())
                && is_edge(bytes.last().copied())
        };
        // What ends with a number is an address, or was meant to be one.
        let is_number = |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit());
        let is_name = name.len() <= RULE_NAME_BYTES_MAX
            && (labels.len() >= 2 || is_below)
            && labels.iter().all(is_label)
            && !labels.last().is_some_and(is_number);
        match is_name {
            true => Ok(Self { name, is_below }),
            false => Err(ParseRuleError { text: text.to_owned() }),
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_below { BELOW } else { "" }, self.name)
    }
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            // A port after an address of IPv6 could be a part of it.
            Destination::Net(net @ IpNet::V6(_)) if self.port.is_some() => {
                write!(f, "[{}]", Shown(net))?;
            }
            Destination::Net(net) => write!(f, "{}", Shown(net))?,
            Destination::Name(name) => write!(f, "{name}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// A network, or the one address that it is.
struct Shown<'a>(&'a IpNet);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => write!(f, "{}", self.0.addr()),
            false => write!(f, "{}", self.0),
        }
    }
}

/// A text that is no [`NetRule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is no destination; write 192.0.2.7, 192.0.2.0/24, 192.0.2.7:443, 192.0.2.0/24:53/udp, 2001:db8::/32, \
     [2001:db8::7]:443, example.org or *.example.org:443",
    quoted(.text)
)]
pub struct ParseRuleError {
    /// What was given.
    pub text: String,
}

impl FromStr for NetRule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseRuleError { text: text.to_owned() };
        if let Some(net) = parse_six(text) {
            return Ok(Self { to: Destination::Net(net), port: None });
        }
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((to, rest)) = bracketed {
            let port = rest.strip_prefix(':').ok_or_else(refuse)?;
            let port = Some(port.parse().map_err(|_| refuse())?);
            let to = Destination::Net(parse_six(to).ok_or_else(refuse)?);
            return Ok(Self { to, port });
        }
        let (to, port) = match text.split_once(':') {
            Some((to, port)) => (to, Some(port.parse().map_err(|_| refuse())?)),
            None => (text, None),
        };
        let to = match (to.parse::<Ipv4Addr>(), to.parse::<Ipv4Net>()) {
            (Ok(addr), _) => Destination::Net(IpAddr::from(addr).into()),
            (_, Ok(net)) if net == net.trunc() => Destination::Net(net.into()),
            (_, Ok(_)) => return Err(refuse()),
            _ => Destination::Name(to.parse().map_err(|_| refuse())?),
        };
        Ok(Self { to, port })
    }
}

/// An address or network of IPv6; none that stands for one of IPv4, which is another way to the same.
fn parse_six(text: &str) -> Option<IpNet> {
    let net: IpNet = match text.parse::<Ipv6Addr>() {
        Ok(addr) if addr.to_ipv4_mapped().is_some() => return None,
        Ok(addr) => IpAddr::from(addr).into(),
        Err(_) => text.parse().ok()?,
    };
    (matches!(net, IpNet::V6(_)) && net == net.trunc()).then_some(net)
}

impl Serialize for NetRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> NetRule {
        text.parse().unwrap()
    }

    #[test]
    fn destinations_are_read_and_written() {
        for text in [
            "192.0.2.7",
            "192.0.2.0/24",
            "192.0.2.7:443",
            "192.0.2.0/24:53/udp",
            "0.0.0.0/0",
            "2001:db8::7",
            "2001:db8::/32",
            "::/0",
            "[2001:db8::7]:443",
            "[2001:db8::/32]:53/udp",
            "example.org",
            "*.example.org",
            "*.org:443",
            "a-b.c_d.1a:53/udp",
            "xn--bcher-kva.example:80",
        ] {
            assert_eq!(rule(text).to_string(), text);
            let json = serde_json::to_string(&rule(text)).unwrap();
            assert_eq!(serde_json::from_str::<NetRule>(&json).unwrap(), rule(text));
        }
        assert_eq!(rule("Example.ORG.:443"), rule("example.org:443"));
        let long = format!("{}org", "a.".repeat(RULE_NAME_BYTES_MAX / 2));
        let label = format!("{}.org", "a".repeat(LABEL_BYTES_MAX + 1));
        for text in [
            "",
            ":",
            "192.0.2",
            "192.0.2.7/24",
            "192.0.2.0/33",
            "192.0.2.300",
            "192.0.2.7:",
            "192.0.2.7:0",
            "192.0.2.7:80/sctp",
            ":80",
            "2001:db8::7/32",
            "2001:db8::/129",
            "2001:db8::7:0:443/udp",
            "[2001:db8::7]",
            "[2001:db8::7]443",
            "[2001:db8::7]:0",
            "[2001:db8::7",
            "2001:db8::7]:443",
            "[192.0.2.7]:443",
            "[example.org]:443",
            "::ffff:192.0.2.7",
            "fe80::1%eth0",
            "192.0.2.7:80:80",
            "*",
            "*.",
            "web",
            "localhost:80",
            "a.*.org",
            "*a.org",
            "**.org",
            "a..org",
            ".org",
            "-a.org",
            "a-.org",
            "a b.org",
            "b\u{fc}cher.example",
            "example.org/24",
            "https://example.org",
            "example.org:443,",
            &long,
            &label,
        ] {
            let refused = text.parse::<NetRule>().unwrap_err().to_string();
            assert!(refused.len() < 300, "{refused}");
        }
    }

    #[test]
    fn a_name_covers_itself_or_what_is_below_it() {
        let covers = |text: &str, name: &str| rule(text).name().unwrap().covers(name);
        assert!(covers("example.org:443", "example.org"));
        for name in ["a.example.org", "example.org.", "xexample.org", "org", ""] {
            assert!(!covers("example.org", name), "{name}");
        }
        assert!(covers("*.example.org", "a.example.org"));
        assert!(covers("*.example.org", "_a.b-2.example.org"));
        for name in ["example.org", ".example.org", "aexample.org", "a.example.org.evil.net"] {
            assert!(!covers("*.example.org", name), "{name}");
        }
        // Of one label below `org`, with a dot in it.
        assert!(!covers("*.example.org", "a\\.example.org"));
        assert!(!covers("*.example.org", "A.example.org"));
        assert!(rule("192.0.2.7").name().is_none());
    }
}
