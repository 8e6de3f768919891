//! A Docker daemon of a test's own: its files, its socket, its control groups and its network namespace are its own, and
//! go with it. It touches no other Docker, no rule of a firewall and no bridge.

use crate::oci::{Image, Node, archive};
use crate::{Must, remains, skip, within};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tt_docker::Docker;

/// How long it may take to come and to go on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// BusyBox, where it is static.
const BUSYBOX: &str = "/bin/busybox";
/// What a container of [`Dockerd::busybox`] finds in `/bin`.
const APPLETS: [&str; 24] = [
    "cat", "chmod", "cp", "dd", "echo", "env", "id", "ip", "kill", "ls", "mkdir", "nc", "nslookup",
    "pgrep", "ping", "ps", "rm", "sh", "sleep", "stat", "sync", "test", "touch", "wget",
];

/// A daemon at work. Dropping it takes everything down.
#[derive(Debug)]
pub struct Dockerd {
    kind: Kind,
    child: Option<Child>,
    /// Where Podman mounts, in all of its lives: its containers outlive it.
    mounts: Option<File>,
    dir: TempDir,
}

/// Which program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Docker,
    /// Podman, which answers as Docker does.
    Podman,
}

impl Dockerd {
    /// Starts it. `None`, after it has been said for the test `name`, if this machine lacks something.
    pub fn start(name: &str) -> Option<Self> {
        Self::start_kind(name, Kind::Docker)
    }

    /// As [`Dockerd::start`], with Podman in its place.
    pub fn start_podman(name: &str) -> Option<Self> {
        Self::start_kind(name, Kind::Podman)
    }

    fn start_kind(name: &str, kind: Kind) -> Option<Self> {
        if let Some(reason) = lacks(kind) {
            skip(name, &reason);
            return None;
        }
        let prefix = format!("ttdocker-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().must("make a directory");
        let mut dockerd = Self { kind, child: None, mounts: None, dir };
        dockerd.run();
        Some(dockerd)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// What asks it.
    pub fn docker(&self) -> Docker {
        Docker::new(self.socket())
    }

    /// Starts it again after [`Dockerd::kill`] or [`Dockerd::end`].
    ///
    /// # Panics
    /// If it does not come.
    pub fn run(&mut self) {
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log"));
        let log = log.must("open the log");
        let mut command = match self.kind {
            Kind::Docker => self.dockerd(),
            Kind::Podman => self.podman(),
        };
        if self.kind == Kind::Podman {
            let url = format!("unix://{}", self.socket().display());
            command.args(["system", "service", "--time", "0", &url]);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().must("share the log"))
            .stderr(log)
            .process_group(0);
        let is_podman = self.kind == Kind::Podman;
        let mounts = self.mounts.as_ref().map(|mounts| mounts.try_clone().must("share a handle"));
        let enter = move || {
            // A test that is killed takes it along.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // SAFETY: this changes the namespace of the child alone.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
            if let Some(mounts) = &mounts {
                let kind = Some(LinkNameSpaceType::Mount);
                move_into_link_name_space(mounts.as_fd(), kind)?;
            } else if is_podman {
                // It mounts what it makes into folders of the host: those mounts end with it.
                // SAFETY: as above.
                unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
                let inward = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                mount_change("/", inward)?;
            }
            Ok(())
        };
        // SAFETY: the closure makes few system calls between fork and exec and allocates nothing.
        unsafe { command.pre_exec(enter) };
        let child = command.spawn().must("start dockerd");
        if is_podman && self.mounts.is_none() {
            let mounts = format!("/proc/{}/ns/mnt", child.id());
            self.mounts = Some(File::open(mounts).must("hold where it mounts"));
        }
        self.child = Some(child);
        let docker = self.docker();
        let mut is_over = false;
        let is_up = within(PATIENCE, || {
            let child = self.child.as_mut();
            is_over = child.is_none_or(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
            is_over || docker.server().is_ok()
        });
        assert!(is_up && !is_over, "dockerd does not come:\n{}", self.log());
    }

    fn dockerd(&self) -> Command {
        let under = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("dockerd");
        command
            .args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--userland-proxy=false", "--live-restore=false"])
            .arg(format!("--cgroup-parent=/{}", self.cgroup()))
            .arg(format!("--host=unix://{}", under("docker.sock").display()))
            .arg("--data-root")
            .arg(under("data"))
            .arg("--exec-root")
            .arg(under("exec"))
            .arg("--pidfile")
            .arg(under("pid"));
        command
    }

    /// Podman on its own files, without what it is to do.
    fn podman(&self) -> Command {
        let under = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("podman");
        let settings = under("containers.conf");
        fs::write(&settings, podman_settings()).must("write what Podman is told");
        command
            .env("CONTAINERS_CONF", settings)
            .args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"])
            .arg("--root")
            .arg(under("data"))
            .arg("--runroot")
            .arg(under("exec"))
            .arg("--tmpdir")
            .arg(under("tmp"));
        command
    }

    /// Kills the daemon alone, as when it crashes: its containers run on for now.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        // Its containerd dies with it. The next one needs its files; and where nobody reaps orphans, the next daemon would
        // take it for alive.
        let note = self.dir.path().join("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(&note).unwrap_or_default();
        within(PATIENCE, || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
        });
        let _ = fs::remove_file(note);
    }

    /// Ends the daemon as its administrator does: it stops its containers.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Writes an image with BusyBox in it as `docker save` does; of it, containers run `argv`. Answers where it lies.
    ///
    /// # Panics
    /// If it can not be written.
    pub fn busybox(dir: &Path, argv: &[&str]) -> PathBuf {
        let program = fs::read(BUSYBOX).must("read BusyBox");
        let mut nodes = vec![
            Node::dir("bin"),
            Node::dir("etc"),
            Node::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/:/bin/sh\n"),
            Node::file("etc/group", "root:x:0:\nweb:x:33:\n"),
            Node::dir("tmp").mode(0o1777),
            Node::program("bin/busybox", program),
        ];
        nodes.extend(APPLETS.map(|name| Node::symlink(format!("bin/{name}"), "busybox")));
        let image = Image::of(&[&nodes]).running(serde_json::json!({
            "Cmd": argv,
            "Env": ["PATH=/bin", "COLOUR=green"],
        }));
        let path = dir.join("container.tar");
        fs::write(&path, archive(&image.saved())).must("write an image");
        path
    }

    /// How much memory the host lets a running container take, in bytes.
    ///
    /// # Panics
    /// If it does not run.
    pub fn mem_bytes(&self, container: &str) -> u64 {
        let found = self.docker().container(container).must("look at a container");
        let pid = found.must("a container").state.pid;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).must("its groups");
        // `4:memory:/path` (cgroups(7)).
        let group = |controller: &str| {
            let mut parts = groups.lines().map(|line| line.splitn(3, ':').skip(1));
            parts.find_map(|mut part| (part.next() == Some(controller)).then(|| part.next())?)
        };
        let root = Path::new("/sys/fs/cgroup");
        let read = |path: String| fs::read_to_string(root.join(path)).ok();
        let limit = group("memory")
            .and_then(|path| read(format!("memory{path}/memory.limit_in_bytes")))
            .or_else(|| read(format!("{}/memory.max", group("")?.trim_start_matches('/'))));
        limit.must("its limit").trim().parse().must("a number")
    }

    fn signal(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended is waited for all the same.
            let _ = kill_process(pid, signal);
        }
        let ended = within(PATIENCE, || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The control group of its containers.
    pub fn cgroup(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Removes all containers, which would go on without their Podman, and what it leaves on the host beside its files.
    fn clear_podman(&self) {
        let docker = self.docker();
        for container in docker.containers(&[]).unwrap_or_default() {
            // One that has ended is no failure, and what stays is told by who looks for it.
            let _ = docker.kill(&container.id, "SIGKILL");
            within(PATIENCE, || docker.remove(&container.id).is_ok());
        }
        clear_parents();
    }

    /// As [`Dockerd::clear_podman`], of one that was killed: by what it has noted of its containers, which have its word in the
    /// names of their groups.
    fn clear_killed_podman(&self) {
        let storages = remains::entries(&self.dir.path().join("exec"));
        for container in storages.iter().flat_map(|storage| remains::entries(storage)) {
            let id = container.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let pid = fs::read_to_string(container.join("userdata/pidfile")).unwrap_or_default();
            let groups = || fs::read_to_string(format!("/proc/{}/cgroup", pid.trim()));
            let lives = || groups().is_ok_and(|groups| groups.contains(&format!("libpod-{id}")));
            if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw).filter(|_| lives()) {
                let _ = kill_process(pid, Signal::KILL);
                within(PATIENCE, || !lives());
            }
            for root in remains::entries(Path::new("/sys/fs/cgroup")) {
                let _ = fs::remove_dir(root.join(format!("libpod_parent/libpod-{id}")));
            }
        }
        clear_parents();
    }

    /// Kills what is in its control groups, and removes them.
    fn clear_cgroups(&self) {
        let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let rows = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let roots = rows.filter(|row| row.get(2).is_some_and(|kind| kind.starts_with("cgroup")));
        let roots: Vec<_> = roots.map(|row| Path::new(row[1]).join(self.cgroup())).collect();
        within(PATIENCE, || {
            roots.iter().filter(|root| root.is_dir()).for_each(|root| clear_group(root));
            !roots.iter().any(|root| root.is_dir())
        });
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines = log.lines().filter(|line| !line.contains("level=info"));
            let tail: Vec<&str> = lines.rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            crate::complain(&format!("dockerd's log ends with\n{}", tail.join("\n")));
        }
        match (self.kind, &self.child) {
            (Kind::Docker, _) => {}
            (Kind::Podman, Some(_)) => self.clear_podman(),
            (Kind::Podman, None) => self.clear_killed_podman(),
        }
        self.end();
        // What was left when it crashed: containerd, shims, and what runs below them.
        self.clear_cgroups();
        remains::lose_power(self.dir.path(), self.dir.path());
        self.clear_cgroups();
    }
}

fn lacks(kind: Kind) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let (program, package) = match kind {
        Kind::Docker => ("dockerd", "docker.io"),
        Kind::Podman => ("podman", "podman"),
    };
    if !has(program) {
        return Some(format!("there is no {program}; install {package}"));
    }
    (!Path::new(BUSYBOX).is_file()).then(|| "there is no busybox; install busybox-static".into())
}

/// Podman's own bounds of files and processes are more than it may give where a host bounds root. Itself it takes no more
/// processes than there are numbers for.
fn podman_settings() -> String {
    let numbers = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let numbers = numbers.trim().parse().unwrap_or(u64::MAX);
    let most = |resource| getrlimit(resource).maximum.unwrap_or(numbers).min(numbers);
    let (files, processes) = (most(Resource::Nofile), most(Resource::Nproc));
    let bounds = format!("\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"");
    format!("[containers]\ndefault_ulimits = [{bounds}]\n")
}

/// Removes the groups that Podman keeps containers in, and its watchers of them. Another one may use them: then it refuses.
fn clear_parents() {
    for root in remains::entries(Path::new("/sys/fs/cgroup")) {
        let _ = fs::remove_dir(root.join("libpod_parent/conmon"));
        let _ = fs::remove_dir(root.join("libpod_parent"));
    }
    let _ = fs::remove_dir("/sys/fs/cgroup/libpod_parent");
}

/// Kills what is in a control group and below it, and removes it once it is empty.
fn clear_group(group: &Path) {
    for inner in remains::entries(group).into_iter().filter(|path| path.is_dir()) {
        clear_group(&inner);
    }
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = fs::remove_dir(group);
}
