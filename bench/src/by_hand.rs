//! The same guest without TT: QEMU's command line as TT made it, started by hand, until the agent
//! has set the guest up. Nothing but the files and descriptors that it names is other than there.

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Updater, ioctl};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use testkit::{Lab, Must};
use tt_guest::frame::{Decoder, Kind, resync};
use tt_guest::message::{GuestMessage, Hello, HostMessage, NetworkSetup, PROTOCOL_VERSION, Setup};

/// How long a guest may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Name of the session: the guest is our own.
const SESSION: u64 = 7;

/// What is needed to start a guest again.
#[derive(Debug)]
pub struct Recipe {
    argv: Vec<String>,
    backing: PathBuf,
    disk_mb: u64,
    setup: Setup,
}

impl Recipe {
    /// Reads it off a guest that runs in the lab.
    pub fn of(lab: &Lab, env: &str, vm: &str) -> Self {
        let record = lab.vm(env, vm);
        let id = record["id"].as_u64().must("an id");
        let machines = lab.machine_ids();
        let (_, pid) = machines.iter().find(|(of, _)| *of == id).must("the guest's machine");
        let argv = argv_of(*pid);
        let template = record["template"]["path"].as_str().must("a template");
        let setup = set_up_of(lab, env, vm);
        Self {
            argv,
            backing: lab.data().join(template).join("disk.raw"),
            disk_mb: record["resource"]["disk_size"].as_u64().must("a disk size"),
            setup,
        }
    }

    /// Starts the guest, waits until it is set up, and ends it. The time of the first two.
    pub fn run(&self, lab: &Lab) -> Duration {
        let dir = tempfile::tempdir_in(lab.dir()).must("a directory");
        let disk = dir.path().join("disk.qcow2");
        make_overlay(&self.backing, &disk, self.disk_mb);
        let tap = lab.host.run(open_tap);
        let begin = Instant::now();
        let sockets = ["console", "agent", "monitor", "end"].map(|name| dir.path().join(name));
        let listeners = sockets.clone().map(|path| UnixListener::bind(path).must("a socket"));
        let descriptors: Vec<i32> = std::iter::once(tap.as_raw_fd())
            .chain(listeners.iter().map(AsRawFd::as_raw_fd))
            .collect();
        let argv = self.argv_for(dir.path(), &disk, &descriptors);
        let mut machine = Machine(spawn(&argv, dir.path(), &descriptors));
        let _console = UnixStream::connect(&sockets[0]).must("the console");
        let mut agent = UnixStream::connect(&sockets[1]).must("the agent's socket");
        converse(&mut agent, &self.setup);
        let took = begin.elapsed();
        machine.end();
        took
    }

    /// The command line with other files and descriptors.
    fn argv_for(&self, dir: &Path, disk: &Path, descriptors: &[i32]) -> Vec<String> {
        let names = ["tap,", "id=console,", "id=agent,", "id=monitor,", "id=end,"];
        self.argv
            .iter()
            .map(|argument| {
                let at = names.iter().position(|name| argument.contains(name));
                if let (Some(at), Some(fd)) = (at, argument.find("fd=")) {
                    let digits = argument[fd + 3..].find(',').unwrap_or(argument.len() - fd - 3);
                    let (head, tail) = (&argument[..fd + 3], &argument[fd + 3 + digits..]);
                    return format!("{head}{}{tail}", descriptors[at]);
                }
                let argument = replace_path(argument, "\"mem-path\":\"", &dir.join("ram"));
                replace_path(&argument, "\"filename\":\"", disk)
            })
            .collect()
    }
}

/// What its agent is told of a guest that runs in the lab.
pub fn set_up_of(lab: &Lab, env: &str, vm: &str) -> Setup {
    let record = lab.vm(env, vm);
    Setup {
        hostname: vm.to_owned(),
        network: Some(NetworkSetup {
            mac: record["resource"]["mac_addr"].as_str().must("a mac").to_owned(),
            address: lab.addr(env, vm),
            prefix_len: 8,
            gateway: [10, 0, 0, 1].into(),
            mtu: 0,
            six: None,
        }),
        dns: vec![[10, 0, 0, 1].into()],
        hosts: Vec::new(),
        machine_id: record["machine_id"].as_str().map(str::to_owned),
        ssh_keys: Vec::new(),
        entropy: None,
    }
}

/// Sets a guest up as the daemon does, over the channel to its agent.
pub fn converse(stream: &mut UnixStream, setup: &Setup) {
    stream.set_read_timeout(Some(PATIENCE)).must("a timeout");
    let hello = HostMessage::Hello(Hello {
        version: PROTOCOL_VERSION,
        session: SESSION,
        time_unix_ns: now_ns(),
        entropy: Some("ab".repeat(32)),
    });
    stream.write_all(&resync()).must("write");
    stream.write_all(&hello.encode().must("hello")).must("write");
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut is_acknowledged = false;
    loop {
        let length = stream.read(&mut buffer).must("the agent's answer");
        assert!(length > 0, "the guest hung up");
        let mut messages = Vec::new();
        decoder.feed(&buffer[..length], |frame| {
            messages.extend(frame.ok().filter(|frame| frame.kind == Kind::Control));
        });
        for frame in messages {
            match GuestMessage::parse(&frame.payload).must("a message") {
                GuestMessage::Ready { .. } => {
                    stream.write_all(&hello.encode().must("hello")).must("write");
                }
                GuestMessage::HelloAck { .. } if !is_acknowledged => {
                    is_acknowledged = true;
                    let clock = HostMessage::SetClock { time_unix_ns: now_ns() };
                    stream.write_all(&clock.encode().must("clock")).must("write");
                    let setup = HostMessage::Setup(setup.clone());
                    stream.write_all(&setup.encode().must("setup")).must("write");
                }
                GuestMessage::SetupDone { .. } => return,
                GuestMessage::SetupFailed { what, why } => panic!("{what}: {why}"),
                _ => {}
            }
        }
    }
}

/// A machine that ends with its bench.
pub struct Machine(pub Child);

impl Machine {
    /// Kills it and waits for its end.
    pub fn end(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(argv: &[String], dir: &Path, descriptors: &[i32]) -> Child {
    for fd in descriptors {
        // SAFETY: all belong to our caller and are open until the child has been started.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).must("hand a descriptor on");
    }
    Command::new(&argv[0])
        .args(&argv[1..])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .must("start QEMU")
}

/// The command line of a process.
fn argv_of(pid: i32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).must("its command line");
    let arguments = line.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    arguments.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

fn replace_path(argument: &str, key: &str, path: &Path) -> String {
    let Some(at) = argument.find(key) else { return argument.to_owned() };
    let begin = at + key.len();
    let end = begin + argument[begin..].find('"').unwrap_or(0);
    format!("{}{}{}", &argument[..begin], path.display(), &argument[end..])
}

fn make_overlay(backing: &Path, disk: &Path, disk_mb: u64) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([backing, disk])
        .arg(format!("{disk_mb}M"))
        .status();
    assert!(made.must("run qemu-img").success());
}

/// A tap of its own in the calling thread's namespace.
fn open_tap() -> OwnedFd {
    /// `_IOW('T', 202, int)` of linux/if_tun.h.
    const TUNSETIFF: u32 = 0x4004_54ca;
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .must("open /dev/net/tun");
    // struct ifreq (netdevice(7)): the name, then IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    let mut request = [0_u8; 40];
    request[..8].copy_from_slice(b"ttbench0");
    request[16..18].copy_from_slice(&(0x0002_u16 | 0x1000 | 0x4000).to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which has 40 bytes.
    unsafe { ioctl(&fd, Updater::<TUNSETIFF, [u8; 40]>::new(&mut request)) }.must("make a tap");
    fd
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).must("a clock after 1970");
    u64::try_from(since.as_nanos()).must("a clock before 2554")
}
