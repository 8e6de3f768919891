//! What every engine's tests do on a real host.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use tt_engine::{Machine, VmEngine};
use tt_model::Vm;

/// The processes in a list of a control group; the kernel adds threads of its own to it where a machine has KVM.
pub fn processes(list: &str) -> Vec<u32> {
    let is_program = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    list.lines().filter_map(|line| line.parse().ok()).filter(is_program).collect()
}

/// Polls until `done` holds.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Kills and removes until nothing is left.
pub fn remove(engine: &dyn VmEngine, vm: &Vm) {
    wait_until("the end", || {
        engine.stop_vm(vm, tt_model::StopMode::Kill).unwrap();
        engine.look(vm).unwrap() == Machine::Absent
    });
}

/// Makes a network namespace at `path` with a persistent tap of this name, as the network does.
pub fn make_network(path: PathBuf, tap: String) {
    let make = move || {
        // SAFETY: changes only this throw-away thread's network namespace.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).unwrap() };
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all bytes zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the kernel reads one `ifreq`.
        assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) }, 0);
        // SAFETY: the argument is a number.
        assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) }, 0);
        File::create(&path).unwrap();
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &path).unwrap();
    };
    thread::spawn(make).join().unwrap();
}
