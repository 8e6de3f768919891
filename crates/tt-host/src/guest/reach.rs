//! Connections to guests from inside their Env's namespace, as from their gateway: for clients, and to see whether a guest
//! without an agent is there. It trusts nothing that comes back, and keeps no more of it than a few messages.

use super::GuestState;
use super::channel::Shared;
use super::console::ConsoleStream;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// How long a guest may take to answer a client. One that is there does so in milliseconds; the kernel gives up on an
/// address that nobody has after three seconds.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at a guest that is not there yet. Where its kernel is up but the port is not, the answer comes at
/// once; otherwise the look itself waits for it.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Messages that wait in each direction.
const MESSAGES_MAX: usize = 8;
/// Most bytes of one message.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Where a guest's port is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// Looks until something listens at `place`; then the guest is ready.
pub(super) async fn watch(place: Place, shared: Arc<Shared>) {
    while let Err(error) = connect(&place).await {
        tracing::trace!(vm = %shared.id, port = place.port, %error, "nothing listens yet");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    shared.set_state(GuestState::Ready);
}

/// Connects a client.
pub(super) async fn open(place: &Place) -> io::Result<ConsoleStream> {
    let (reader, writer) = connect(place).await?.into_split();
    let (to, typed) = mpsc::channel(MESSAGES_MAX);
    let (shown, from) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(async move {
        // Whichever side ends, the connection does: a client that leaves must not leave it open.
        tokio::select! {
            () = read(reader, &shown) => {}
            () = write(writer, typed) => {}
        }
    });
    Ok(ConsoleStream { to, from })
}

async fn connect(place: &Place) -> io::Result<TcpStream> {
    let socket = socket(&place.netns).await?;
    let address = SocketAddrV4::new(place.address, place.port).into();
    let connected = tokio::time::timeout(ANSWER_MAX, socket.connect(address)).await;
    let connected = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    connected.set_nodelay(true)?;
    Ok(connected)
}

/// A thread enters the namespace for it.
async fn socket(netns: &Path) -> io::Result<TcpSocket> {
    let netns = netns.to_owned();
    let made = tokio::task::spawn_blocking(move || tt_network::tcp_socket(&netns));
    let made = made.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
    Ok(TcpSocket::from_std_stream(made.into()))
}

async fn read(mut reader: OwnedReadHalf, shown: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        if shown.send(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

/// Ends when the client has left; one that has only said its last word still hears the answer.
async fn write(mut writer: OwnedWriteHalf, mut typed: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = typed.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
