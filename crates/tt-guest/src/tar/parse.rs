//! Reads an archive piece by piece, without I/O and in bounded memory. It checks form, not intent: whether a name may be
//! written is for `unpack` to say.

use super::BLOCK;
use super::header::{self, EntryKind, MAX_NAME, Raw};
use crate::Error;

/// What comes next in an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new entry.
    Entry {
        /// Its name, not checked in any way but for its length and encoding.
        name: &'a str,
        /// Permission bits.
        mode: u32,
        /// What it is.
        kind: EntryKind,
    },
    /// More of the current file's data.
    Data(&'a [u8]),
    /// The current file is complete.
    FileEnd,
}

#[derive(Debug)]
enum State {
    Header,
    Data { left: u64, padding: usize },
    LongName { left: usize, padding: usize, link: bool, text: Vec<u8> },
    Padding { left: usize },
    Ended,
}

/// An archive's parser.
#[derive(Debug)]
pub struct Parser {
    state: State,
    block: Vec<u8>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            long_name: None,
            long_link: None,
        }
    }
}

impl Parser {
    /// Takes the next bytes and tells `each` what they hold. Bytes after the archive's end are ignored.
    ///
    /// # Errors
    /// `ReadArchive` or `AcceptEntry` for what is malformed, and whatever `each` returns. The parser is then of no
    /// further use.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Ended => return Ok(()),
                State::Header => {
                    take(&mut bytes, BLOCK - self.block.len(), |piece| {
                        self.block.extend_from_slice(piece)
                    });
                    if let Ok(block) = <[u8; BLOCK]>::try_from(self.block.as_slice()) {
                        self.block.clear();
                        self.state = self.begin(&block, each)?;
                    }
                }
                State::Data { left, padding } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (piece, rest) = bytes.split_at(count);
                    bytes = rest;
                    *left -= count as u64;
                    each(Event::Data(piece))?;
                    if *left == 0 {
                        self.state = State::Padding { left: *padding };
                        each(Event::FileEnd)?;
                    }
                }
                State::LongName { left, padding, link, text } => {
                    *left -= take(&mut bytes, *left, |piece| text.extend_from_slice(piece));
                    if *left == 0 {
                        text.pop_if(|byte| *byte == 0);
                        let name = Some(std::mem::take(text));
                        *(if *link { &mut self.long_link } else { &mut self.long_name }) = name;
                        self.state = State::Padding { left: *padding };
                    }
                }
                State::Padding { left } => {
                    *left -= take(&mut bytes, *left, |_| ());
                }
            }
            if matches!(self.state, State::Padding { left: 0 }) {
                self.state = State::Header;
            }
        }
        Ok(())
    }

    /// Says whether the archive was complete.
    ///
    /// # Errors
    /// `ReadArchive` if its end was not reached.
    pub fn finish(&self) -> Result<(), Error> {
        match self.state {
            State::Ended => Ok(()),
            _ => Err(Error::ReadArchive { why: "it ends too early" }),
        }
    }

    fn begin(
        &mut self,
        block: &[u8; BLOCK],
        each: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<State, Error> {
        let Some(raw) = header::decode(block)? else {
            return Ok(State::Ended);
        };
        if let b'L' | b'K' = raw.kind {
            return long_name(&raw);
        }
        let name = utf8(self.long_name.take().unwrap_or(raw.name))?;
        let link = utf8(self.long_link.take().unwrap_or(raw.link))?;
        let refuse = |why| Err(Error::AcceptEntry { name: readable(&name), why });
        let kind = match raw.kind {
            b'0' | 0 | b'7' => EntryKind::File { bytes: raw.bytes },
            b'5' => EntryKind::Directory,
            b'2' => EntryKind::Symlink { target: link },
            b'1' => return refuse("hard links are not copied"),
            b'3' | b'4' | b'6' => return refuse("device nodes and pipes are not copied"),
            _ => return refuse("only files, directories and symbolic links are copied"),
        };
        let bytes = if let EntryKind::File { bytes } = kind { bytes } else { 0 };
        each(Event::Entry { name: &name, mode: raw.mode, kind: kind.clone() })?;
        match kind {
            EntryKind::File { bytes: 0 } => {
                each(Event::FileEnd)?;
                Ok(State::Header)
            }
            EntryKind::File { .. } => {
                Ok(State::Data { left: bytes, padding: header::padding(bytes) })
            }
            _ if raw.bytes == 0 => Ok(State::Header),
            _ => refuse("only files have data"),
        }
    }
}

fn long_name(raw: &Raw) -> Result<State, Error> {
    match usize::try_from(raw.bytes) {
        Ok(left @ 1..) if left <= MAX_NAME + 1 => Ok(State::LongName {
            left,
            padding: header::padding(raw.bytes),
            link: raw.kind == b'K',
            text: Vec::with_capacity(left),
        }),
        _ => Err(Error::ReadArchive { why: "a long name is empty or longer than 4095 bytes" }),
    }
}

/// Splits at most `most` bytes off, hands them over and returns how many there were.
fn take(bytes: &mut &[u8], most: usize, hand: impl FnOnce(&[u8])) -> usize {
    let (piece, rest) = bytes.split_at(most.min(bytes.len()));
    hand(piece);
    *bytes = rest;
    piece.len()
}

fn utf8(name: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(name).map_err(|_| Error::ReadArchive { why: "a name is not UTF-8" })
}

/// A name short enough for a message.
pub(super) fn readable(name: &str) -> String {
    name.chars().take(80).collect()
}
