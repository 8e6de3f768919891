//! The beginning and the console of a container. What comes before it has its network is done by its engine; the host's
//! sockets come from there, too, so that nothing has to be written to in the container.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::pipe::PipeFlags;
use rustix::time::Timespec;
use tt_guest::container::{DOOR, START_SOCKET, Start};
use tt_guest::entry::ENTRY_BYTES_MAX;

/// What is kept of the output while nobody listens.
const KEPT_BYTES: usize = 64 << 10;
const PIECE_BYTES: usize = 4096;
/// A host that does not read for so long loses the console: programs must not stand still for it.
const SLOW_MAX: Duration = Duration::from_secs(1);

/// What an engine handed over.
pub struct Begun {
    pub start: Start,
    /// The agent's socket, listening.
    pub agent: UnixListener,
    console: UnixListener,
}

/// Waits until the network is there.
pub fn wait() -> io::Result<Begun> {
    let mut stream = UnixStream::connect(Path::new(DOOR).join(START_SOCKET))?;
    let [agent, console] = receive(&stream)?;
    let mut json = Vec::new();
    (&mut stream).take(ENTRY_BYTES_MAX).read_to_end(&mut json)?;
    let start = serde_json::from_slice(&json)?;
    Ok(Begun { start, agent: UnixListener::from(agent), console: UnixListener::from(console) })
}

/// The two descriptors that come with the first byte.
fn receive(stream: &UnixStream) -> io::Result<[OwnedFd; 2]> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let got = loop {
        match recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            got => break got?,
        }
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    match <[OwnedFd; 2]>::try_from(fds) {
        Ok(fds) if got.bytes == 1 => Ok(fds),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its start was cut short")),
    }
}

impl Begun {
    /// From now on standard output and error are the console.
    pub fn open_console(&self) -> io::Result<()> {
        let listener = self.console.try_clone()?;
        listener.set_nonblocking(true)?;
        let (output, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::stdio::dup2_stdout(&writer)?;
        rustix::stdio::dup2_stderr(&writer)?;
        super::thread("console", move || Console::new(output, listener).serve())
    }
}

/// Carries output to the host that listens, and keeps the end of it while none does.
struct Console {
    output: OwnedFd,
    listener: UnixListener,
    client: Option<UnixStream>,
    kept: VecDeque<u8>,
}

impl Console {
    fn new(output: OwnedFd, listener: UnixListener) -> Self {
        Self { output, listener, client: None, kept: VecDeque::new() }
    }

    fn serve(mut self) {
        loop {
            let mut fds = vec![
                PollFd::new(&self.output, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            fds.extend(self.client.as_ref().map(|client| PollFd::new(client, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let [output, listener, client] =
                [0, 1, 2].map(|at| fds.get(at).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            if client {
                self.hear();
            }
            if listener {
                self.accept();
            }
            if output {
                self.carry();
            }
        }
    }

    /// A container's console takes no input; what matters is its end.
    fn hear(&mut self) {
        let Some(client) = &self.client else { return };
        match rustix::io::read(client, &mut [0; PIECE_BYTES]) {
            Ok(1..) | Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => self.client = None,
        }
    }

    fn accept(&mut self) {
        let Ok((client, _)) = self.listener.accept() else { return };
        if client.set_nonblocking(true).is_err() {
            return;
        }
        self.client = Some(client);
        let kept = std::mem::take(&mut self.kept);
        self.tell(&Vec::from(kept));
    }

    fn carry(&mut self) {
        let mut piece = [0; PIECE_BYTES];
        if let Ok(len) = rustix::io::read(&self.output, &mut piece) {
            self.tell(&piece[..len]);
        }
    }

    fn tell(&mut self, mut bytes: &[u8]) {
        while let Some(client) = self.client.as_ref().filter(|_| !bytes.is_empty()) {
            match send(client, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if is_read(client) => {}
                Err(_) => self.client = None,
            }
        }
        self.kept.extend(bytes);
        let excess = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..excess);
    }
}

/// Waits until the host reads, for no longer than it may take.
fn is_read(client: &UnixStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::OUT)];
    let within = Timespec { tv_sec: SLOW_MAX.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut fds, Some(&within)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn output_waits_for_a_host_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (output, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        std::thread::spawn(move || Console::new(output, listener).serve());
        let mut writer = File::from(writer);
        for number in 0..20_000 {
            writeln!(writer, "{number:06}").unwrap();
        }
        for round in 0..2 {
            let mut host = UnixStream::connect(&path).unwrap();
            host.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            writeln!(host, "nobody reads this").unwrap();
            writeln!(writer, "round {round}").unwrap();
            let mut text = String::new();
            while !text.ends_with(&format!("round {round}\n")) {
                let mut piece = [0; 4096];
                let len = host.read(&mut piece).unwrap();
                assert!(len > 0, "the console ended");
                text.push_str(std::str::from_utf8(&piece[..len]).unwrap());
            }
            // What was kept, and what a pipe holds (pipe(7)).
            assert!(text.len() <= KEPT_BYTES + (64 << 10) + 100, "{} bytes", text.len());
            assert_eq!(text.contains("019999\n"), round == 0);
        }
    }

    #[test]
    fn a_start_that_is_cut_short_is_none() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(receive(&near).is_err());
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x{}").unwrap();
        assert!(receive(&near).is_err(), "no descriptors came");
    }
}
