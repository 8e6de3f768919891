//! Ports and hardware addresses, as people write them and as records hold them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Inner port to public port. As JSON: `{"80": 20000, "53/udp": 20001}`.
pub type PortMap = BTreeMap<InnerPort, u16>;

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A port inside a Vm. Written `80` (TCP) or `53/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InnerPort {
    /// 1 to 65535.
    pub port: u16,
    /// TCP unless said otherwise.
    pub protocol: Protocol,
}

impl fmt::Display for InnerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.port),
            Protocol::Udp => write!(f, "{}/udp", self.port),
        }
    }
}

/// A text that is no `PORT`, `PORT/tcp` or `PORT/udp` with a port from 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no port; write a number from 1 to 65535, with /tcp or /udp behind it if wanted"
)]
pub struct ParsePortError {
    /// What was given.
    pub text: String,
}

impl FromStr for InnerPort {
    type Err = ParsePortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Some(Protocol::Tcp)),
            Some((number, "udp")) => (number, Some(Protocol::Udp)),
            Some((number, _)) => (number, None),
        };
        // `u16::from_str` takes a leading `+`; a port has digits only.
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match (number.parse(), protocol) {
            (Ok(port), Some(protocol)) if port > 0 && digits => Ok(Self { port, protocol }),
            _ => Err(ParsePortError { text: text.to_owned() }),
        }
    }
}

impl Serialize for InnerPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InnerPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A hardware address. Written `82:17:0d:00:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address of the machine that has `ip`: `82:17:0d` and the last three bytes of `ip`.
    pub fn of_ip(ip: Ipv4Addr) -> Self {
        let [_, a, b, c] = ip.octets();
        Self([0x82, 0x17, 0x0d, a, b, c])
    }

    /// The address of a host's end of the tunnel that has `ip`: `82:17:0f` and its last three bytes.
    pub fn of_tunnel(ip: Ipv4Addr) -> Self {
        let [_, a, b, c] = ip.octets();
        Self([0x82, 0x17, 0x0f, a, b, c])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseMacError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(refuse)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

/// A text that is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no hardware address; write six bytes as in 82:17:0d:00:00:02")]
pub struct ParseMacError {
    /// What was given.
    pub text: String,
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        for (text, port, protocol) in
            [("80", 80, Protocol::Tcp), ("1/tcp", 1, Protocol::Tcp), ("53/udp", 53, Protocol::Udp)]
        {
            assert_eq!(text.parse(), Ok(InnerPort { port, protocol }));
        }
        for text in
            ["", "0", "65536", "-1", "+1", "80/", "80/sctp", "/udp", "8 0", "80/tcp/tcp", "0x50"]
        {
            assert!(text.parse::<InnerPort>().is_err(), "{text:?}");
        }
        let map =
            PortMap::from([("53/udp".parse().unwrap(), 20001), ("80".parse().unwrap(), 20000)]);
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(json, r#"{"53/udp":20001,"80":20000}"#);
        assert_eq!(serde_json::from_str::<PortMap>(&json).unwrap(), map);
    }

    #[test]
    fn mac_follows_from_the_address() {
        let mac = MacAddr::of_ip(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(mac.to_string(), "82:17:0d:01:02:03");
        assert_eq!("82:17:0d:01:02:03".parse(), Ok(mac));
        for text in [
            "",
            "82:17:0d:01:02",
            "82:17:0d:01:02:03:04",
            "82:17:0d:01:02:3",
            "82-17-0d-01-02-03",
            "zz:17:0d:01:02:03",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?}");
        }
    }
}
