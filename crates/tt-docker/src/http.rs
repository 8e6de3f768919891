//! As much of HTTP/1.1 (RFC 9112) as a daemon on a unix socket needs: one request on one connection, a bound on every
//! wait. It follows no redirect and keeps no connection.

use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket_with};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest head of an answer, and longest line within a chunked body, in bytes.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// A connection on which every read and write ends in time.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
    /// When all must be over; without it each wait has `patience`.
    until: Option<Instant>,
    patience: Duration,
}

/// An answer: its status, and its body, which is read as it comes.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: BufReader<Wire>,
    left: Left,
}

/// What is left of a body.
#[derive(Debug)]
enum Left {
    Bytes(u64),
    /// Of the present chunk, none before the first one.
    Chunk(Option<u64>),
    UntilEnd,
    Nothing,
}

impl Wire {
    /// Connects. `total`: whether `patience` bounds everything together, or each wait alone.
    pub(crate) fn open(path: &Path, patience: Duration, total: bool) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Connecting waits as well, where too many others do.
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let until = total.then(|| Instant::now() + patience);
        Ok(Self { stream: UnixStream::from(socket), until, patience })
    }

    /// Something that ends its waits from another thread.
    pub(crate) fn end(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(Duration::ZERO) => Err(ErrorKind::TimedOut.into()),
            Some(left) => Ok(left),
            None => Ok(self.patience),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The kernel says that it would block where a timeout of a socket is over.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

/// Sends a request with a body of exactly `bytes` bytes, and reads the head of the answer.
pub(crate) fn ask(
    mut wire: Wire,
    method: &str,
    target: &str,
    kind: &str,
    body: &mut dyn Read,
    bytes: u64,
) -> io::Result<Answer> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: docker\r\nUser-Agent: tt\r\nConnection: close\r\n\
         Content-Type: {kind}\r\nContent-Length: {bytes}\r\n\r\n"
    );
    wire.write_all(head.as_bytes())?;
    let sent = io::copy(&mut body.take(bytes), &mut wire);
    match sent {
        // A daemon that refuses early says why before it closes.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error),
        Ok(sent) if sent < bytes => return Err(odd("the file is shorter than it was")),
        Ok(_) => {}
    }
    read_head(BufReader::new(wire))
}

fn read_head(mut body: BufReader<Wire>) -> io::Result<Answer> {
    let mut left_bytes = HEAD_BYTES_MAX;
    let status = line(&mut body, &mut left_bytes)?;
    let status = status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    let status: u16 =
        status.and_then(|code| code.parse().ok()).ok_or_else(|| odd("it is no HTTP"))?;
    let mut left = Left::UntilEnd;
    loop {
        let field = line(&mut body, &mut left_bytes)?;
        if field.is_empty() {
            break;
        }
        let Some((name, value)) = field.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            left = Left::Chunk(None);
        } else if name.eq_ignore_ascii_case("content-length") && !matches!(left, Left::Chunk(_)) {
            left = Left::Bytes(value.parse().map_err(|_| odd("its length is no number"))?);
        }
    }
    if matches!(status, 204 | 304) {
        left = Left::Nothing;
    }
    Ok(Answer { status, body, left })
}

/// A line without its end.
fn line(from: &mut impl BufRead, left_bytes: &mut u64) -> io::Result<String> {
    let mut text = Vec::new();
    let read = from.take(*left_bytes).read_until(b'\n', &mut text)? as u64;
    *left_bytes -= read;
    if text.pop() != Some(b'\n') {
        return Err(match *left_bytes {
            0 => odd("its head is too long"),
            _ => ErrorKind::UnexpectedEof.into(),
        });
    }
    let text = String::from_utf8(text).map_err(|_| odd("its head is no text"))?;
    Ok(text.trim_end_matches('\r').to_owned())
}

impl Answer {
    /// The whole body, if it is no longer than `bytes_max`.
    pub(crate) fn whole(mut self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.by_ref().take(bytes_max + 1).read_to_end(&mut all)?;
        if all.len() as u64 > bytes_max { Err(odd("it is too long")) } else { Ok(all) }
    }

    /// Lets single waits for what comes next take so long.
    pub(crate) fn wait_at_most(&mut self, patience: Duration) {
        let wire = self.body.get_mut();
        (wire.until, wire.patience) = (None, patience);
    }

    /// The size of the next chunk; 0 after the last one.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<u64> {
        let mut left_bytes = HEAD_BYTES_MAX;
        if !is_first {
            line(&mut self.body, &mut left_bytes)?;
        }
        let size = line(&mut self.body, &mut left_bytes)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).map_err(|_| odd("the size of a chunk is no number"))
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let most = match self.left {
            Left::Nothing => return Ok(0),
            Left::UntilEnd => u64::MAX,
            Left::Bytes(bytes) => bytes,
            Left::Chunk(Some(bytes @ 1..)) => bytes,
            Left::Chunk(chunk) => {
                let bytes = self.next_chunk(chunk.is_none())?;
                self.left = if bytes == 0 { Left::Nothing } else { Left::Chunk(Some(bytes)) };
                bytes
            }
        };
        if most == 0 {
            return Ok(0);
        }
        let len = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let read = self.body.read(&mut buffer[..len])?;
        if read == 0 && !matches!(self.left, Left::UntilEnd) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match &mut self.left {
            Left::Bytes(bytes) | Left::Chunk(Some(bytes)) => *bytes -= read as u64,
            _ => {}
        }
        Ok(read)
    }
}

/// `a` and `b=c d` as `?a=..&b=..`.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                byte => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

fn odd(problem: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What is made of an answer by these bytes.
    fn answered(bytes: &'static [u8]) -> io::Result<(u16, Vec<u8>)> {
        let dir = std::env::temp_dir().join(format!("tt-http-{:p}-{}", bytes, std::process::id()));
        let _ = std::fs::remove_file(&dir);
        let listener = UnixListener::bind(&dir).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let len = stream.read(&mut asked).unwrap();
            // Whoever has heard enough closes early.
            let _ = stream.write_all(bytes);
            String::from_utf8(asked[..len].to_vec()).unwrap()
        });
        let wire = Wire::open(&dir, Duration::from_secs(5), true).unwrap();
        let answer = ask(wire, "GET", "/x", "application/json", &mut io::empty(), 0);
        let result = answer.and_then(|answer| Ok((answer.status, answer.whole(64)?)));
        std::fs::remove_file(&dir).unwrap();
        assert!(server.join().unwrap().starts_with("GET /x HTTP/1.1\r\n"));
        result
    }

    #[test]
    fn bodies_are_read_however_their_length_is_said() {
        for (bytes, status, body) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"[..], 200, &b"ab"[..]),
            (b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", 204, b""),
            (b"HTTP/1.0 500 X\r\n\r\nwhy", 500, b"why"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
                200,
                b"abc",
            ),
        ] {
            assert_eq!(answered(bytes).unwrap(), (status, body.to_vec()));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        const LONG: &[u8] = &[b'a'; HEAD_BYTES_MAX as usize + 9];
        for bytes in [
            &b""[..],
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            b"HTTP/1.1 200 OK\r\n\r\n0123456789012345678901234567890123456789012345678901234567890123456789",
            LONG,
        ] {
            assert!(answered(bytes).is_err(), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
        }
    }

    #[test]
    fn a_daemon_that_says_nothing_is_given_up() {
        let path = std::env::temp_dir().join(format!("tt-http-quiet-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let wire = Wire::open(&path, Duration::from_millis(50), true).unwrap();
        let answer = ask(wire, "GET", "/", "text/plain", &mut io::empty(), 0);
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(listener);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_query_holds_any_text() {
        assert_eq!(query(&[]), "");
        assert_eq!(query(&[("a", "b"), ("f", "{\"x\":1}")]), "?a=b&f=%7B%22x%22%3A1%7D");
    }
}
