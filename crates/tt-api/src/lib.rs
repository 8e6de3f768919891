//! The REST surface of TT, both ends.
//!
//! The server is check -> plan -> one commit: a handler reads rows, calls the pure planners of
//! `tt-model` and commits one guarded change. It never acts on a host: what it committed, the
//! host's own watch finds. Streams go through [`access::HostAccess`] and change no record.

pub mod access;
pub mod client;
pub mod error;
pub mod server;
pub mod views;
mod wire;

pub use client::Client;
pub use error::{ClientError, Problem};
