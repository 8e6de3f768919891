//! One netlink socket: a question goes out, its answers come back, in order. It knows no message
//! of any family and never waits without a limit.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The kernel answers at once, but may wait for other holders of its lock for links.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel fills at most 32 KiB per answer of a dump; one datagram must fit.
const BUFFER_BYTES: usize = 64 << 10;

pub(crate) struct Wire {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.socket.as_raw_fd())
    }
}

impl Wire {
    /// A socket of `protocol` (`NETLINK_ROUTE` …) in the calling thread's network namespace, where
    /// it stays.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Asks for an acknowledgement, and returns what came before it.
    pub(crate) fn ask<M>(&mut self, message: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let sequence = self.next();
        let bytes = emit(message, NLM_F_ACK | flags, sequence);
        self.send(&bytes)?;
        self.collect(sequence)
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump<M>(&mut self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let sequence = self.next();
        let bytes = emit(message, NLM_F_DUMP, sequence);
        self.send(&bytes)?;
        self.collect(sequence)
    }

    /// The number for the next message.
    pub(crate) fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddr::new(0, 0);
        let sent = self.socket.send_to(bytes, &kernel, 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::other("netlink took part of a message"))
        }
    }

    /// Receives one datagram and gives each message in it to `take`.
    pub(crate) fn receive<M>(
        &mut self,
        mut take: impl FnMut(u32, NetlinkPayload<M>) -> io::Result<()>,
    ) -> io::Result<()>
    where
        M: NetlinkDeserializable,
    {
        self.buffer.clear();
        self.socket.recv_from(&mut self.buffer, 0)?;
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(&rest).map_err(malformed)?.length() as usize;
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(malformed)?;
            take(message.header.sequence_number, message.payload)?;
            // Messages start at multiples of four bytes; the last one may end earlier.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn collect<M: NetlinkDeserializable>(&mut self, sequence: u32) -> io::Result<Vec<M>> {
        let mut found = Vec::new();
        let mut is_done = false;
        while !is_done {
            self.receive(|number, payload| {
                if number != sequence {
                    return Ok(());
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) => match error.code {
                        None => is_done = true,
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => is_done = true,
                    NetlinkPayload::Overrun(_) => {
                        return Err(io::Error::other("netlink lost part of an answer"));
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

/// The bytes of a request.
pub(crate) fn emit<M: NetlinkSerializable>(message: M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn malformed(error: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
