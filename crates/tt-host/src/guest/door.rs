//! How a machine's channels are opened, whatever its engine made them of. It waits for no guest longer than its caller does,
//! and talks to nobody but the machine.

use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tt_guest::message::VSOCK_PORT;
use tt_model::{Layout, VmId};

/// Most bytes of the line that a vsock answers with: `OK` and a number of 32 bits.
const LINE_BYTES_MAX: usize = 32;

/// Where the channels of one machine are.
#[derive(Clone, Debug)]
pub(super) struct Door {
    agent: PathBuf,
    vsock: PathBuf,
    console: PathBuf,
    pipes: [PathBuf; 2],
    /// The machine's user.
    uid: u32,
}

/// Both directions of a console.
pub(super) type Both = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

impl Door {
    pub(super) fn new(layout: &Layout, id: VmId) -> Self {
        Self {
            agent: layout.agent_socket(id),
            vsock: layout.agent_vsock(id),
            console: layout.console_socket(id),
            pipes: layout.console_pipes(id),
            uid: layout.uid(id),
        }
    }

    /// The channel to the agent. A guest that boots is waited for.
    pub(super) async fn agent(&self) -> io::Result<UnixStream> {
        match self.vsock.symlink_metadata() {
            Ok(_) => vsock(&self.vsock, self.uid).await,
            Err(_) => UnixStream::connect(&self.agent).await,
        }
    }

    /// The serial console.
    pub(super) async fn console(&self) -> io::Result<Both> {
        let [typed, shown] = &self.pipes;
        if shown.exists() {
            let options = pipe::OpenOptions::new();
            let (reader, writer) = (options.open_receiver(shown)?, options.open_sender(typed)?);
            return Ok((Box::new(reader), Box::new(writer)));
        }
        let (reader, writer) = UnixStream::connect(&self.console).await?.into_split();
        Ok((Box::new(reader), Box::new(writer)))
    }
}

/// The agent behind the socket of a machine's vsock, which the machine's user has made: it may be anything that this one could
/// make of it, such as a link to a socket of others.
async fn vsock(path: &Path, uid: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?.uid();
    if peer != uid {
        return Err(io::Error::other(format!("user {peer} listens there, not {uid}")));
    }
    stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
    let mut line = Vec::new();
    // Byte for byte: what follows the line is the agent's.
    while line.len() < LINE_BYTES_MAX {
        match stream.read_u8().await? {
            b'\n' if line.starts_with(b"OK ") => return Ok(stream),
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it does not answer as a vsock does"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// What comes of a handshake that is answered so, and what the agent would hear next.
    async fn answered(answer: &'static [u8], uid: u32) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            if stream.read_exact(&mut asked).await.is_ok() {
                assert_eq!(&asked, b"CONNECT 1024\n");
            }
            // It may have heard enough.
            let _ = stream.write_all(answer).await;
        });
        let stream = vsock(&path, uid).await;
        server.await.unwrap();
        let mut rest = Vec::new();
        stream?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn the_agent_is_what_follows_the_answer() {
        assert_eq!(answered(b"OK 1073741824\nhello", me()).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn odd_endless_and_missing_answers_are_refused() {
        for answer in [&b""[..], b"NO\n", b"\n", b"OK 1", &[b'O'; 100]] {
            assert!(answered(answer, me()).await.is_err(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn whoever_listens_must_be_the_machine() {
        let error = answered(b"OK 1\n", me() + 1).await.unwrap_err();
        assert!(error.to_string().contains("listens there"), "{error}");
    }

    #[tokio::test]
    async fn a_console_may_be_two_pipes() {
        let dir = tempfile::tempdir().unwrap();
        let (data, run) = (dir.path().join("data"), dir.path().to_owned());
        let layout = Layout { data, run, instance: tt_model::Instance(1) };
        let id = VmId(7);
        std::fs::create_dir_all(layout.vm_dir(id)).unwrap();
        let door = Door::new(&layout, id);
        assert!(door.console().await.is_err());
        let machine = layout.console_pipes(id).map(|path| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
            std::fs::File::options().read(true).write(true).open(&path).unwrap()
        });
        let [mut typed, mut shown] = machine;
        let (mut reader, mut writer) = door.console().await.unwrap();
        writer.write_all(b"in").await.unwrap();
        io::Write::write_all(&mut shown, b"out").unwrap();
        let (mut heard, mut seen) = ([0; 2], [0; 3]);
        io::Read::read_exact(&mut typed, &mut heard).unwrap();
        reader.read_exact(&mut seen).await.unwrap();
        assert_eq!((&heard, &seen), (b"in", b"out"));
        drop((typed, shown));
        assert_eq!(reader.read(&mut seen).await.unwrap(), 0);
    }
}
