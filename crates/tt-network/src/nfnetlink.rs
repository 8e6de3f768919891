//! Messages of netfilter's subsystems, as they go out and come in. It knows none of them.

use netlink_packet_core::{
    DecodeError, NLMSG_NOOP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlaBuffer,
    NlasIterator,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use std::io;

/// Length of `struct nfgenmsg`, which precedes the attributes.
const NETFILTER_HEADER_BYTES: usize = 4;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEAD_BYTES: usize = 4;

/// What goes out is typed. What comes in is read by hand: the crate's reader prints the whole
/// answer for each element in it, which takes two minutes for 60,000 elements.
#[derive(Debug)]
pub(crate) enum Message {
    Ask(NetfilterMessage),
    /// Type and body of a message that the crate can not write.
    Raw(u16, Vec<u8>),
    Answer(Vec<u8>),
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Ask(message) => NetlinkSerializable::message_type(message),
            Self::Raw(kind, _) => *kind,
            Self::Answer(_) => NLMSG_NOOP,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Ask(message) => NetlinkSerializable::buffer_len(message),
            Self::Raw(_, bytes) | Self::Answer(bytes) => bytes.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Ask(message) => message.serialize(buffer),
            Self::Raw(_, bytes) | Self::Answer(bytes) => buffer.copy_from_slice(bytes),
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::Answer(payload.to_vec()))
    }
}

impl Message {
    /// All attributes of an answer.
    pub(crate) fn all(&self) -> io::Result<Vec<NlaBuffer<&[u8]>>> {
        let Self::Answer(bytes) = self else {
            return Ok(Vec::new());
        };
        parse(bytes.get(NETFILTER_HEADER_BYTES..).unwrap_or_default())
    }

    /// The values of all attributes of that kind.
    pub(crate) fn attributes(&self, kind: u16) -> io::Result<Vec<Vec<u8>>> {
        let found = self.all()?.into_iter().filter(|a| a.kind() == kind);
        Ok(found.map(|attribute| attribute.value().to_vec()).collect())
    }
}

/// A message that is to be answered.
pub(crate) fn ask(
    family: NetfilterProtoFamily,
    message: impl Into<NetfilterMessageInner>,
) -> Message {
    Message::Ask(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message))
}

/// A message of attributes that [`attribute`] wrote. `kind`: subsystem and message of it.
pub(crate) fn raw(kind: [u8; 2], family: NetfilterProtoFamily, attributes: &[Vec<u8>]) -> Message {
    let [subsystem, message] = kind;
    let mut body = vec![family.into(), 0, 0, 0];
    body.extend(attributes.concat());
    Message::Raw(u16::from(subsystem) << 8 | u16::from(message), body)
}

/// An attribute as bytes: length, kind, value, filled up to four bytes (netlink(7)).
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // All values here are a few numbers.
    let length = (ATTRIBUTE_HEAD_BYTES + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in a row of them.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Vec<NlaBuffer<&[u8]>>> {
    let attributes: Result<_, _> = NlasIterator::new(bytes).collect();
    attributes.map_err(|error: DecodeError| io::Error::other(error.to_string()))
}
