//! The entries of a layer's tar archive, read from a stream: ustar, pax and GNU's long names. Whoever made it may be an
//! enemy: names, extensions and their number are bounded before anything is kept. It never touches the file system.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Longest name or link target: the kernel's `PATH_MAX` without its final zero.
const NAME_BYTES_MAX: usize = 4095;
/// Largest extension of a header; one with every attribute that is allowed fits.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Extensions before one entry. Writers use three at most: a name, a link's target, pax.
const EXTENSIONS_MAX: u32 = 8;
/// Attributes of one entry, and the size of one; the kernel takes no larger ones.
const XATTRS_MAX: usize = 64;
const XATTR_BYTES_MAX: usize = 64 << 10;
/// Times beyond this (2446, where ext4 ends) are cut.
const TIME_MAX: i64 = (1 << 34) - (1 << 31) - 1;
/// How pax spells attributes.
const XATTR_KEY: &str = "SCHILY.xattr.";

/// One entry, with what it says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As written: relative or not, with whatever is in it.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permissions with set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// What an entry is. Targets are as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File { bytes: u64 },
    Dir,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    Fifo,
    Device,
}

/// Reads entries, and through [`Read`] the data of the one that was answered last.
#[derive(Debug)]
pub(super) struct Entries<R> {
    input: R,
    /// Of the current entry's data, and the zeros behind it.
    data_left: u64,
    padding: u64,
    has_ended: bool,
}

/// What the extensions before an entry say of it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, data_left: 0, padding: 0, has_ended: false }
    }

    /// The next entry; what was not read of the last one is passed over. `None` at the end of the archive.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        for _ in 0..=EXTENSIONS_MAX {
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let bytes = size(&block[124..136])?;
            match block[156] {
                b'L' => extended.path = Some(self.extension(bytes)?),
                b'K' => extended.link = Some(self.extension(bytes)?),
                b'x' => extended.read_pax(&self.extension(bytes)?)?,
                // Speaks of all that follows, and nothing that counts here.
                b'g' => drop(self.extension(bytes)?),
                _ => return self.entry(&block, bytes, extended).map(Some),
            }
        }
        Err(bad(format!("more than {EXTENSIONS_MAX} extensions stand before one entry")))
    }

    /// Reads whatever stands behind the archive, so that all of the input is checked.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop)
    }

    fn entry(&mut self, block: &[u8; BLOCK], bytes: u64, extended: Extended) -> io::Result<Entry> {
        let path = match extended.path {
            Some(path) => path,
            None => name(block),
        };
        let target = extended.link.unwrap_or_else(|| text(&block[157..257]).to_vec());
        for name in [&path, &target] {
            check_name(name)?;
        }
        let bytes = extended.bytes.unwrap_or(bytes);
        let kind = match block[156] {
            // Before POSIX, directories were files with a slash.
            0 | b'0' if path.ends_with(b"/") && bytes == 0 => Kind::Dir,
            0 | b'0' | b'7' => Kind::File { bytes },
            b'1' => Kind::HardLink { target },
            b'2' => Kind::Symlink { target },
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                let problem = format!("it has an entry of type {:?}", char::from(other));
                return Err(bad(problem));
            }
        };
        // Of other kinds the size means nothing, as Go's reader has it: others would see other entries.
        self.data_left = if let Kind::File { bytes } = kind { bytes } else { 0 };
        self.padding = padding(self.data_left);
        let mtime = extended.mtime.or_else(|| signed(&block[136..148])).unwrap_or_default();
        Ok(Entry {
            path,
            kind,
            mode: u32::try_from(size(&block[100..108])?).unwrap_or_default() & 0o7777,
            uid: owner(extended.uid, &block[108..116])?,
            gid: owner(extended.gid, &block[116..124])?,
            mtime: mtime.clamp(0, TIME_MAX),
            xattrs: extended.xattrs,
        })
    }

    /// The next header that is none of zeros alone; `None` at the end.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.has_ended {
            return Ok(None);
        }
        self.skip(self.data_left.saturating_add(self.padding))?;
        (self.data_left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        let len = read_full(&mut self.input, &mut block)?;
        // Some writers leave the end out.
        if len == 0 || (len == BLOCK && block.iter().all(|byte| *byte == 0)) {
            self.has_ended = true;
            return Ok(None);
        }
        if len < BLOCK {
            return Err(cut());
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        if number(&block[148..156]) != Some(sum - own + 8 * u64::from(b' ')) {
            return Err(bad("a header's checksum does not match".into()));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        if bytes > EXTENSION_BYTES_MAX {
            let problem =
                format!("a header's extension has {bytes} bytes, {EXTENSION_BYTES_MAX} at most");
            return Err(bad(problem));
        }
        let mut content = Vec::new();
        (&mut self.input).take(bytes).read_to_end(&mut content)?;
        if (content.len() as u64) < bytes {
            return Err(cut());
        }
        self.skip(padding(bytes))?;
        Ok(content)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())?;
        if skipped < bytes { Err(cut()) } else { Ok(()) }
    }
}

impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.input.read(&mut buffer[..most])? {
            0 => Err(cut()),
            len => {
                self.data_left -= len as u64;
                Ok(len)
            }
        }
    }
}

impl Extended {
    /// Takes the records of a pax header: `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let malformed = || bad("a pax header is malformed".into());
        while !records.is_empty() {
            let space = records.iter().take(20).position(|byte| *byte == b' ');
            let space = space.ok_or_else(malformed)?;
            let len = decimal(&records[..space]).and_then(|len| usize::try_from(len).ok());
            let len = len.filter(|len| (space + 2..=records.len()).contains(len));
            let (record, rest) = records.split_at(len.ok_or_else(malformed)?);
            records = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
            self.take(key, &record[equals + 1..])?;
        }
        Ok(())
    }

    fn take(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let numeral = || {
            let shown = String::from_utf8_lossy(&value[..value.len().min(40)]);
            decimal(value).ok_or_else(|| bad(format!("its pax record {key} is {shown:?}")))
        };
        match key {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "size" => self.bytes = Some(numeral()?),
            "uid" => self.uid = Some(numeral()?),
            "gid" => self.gid = Some(numeral()?),
            // The fraction is of no use here; a time before 1970 is cut to it.
            "mtime" => {
                let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                let seconds = decimal(whole).unwrap_or_default();
                self.mtime = Some(i64::try_from(seconds).unwrap_or(TIME_MAX));
            }
            _ if key.starts_with("GNU.sparse.") => {
                return Err(bad("it has a sparse file in GNU's form; write it whole".into()));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_KEY) {
                    if self.xattrs.len() == XATTRS_MAX || value.len() > XATTR_BYTES_MAX {
                        return Err(bad("an entry has too many or too large attributes".into()));
                    }
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// What a refusal of a malformed archive looks like.
pub(super) fn bad(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Bytes as they may be shown: cut, and escaped.
pub(super) fn shown(bytes: &[u8]) -> String {
    const CHARS_MAX: usize = 120;
    let text: String = String::from_utf8_lossy(bytes).chars().take(CHARS_MAX).collect();
    format!("{text:?}")
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry")
}

fn check_name(name: &[u8]) -> io::Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(bad(format!("a name has {} bytes, {NAME_BYTES_MAX} at most", name.len())));
    }
    if name.contains(&0) {
        return Err(bad(format!("the name {} holds a zero byte", shown(name))));
    }
    Ok(())
}

fn name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    // GNU's own magic, `ustar` and two spaces, has no prefix field.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        return [text(&block[345..500]), b"/", name].concat();
    }
    name.to_vec()
}

fn owner(extended: Option<u64>, field: &[u8]) -> io::Result<u32> {
    let id = match extended {
        Some(id) => id,
        None => size(field)?,
    };
    // The last one means "leave it" to the kernel.
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| bad(format!("its owner {id} is no number of a user or group")))
}

fn size(field: &[u8]) -> io::Result<u64> {
    number(field).ok_or_else(|| bad("a header has a number that is negative or none".into()))
}

/// An octal number, or a positive one in base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().checked_sub(8)?);
        let is_small = match high.split_first() {
            Some((first, rest)) => *first == 0x80 && rest.iter().all(|byte| *byte == 0),
            // Eight bytes: the mark is in the number itself.
            None => field[0] == 0x80,
        };
        let mut bytes: [u8; 8] = low.try_into().ok()?;
        if high.is_empty() {
            bytes[0] = 0;
        }
        return is_small.then(|| u64::from_be_bytes(bytes));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// As [`number`], where negative ones are no news: they are none.
fn signed(field: &[u8]) -> Option<i64> {
    number(field).and_then(|value| i64::try_from(value).ok())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn padding(bytes: u64) -> u64 {
    (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64
}

fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}
