//! What a TT host and the agent inside a guest say to each other, and how: frames, messages, flow control and the
//! archive format of file copies.
//!
//! The library does no transport I/O and has no clock: the host daemon drives it over a unix socket, the agent over a
//! virtio-serial port. Only [`tar`] touches files, beneath the directory that its caller names. Nothing in here panics,
//! or allocates beyond a fixed bound, whatever bytes the other side sends.
//!
//! # The conversation
//! 1. The host connects, sends [`frame::resync`] and [`message::HostMessage::Hello`] with a nonce that nobody can guess,
//!    and ignores every frame until [`message::GuestMessage::HelloAck`] brings that nonce back. It may do so before the
//!    guest has booted: the bytes wait in the channel.
//! 2. It sends [`message::HostMessage::SetClock`] (the time in `Hello` may have waited) and
//!    [`message::HostMessage::Setup`], and takes `SetupDone` for *ready*.
//! 3. It opens streams with ids of its own choice (never 0, never twice in one session) by `Exec`, `CopyIn` or `CopyOut`.
//!    Each ends with exactly one `Exited` or `Failed`, after all of its data.
//! 4. A [`message::GuestMessage::Ready`] at any time means that the agent has no session: it has just started, perhaps
//!    after a reboot. The host sends `Hello` again: with the same nonce if that was not acknowledged yet (twice is
//!    harmless), with a new one otherwise, for the old session is lost.

pub mod container;
pub mod entry;
mod error;
pub mod flow;
pub mod frame;
pub mod message;
pub mod session;
pub mod tar;

pub use error::Error;
