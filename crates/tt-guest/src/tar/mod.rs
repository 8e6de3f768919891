//! File copies as archives: a small ustar reader and writer that host and agent share, since a guest may have no `tar`.
//!
//! [`Packer`] makes the archive of one file or directory, [`Unpacker`] writes one beneath a directory and refuses all
//! that would leave it. It is written for a hostile archive: names are checked, directories are entered one component at
//! a time and never through a symlink, devices and hard links are refused, and set-id bits are dropped.

mod header;
mod pack;
mod parse;
mod unpack;

pub use header::{EntryKind, MAX_NAME};
pub use pack::Packer;
pub use parse::{Event, Parser};
pub use unpack::{Limits, Unpacker};

/// Archives are made of blocks of this many bytes.
pub(crate) const BLOCK: usize = 512;
