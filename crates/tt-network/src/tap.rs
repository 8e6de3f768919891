//! Persistent taps: what netlink can not make. They are made in the calling thread's namespace.

use std::ffi::c_short;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// What an engine must ask for as well, see the crate's documentation.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes the tap `name`, which outlives its descriptor.
pub(crate) fn make(name: &str) -> io::Result<()> {
    let tun = open(name)?;
    // SAFETY: `TUNSETPERSIST` takes a number and keeps no pointer.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(name: &str) -> io::Result<File> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero are a valid `ifreq`: integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = FLAGS as c_short;
    // SAFETY: `TUNSETIFF` reads and writes one `ifreq`, which lives until it returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(tun) } else { Err(io::Error::last_os_error()) }
}
