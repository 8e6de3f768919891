//! Where a Vm may connect to: a network, and one of its ports if not all. Values only.

use crate::InnerPort;
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Addresses with a port or all ports. Written `192.0.2.7`, `192.0.2.0/24`, `192.0.2.7:443` (TCP),
/// `192.0.2.0/24:53/udp`. Without a port it covers every protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetRule {
    /// The addresses; no bit is set beyond the prefix.
    pub net: Ipv4Net,
    /// The port; all if missing.
    pub port: Option<InnerPort>,
}

impl NetRule {
    /// Whether a packet of that protocol (number in the IP header) to that port is covered.
    pub fn covers(&self, addr: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let is_port = |rule: InnerPort| rule.port == port && rule.protocol.number() == protocol;
        self.net.contains(&addr) && self.port.is_none_or(is_port)
    }
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net.prefix_len() {
            32 => write!(f, "{}", self.net.addr())?,
            _ => write!(f, "{}", self.net)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// A text that is no [`NetRule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no destination; write 192.0.2.7, 192.0.2.0/24, 192.0.2.7:443 or 192.0.2.0/24:53/udp"
)]
pub struct ParseRuleError {
    /// What was given.
    pub text: String,
}

impl FromStr for NetRule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseRuleError { text: text.to_owned() };
        let (net, port) = match text.split_once(':') {
            Some((net, port)) => (net, Some(port.parse().map_err(|_| refuse())?)),
            None => (text, None),
        };
        let net: Ipv4Net = match net.parse::<Ipv4Addr>() {
            Ok(addr) => addr.into(),
            Err(_) => net.parse().map_err(|_| refuse())?,
        };
        match net == net.trunc() {
            true => Ok(Self { net, port }),
            false => Err(refuse()),
        }
    }
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
    use crate::Protocol;

    #[test]
    fn destinations_are_read_and_written() {
        for text in
            ["192.0.2.7", "192.0.2.0/24", "192.0.2.7:443", "192.0.2.0/24:53/udp", "0.0.0.0/0"]
        {
            let rule: NetRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
            let json = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<NetRule>(&json).unwrap(), rule);
        }
        for text in [
            "",
            ":",
            "192.0.2",
            "192.0.2.7/24",
            "192.0.2.0/33",
            "192.0.2.7:",
            "192.0.2.7:0",
            "192.0.2.7:80/sctp",
            ":80",
            "example.com",
            "2001:db8::1",
            "192.0.2.7:80:80",
        ] {
            assert!(text.parse::<NetRule>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_rule_covers_its_network_and_port() {
        let tcp = Protocol::Tcp.number();
        let rule: NetRule = "192.0.2.0/24:443".parse().unwrap();
        assert!(rule.covers([192, 0, 2, 9].into(), tcp, 443));
        assert!(!rule.covers([192, 0, 3, 9].into(), tcp, 443));
        assert!(!rule.covers([192, 0, 2, 9].into(), tcp, 80));
        assert!(!rule.covers([192, 0, 2, 9].into(), Protocol::Udp.number(), 443));
        let all: NetRule = "192.0.2.9".parse().unwrap();
        assert!(all.covers([192, 0, 2, 9].into(), 1, 0));
    }
}
