//! A guest's interface by ioctls: found by its MAC, given its address, and the default route. What is right already is
//! left alone, for setting an address cuts its connections.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType};
use tt_guest::message::NetworkSetup;

use super::log::say;
use super::six;

/// The interface appears as its driver is loaded; this long it is waited for.
const APPEAR: Duration = Duration::from_secs(2);
const APPEAR_POLL: Duration = Duration::from_millis(2);

/// Routes read from the kernel at most.
const MAX_ROUTES: usize = 64;

/// Sets an interface as wanted.
pub fn set(wanted: &NetworkSetup) -> io::Result<()> {
    let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if !(1..=32).contains(&wanted.prefix_len) {
        return invalid(format!("a prefix of {} bits must be 1 to 32", wanted.prefix_len));
    }
    let name = wait_for(&wanted.mac)?;
    let sockets = Control::open()?;
    let flags = sockets.flags(&name)?;
    if wanted.six.is_some() {
        six::prepare(&name);
    }
    if wanted.mtu > 0
        && fs::read_to_string(format!("/sys/class/net/{name}/mtu"))?.trim()
            != wanted.mtu.to_string()
    {
        sockets.set_mtu(&name, wanted.mtu)?;
    }
    if sockets.address(&name, libc::SIOCGIFADDR) != Some(wanted.address) {
        sockets.set_address(&name, libc::SIOCSIFADDR, wanted.address)?;
    }
    let mask = netmask(wanted.prefix_len);
    if sockets.address(&name, libc::SIOCGIFNETMASK) != Some(mask) {
        sockets.set_address(&name, libc::SIOCSIFNETMASK, mask)?;
        let broadcast = Ipv4Addr::from_bits(wanted.address.to_bits() | !mask.to_bits());
        sockets.set_address(&name, libc::SIOCSIFBRDADDR, broadcast)?;
    }
    // Whether it has a carrier (`IFF_RUNNING`) is the kernel's to say, some time after that.
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != up {
        sockets.set_flags(&name, flags | up)?;
    }
    let routes = default_routes(&fs::read_to_string("/proc/net/route")?, &name);
    for old in routes.iter().filter(|gateway| **gateway != wanted.gateway) {
        sockets.route(&name, libc::SIOCDELRT, *old)?;
    }
    if !routes.contains(&wanted.gateway) {
        sockets.route(&name, libc::SIOCADDRT, wanted.gateway)?;
    }
    // A guest goes on without it.
    if let Some(Err(error)) = wanted.six.as_ref().map(|six| six::set(&name, six)) {
        say(format!("no IPv6: {error}"));
    }
    Ok(())
}

/// The address that the interface with this MAC has.
pub fn address(mac: &str) -> Option<Ipv4Addr> {
    Control::open().ok()?.address(&find(mac)?, libc::SIOCGIFADDR)
}

/// Brings the loopback interface up.
pub fn raise_loopback() -> io::Result<()> {
    let sockets = Control::open()?;
    let flags = sockets.flags("lo")?;
    sockets.set_flags("lo", flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short)
}

fn wait_for(mac: &str) -> io::Result<String> {
    let until = Instant::now() + APPEAR;
    loop {
        match find(mac) {
            Some(name) => return Ok(name),
            None if Instant::now() < until => thread::sleep(APPEAR_POLL),
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("no interface has the MAC {mac:?}"),
                ));
            }
        }
    }
}

fn find(mac: &str) -> Option<String> {
    let links = fs::read_dir("/sys/class/net").ok()?;
    links.flatten().find_map(|link| {
        let own = fs::read_to_string(link.path().join("address")).ok()?;
        own.trim().eq_ignore_ascii_case(mac).then(|| link.file_name().into_string().ok())?
    })
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0))
}

/// Gateways of the default routes over an interface, out of `/proc/net/route` (addresses in network order, printed as a
/// number of this machine).
fn default_routes(table: &str, name: &str) -> Vec<Ipv4Addr> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().take(8).collect();
        let [link, "00000000", gateway, _, _, _, _, "00000000"] = fields[..] else { return None };
        let bits =
            u32::from_str_radix(gateway, 16).ok().filter(|bits| link == name && *bits != 0)?;
        Some(Ipv4Addr::from(bits.to_ne_bytes()))
    };
    table.lines().skip(1).filter_map(gateway).take(MAX_ROUTES).collect()
}

/// The socket on which interfaces are asked about and set.
struct Control(OwnedFd);

impl Control {
    fn open() -> io::Result<Self> {
        Ok(Self(rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?))
    }

    fn flags(&self, name: &str) -> io::Result<libc::c_short> {
        let mut request = request(name)?;
        self.ask(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: this request fills the flags.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    fn set_flags(&self, name: &str, flags: libc::c_short) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = flags;
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = i32::try_from(mtu).unwrap_or(i32::MAX);
        self.ask(libc::SIOCSIFMTU, &mut request)
    }

    fn address(&self, name: &str, what: libc::c_ulong) -> Option<Ipv4Addr> {
        let mut request = request(name).ok()?;
        self.ask(what, &mut request).ok()?;
        // SAFETY: this request fills the address, of any family.
        let address = unsafe { request.ifr_ifru.ifru_addr };
        let [_, _, bytes @ ..] = address.sa_data.map(i8::cast_unsigned);
        (i32::from(address.sa_family) == libc::AF_INET)
            .then(|| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    }

    fn set_address(&self, name: &str, what: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.ask(what, &mut request)
    }

    fn route(&self, name: &str, what: libc::c_ulong, gateway: Ipv4Addr) -> io::Result<()> {
        let mut device = request(name)?.ifr_name;
        // SAFETY: all zeros is a valid `rtentry`: numbers, addresses and null pointers.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        route.rt_dev = device.as_mut_ptr();
        self.ask(what, &mut route)
    }

    fn ask<T>(&self, what: libc::c_ulong, request: &mut T) -> io::Result<()> {
        // SAFETY: every request in this file takes a pointer to the structure that its caller passes, which outlives it.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), what, &raw mut *request) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no interface"),
        ));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (slot, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *slot = byte.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks_follow_the_prefix() {
        assert_eq!(netmask(8), Ipv4Addr::new(255, 0, 0, 0));
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(32), Ipv4Addr::new(255, 255, 255, 255));
    }

    #[test]
    fn default_routes_of_one_interface_are_found() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\n\
            eth1\t00000000\t0200000A\t0003\t0\t0\t0\t00000000\t0\nbroken\n";
        assert_eq!(default_routes(table, "eth0"), [Ipv4Addr::new(10, 0, 0, 1)]);
        assert_eq!(default_routes(table, "eth2"), Vec::<Ipv4Addr>::new());
    }
}
