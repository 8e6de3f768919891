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

/// What goes out is typed. What comes in is read by hand: the crate's reader prints the whole
/// answer for each element in it, which takes two minutes for 60,000 elements.
#[derive(Debug)]
pub(crate) enum Message {
    Ask(NetfilterMessage),
    Answer(Vec<u8>),
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Ask(message) => NetlinkSerializable::message_type(message),
            Self::Answer(_) => NLMSG_NOOP,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Ask(message) => NetlinkSerializable::buffer_len(message),
            Self::Answer(bytes) => bytes.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Ask(message) => message.serialize(buffer),
            Self::Answer(bytes) => buffer.copy_from_slice(bytes),
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

/// The attributes in a row of them.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Vec<NlaBuffer<&[u8]>>> {
    let attributes: Result<_, _> = NlasIterator::new(bytes).collect();
    attributes.map_err(|error: DecodeError| io::Error::other(error.to_string()))
}
