//! File copies between host and guest: an archive that goes over a stream.

use std::path::Path;

use tt_guest::frame::{self, Kind, MAX_PAYLOAD};
use tt_guest::message::{FailureCode, GuestMessage};
use tt_guest::tar::{Limits, Packer, Unpacker};

use super::outbox::{Outbox, SessionEnded};
use super::refusal::Refusal;
use super::stream::{Stream, View};

/// Unpacks what the host sends at `path`.
pub fn copy_in(
    outbox: &Outbox,
    stream: &Stream,
    path: &str,
    mode: Option<u32>,
) -> Result<GuestMessage, Refusal> {
    // The host owns this disk, so it may fill it.
    let mut unpacker = Unpacker::new(absolute(path)?, None, mode, Limits::NONE)?;
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let view = wait(stream, |view| view.input > 0 || view.input_ended)?;
        if view.input == 0 {
            unpacker.finish()?;
            return Ok(done(stream));
        }
        let count = stream.peek_input(&mut buffer);
        unpacker.push(&buffer[..count])?;
        if let Some(credit) = stream.consume_input(count) {
            outbox.send(stream.epoch, frame::encode_credit(stream.id, credit)).map_err(ended)?;
        }
    }
}

/// Sends the archive of `path`.
pub fn copy_out(outbox: &Outbox, stream: &Stream, path: &str) -> Result<GuestMessage, Refusal> {
    let mut packer = Packer::new(absolute(path)?)?;
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let most = wait(stream, |view| view.sendable > 0)?.sendable;
        let count = packer.fill(&mut buffer[..most])?;
        let kind = if count == 0 { Kind::StdoutEof } else { Kind::Stdout };
        let frame = frame::encode(stream.id, kind, &buffer[..count])?;
        outbox.send(stream.epoch, frame).map_err(ended)?;
        if count == 0 {
            return Ok(done(stream));
        }
        stream.sent(count);
    }
}

fn wait(stream: &Stream, enough: impl Fn(View) -> bool) -> Result<View, Refusal> {
    loop {
        let view = stream.view();
        if view.cancelled {
            return Err(Refusal::new(FailureCode::Cancelled, "the host gave the copy up"));
        }
        if enough(view) {
            return Ok(view);
        }
        stream.wake.wait();
    }
}

fn absolute(path: &str) -> Result<&Path, Refusal> {
    let path = Path::new(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Refusal::new(
        FailureCode::BadPath,
        format!("the path {path:?} in the guest must be absolute"),
    ))
}

fn ended(_: SessionEnded) -> Refusal {
    Refusal::new(FailureCode::Cancelled, "the session has ended")
}

fn done(stream: &Stream) -> GuestMessage {
    GuestMessage::Exited { stream: stream.id, code: Some(0), signal: None }
}
