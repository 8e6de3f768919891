//! Starts a program confined and detached, and kills what is in a cgroup. It never waits for a program's end and never
//! passes text through a shell.

use crate::EngineError;
use crate::cgroup::Cgroups;
use crate::jail::Jail;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Descriptors that a program may have open: disks, sockets and worker pipes need a few dozen.
const NOFILE_MAX: u64 = 1024;
/// How often a cgroup is read until every process in it got its signal: one that forks meanwhile may escape a round.
const KILL_ROUNDS: u32 = 10;

/// A program and its confinement.
#[derive(Debug)]
pub(crate) struct Confined<'a> {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its working directory; with a jail that names its own.
    pub dir: &'a File,
    /// Its user and its group.
    pub uid: u32,
    /// The only other group it is in, if any: the one of a device that it needs.
    pub extra_group: Option<u32>,
    /// What writes its own process into the machine's cgroups; see [`Cgroups::create`].
    pub doors: &'a [File],
    /// The network namespace that it is in, for a program that opens its tap by name; `None`: an empty one of its own.
    pub netns: Option<&'a File>,
    /// The only part of the file system that it sees; `None`: what its user may see of the host's.
    pub jail: Option<Jail>,
    /// What it inherits beside its standard streams, under the same numbers.
    pub fds: &'a [OwnedFd],
    /// Its standard input and output; `None`: nothing.
    pub stdio: Option<[File; 2]>,
    /// Where its messages go.
    pub stderr: File,
}

impl Confined<'_> {
    /// Starts it. What it is before it executes is in its cgroups already, or dies with the caller: from the moment of
    /// the return, and after a crash at any moment before, its cgroup tells whether it lives.
    ///
    /// The program has no network but that of `netns`, no IPC namespace of others, no privileges and no way to get any, a
    /// session of its own, and no descriptors but those named. It does not end when the caller does.
    ///
    /// # Errors
    /// Why it was not started; then no process is left.
    pub fn spawn(self) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        let [stdin, stdout] = match self.stdio {
            Some(files) => files.map(Stdio::from),
            None => [Stdio::null(), Stdio::null()],
        };
        command.args(&self.args).env_clear().stdin(stdin).stdout(stdout).stderr(self.stderr);
        let parent = rustix::process::getpid();
        let doors: Vec<_> = self.doors.iter().map(AsRawFd::as_raw_fd).collect();
        let fds: Vec<_> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let dir = self.dir.as_raw_fd();
        let netns = self.netns.map(AsRawFd::as_raw_fd);
        let (uid, extra) = (self.uid, self.extra_group.map(Gid::from_raw));
        let child = move || {
            // SAFETY: `self` keeps these descriptors open until the child has executed the program or failed.
            let borrow = |fd: &i32| unsafe { BorrowedFd::borrow_raw(*fd) };
            enter(parent, doors.iter().map(borrow))?;
            rustix::process::fchdir(borrow(&dir))?;
            self.jail.as_ref().map_or(Ok(()), Jail::enter)?;
            confine(netns.as_ref().map(borrow), uid, extra.as_slice())?;
            keep(fds.iter().map(borrow))
        };
        // SAFETY: the closure runs between fork and exec; it makes system calls on values that were prepared before,
        // and neither allocates nor takes a lock.
        unsafe { command.pre_exec(child) };
        let child = command.spawn()?;
        Process::open(child.id())
    }
}

/// Enters the machine's cgroups before anything else is done.
fn enter<'a>(parent: Pid, doors: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    // Until it is in its cgroup nobody could find this process, so it must not outlive its parent.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    for door in doors {
        rustix::io::write(door, b"0")?;
    }
    rustix::process::set_parent_process_death_signal(None)?;
    Ok(())
}

fn confine(netns: Option<BorrowedFd<'_>>, uid: u32, extra: &[Gid]) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    for (resource, limit) in [(Resource::Nofile, NOFILE_MAX), (Resource::Core, 0)] {
        let limit = Some(limit);
        let both = Rlimit { current: limit, maximum: limit };
        rustix::process::setrlimit(resource, both)?;
    }
    let mut namespaces = UnshareFlags::NEWIPC;
    match netns {
        Some(netns) => move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?,
        None => namespaces |= UnshareFlags::NEWNET,
    }
    // SAFETY: no descriptor is shared; only the namespaces of this process change.
    unsafe { rustix::thread::unshare_unsafe(namespaces)? };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(extra)?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Lets exactly `fds` and the standard streams through the coming exec.
fn keep<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: marks descriptors, closes none; the arguments are plain numbers.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in fds {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// A process that can not be mistaken for another one.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its number, for people and for comparing.
    pub pid: u32,
    /// Readable once it has ended.
    pub fd: OwnedFd,
}

impl Process {
    /// # Errors
    /// `ESRCH` if there is none of this number.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::process::pidfd_open(number, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// # Errors
    /// `ESRCH` if it has ended.
    pub fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.fd, Signal::KILL)?)
    }

    /// Waits for its end, and reaps it if it is a child.
    pub fn reap(&self, within: Duration) {
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let within = Timespec::try_from(within).unwrap_or_default();
        // Interrupted or timed out: then somebody else has to find it.
        let _ = poll(&mut polled, Some(&within));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), options);
    }
}

/// Kills every process in the cgroup at `path`. True if there was one.
///
/// # Errors
/// The cgroup can not be read, or a process not be signalled.
pub(crate) fn kill_group(groups: &Cgroups, path: &Path) -> Result<bool, EngineError> {
    let mut killed: Vec<u32> = Vec::new();
    for _ in 0..KILL_ROUNDS {
        let pids = groups.pids(path)?.unwrap_or_default();
        let fresh: Vec<u32> = pids.into_iter().filter(|p| !killed.contains(p)).collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            killed.push(pid);
            kill_member(groups, path, pid)?;
        }
    }
    Ok(!killed.is_empty())
}

fn kill_member(groups: &Cgroups, path: &Path, pid: u32) -> Result<(), EngineError> {
    let opened = Process::open(pid);
    // Held by its descriptor and still in the cgroup: the number was not given to another process meanwhile.
    let still = groups.pids(path)?.is_some_and(|pids| pids.contains(&pid));
    match opened.and_then(|process| if still { process.kill() } else { Ok(()) }) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        Err(source) => Err(EngineError::Process { action: "kill", pid, source }),
    }
}
