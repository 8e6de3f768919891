//! What both ends must spell alike: a header's name, and the binary messages of a stream's
//! WebSocket, one byte that names the channel, then the payload. Pure.

use crate::access::STREAM_MESSAGE_BYTES_MAX;
use crate::views::{StreamEnd, StreamFailure};
use tt_guest::session::{FromGuest, ToGuest};

/// The header with the key of a request that may be repeated.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Largest message of the WebSocket: the channel's byte and a full payload.
pub(crate) const WIRE_BYTES_MAX: usize = STREAM_MESSAGE_BYTES_MAX + 1;

const TO_DATA: u8 = 0;
const TO_EOF: u8 = 1;
const TO_SIGNAL: u8 = 2;
const TO_RESIZE: u8 = 3;
const FROM_STDOUT: u8 = 0;
const FROM_STDERR: u8 = 1;
const FROM_END: u8 = 2;
const FROM_STARTED: u8 = 3;

/// What a client's message says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn decode_to(message: &[u8]) -> Result<ToGuest, &'static str> {
    let (channel, payload) = message.split_first().ok_or("a message has no channel")?;
    match *channel {
        TO_DATA => Ok(ToGuest::Data(payload.to_vec())),
        TO_EOF => Ok(ToGuest::Eof),
        TO_SIGNAL => {
            let bytes = payload.try_into().map_err(|_| "a signal has 4 bytes")?;
            Ok(ToGuest::Signal(i32::from_le_bytes(bytes)))
        }
        TO_RESIZE => match *payload {
            [a, b, c, d] => Ok(ToGuest::Resize {
                rows: u16::from_le_bytes([a, b]),
                cols: u16::from_le_bytes([c, d]),
            }),
            _ => Err("a size has 4 bytes"),
        },
        _ => Err("there is no such channel to the guest"),
    }
}

/// The messages that say it: several if it is too long for one.
pub(crate) fn encode_to(to: &ToGuest) -> Vec<Vec<u8>> {
    match to {
        ToGuest::Data(data) => cut(TO_DATA, data),
        ToGuest::Eof => vec![vec![TO_EOF]],
        ToGuest::Signal(signal) => vec![framed(TO_SIGNAL, &signal.to_le_bytes())],
        ToGuest::Resize { rows, cols } => {
            let [a, b] = rows.to_le_bytes();
            let [c, d] = cols.to_le_bytes();
            vec![vec![TO_RESIZE, a, b, c, d]]
        }
    }
}

/// What a server's message says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn decode_from(message: &[u8]) -> Result<FromGuest, &'static str> {
    let (channel, payload) = message.split_first().ok_or("a message has no channel")?;
    match *channel {
        FROM_STDOUT => Ok(FromGuest::Stdout(payload.to_vec())),
        FROM_STDERR => Ok(FromGuest::Stderr(payload.to_vec())),
        FROM_END => {
            let end = serde_json::from_slice(payload).map_err(|_| "an end is malformed")?;
            let StreamEnd { code, signal, failure } = end;
            Ok(match failure {
                Some(StreamFailure { code, why }) => FromGuest::Failed { code, why },
                None => FromGuest::Exited { code, signal },
            })
        }
        FROM_STARTED => {
            let bytes = payload.try_into().map_err(|_| "a process id has 4 bytes")?;
            Ok(FromGuest::Started { pid: u32::from_le_bytes(bytes) })
        }
        _ => Err("there is no such channel from the guest"),
    }
}

/// The messages that say it: several if it is too long for one.
///
/// # Errors
/// If its JSON can not be written.
pub(crate) fn encode_from(from: &FromGuest) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let end = |end: StreamEnd| Ok(vec![framed(FROM_END, &serde_json::to_vec(&end)?)]);
    match from {
        FromGuest::Stdout(data) => Ok(cut(FROM_STDOUT, data)),
        FromGuest::Stderr(data) => Ok(cut(FROM_STDERR, data)),
        FromGuest::Started { pid } => Ok(vec![framed(FROM_STARTED, &pid.to_le_bytes())]),
        FromGuest::Exited { code, signal } => {
            end(StreamEnd { code: *code, signal: *signal, failure: None })
        }
        FromGuest::Failed { code, why } => {
            // The guest chose the text: it must not outgrow a message.
            let why = why.chars().take(STREAM_MESSAGE_BYTES_MAX / 16).collect();
            let failure = Some(StreamFailure { code: *code, why });
            end(StreamEnd { failure, ..StreamEnd::default() })
        }
    }
}

fn cut(channel: u8, data: &[u8]) -> Vec<Vec<u8>> {
    data.chunks(STREAM_MESSAGE_BYTES_MAX).map(|chunk| framed(channel, chunk)).collect()
}

fn framed(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(payload.len() + 1);
    message.push(channel);
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_guest::message::FailureCode;

    #[test]
    fn what_is_written_is_read() {
        for to in [
            ToGuest::Data(b"x".to_vec()),
            ToGuest::Eof,
            ToGuest::Signal(-15),
            ToGuest::Resize { rows: 24, cols: 65535 },
        ] {
            let messages = encode_to(&to);
            assert_eq!(messages.len(), 1);
            assert_eq!(decode_to(&messages[0]), Ok(to));
        }
        for from in [
            FromGuest::Stdout(vec![0; STREAM_MESSAGE_BYTES_MAX]),
            FromGuest::Stderr(vec![1]),
            FromGuest::Started { pid: u32::MAX },
            FromGuest::Exited { code: Some(3), signal: None },
            FromGuest::Failed { code: FailureCode::NotFound, why: "no".into() },
        ] {
            let messages = encode_from(&from).unwrap();
            assert_eq!(messages.len(), 1);
            assert_eq!(decode_from(&messages[0]), Ok(from));
        }
    }

    #[test]
    fn long_data_is_cut_and_long_reasons_are_shortened() {
        let data = vec![7; 2 * STREAM_MESSAGE_BYTES_MAX + 1];
        let messages = encode_to(&ToGuest::Data(data));
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [65537, 65537, 2]);
        let why = "\u{1}".repeat(1 << 20);
        let failed = FromGuest::Failed { code: FailureCode::Io, why };
        assert!(encode_from(&failed).unwrap()[0].len() <= WIRE_BYTES_MAX);
    }

    #[test]
    fn malformed_messages_are_refused() {
        for message in [&[][..], &[2, 1, 0, 0], &[3, 1, 2, 3], &[4], &[255, 1]] {
            assert!(decode_to(message).is_err(), "{message:?}");
        }
        for message in [&[][..], &[2, b'{'], &[3, 1], &[4]] {
            assert!(decode_from(message).is_err(), "{message:?}");
        }
    }
}
