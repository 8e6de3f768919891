//! Sockets in an Env's namespace, for whoever has to reach a guest as its gateway does. They stay there, whatever thread
//! uses them. It connects to nothing.

use crate::{NetworkError, netns};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A TCP socket for IPv4 in the namespace at `path`, neither bound nor connected, that never blocks.
///
/// # Errors
/// [`NetworkError::UseNamespace`] if there is no namespace, or no room for a socket.
pub fn tcp_socket(path: &Path) -> Result<OwnedFd, NetworkError> {
    netns::enter(path, || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).map_err(|errno| {
            let (path, source) = (path.to_owned(), errno.into());
            NetworkError::UseNamespace { action: "open a socket in", path, source }
        })
    })
}
