//! A Docker daemon of a bench's own: in the namespaces of the calling thread, with its own root for data, socket and group.
//! Its containers, processes and groups go with it.

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use testkit::oci::{Node, tar};
use testkit::{Must, Space, within};

/// How long it may take to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of an answer.
const ANSWERS: Duration = Duration::from_secs(60);
/// Its image.
const IMAGE: &str = "bench";

/// The daemon.
pub struct Docker {
    child: Child,
    dir: TempDir,
    containers: Vec<String>,
}

/// Runs `action` with a daemon in that network namespace; `Err` says what this machine lacks for it.
pub fn with<T: Send>(
    host: &Space,
    action: impl FnOnce(&mut Docker) -> T + Send,
) -> Result<T, String> {
    host.run(|| {
        // SAFETY: nothing in Rust relies on which file systems a thread sees, and it ends after this.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.must("a mount namespace");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).must("keep mounts to ourselves");
        let mut docker = Docker::start()?;
        Ok(action(&mut docker))
    })
}

impl Docker {
    fn start() -> Result<Self, String> {
        // Where containerd has its state, whoever else runs one.
        crate::mount::tool(Command::new("mount").args(["-t", "tmpfs", "bench", "/run"]))?;
        let dir = tempfile::Builder::new().prefix("ttbench-").tempdir().must("a directory");
        let at = |name: &str| dir.path().join(name);
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at("sock").display()));
        command.arg("--config-file").arg(at("none")).arg("--cgroup-parent").arg(group(dir.path()));
        let log = fs::File::create(at("log")).must("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: one system call, which may be made between fork and exec.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) };
        fs::write(at("none"), "{}").must("a configuration");
        let child = command.spawn().map_err(|error| format!("dockerd: {error}"))?;
        let mut docker = Self { child, dir, containers: Vec::new() };
        let serves = within(PATIENCE, || {
            docker.child.try_wait().is_ok_and(|end| end.is_some())
                || docker.ask("GET", "/_ping", b"").is_some_and(|(code, _)| code == 200)
        });
        if !serves || docker.child.try_wait().is_ok_and(|end| end.is_some()) {
            let log = fs::read_to_string(docker.dir.path().join("log")).unwrap_or_default();
            return Err(format!(
                "dockerd does not serve: {}",
                log.lines().last().unwrap_or_default()
            ));
        }
        docker.import();
        Ok(docker)
    }

    /// An image with the tests' static program for guests.
    fn import(&self) {
        let helper = std::env::var_os("TT_TEST_HELPER").must("TT_TEST_HELPER is set");
        let program = fs::read(helper).must("read the helper");
        let archive = tar(&[Node::program("helper", program)]);
        let path = format!("/images/create?fromSrc=-&repo={IMAGE}");
        let (code, text) = self.ask("POST", &path, &archive).must("an answer");
        assert_eq!(code, 200, "import an image: {text}");
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Calls the API; fails the bench if that does.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let (code, text) = self.ask(method, path, body.to_string().as_bytes()).must("an answer");
        assert!((200..300).contains(&code), "{method} {path}: {code} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// A container that runs, on a network; its id.
    pub fn container(&mut self, network: &str) -> String {
        let host = json!({ "NetworkMode": network });
        let body = json!({ "Image": IMAGE, "Cmd": ["/helper", "echo", "7"], "HostConfig": host });
        let made = self.call("POST", "/containers/create", &body);
        let id = made["Id"].as_str().must("an id").to_owned();
        self.containers.push(id.clone());
        self.call("POST", &format!("/containers/{id}/start"), &json!({}));
        id
    }

    /// The network namespace of a container, and its address on a network.
    pub fn place(&self, id: &str, network: &str) -> (Space, String) {
        let seen = self.call("GET", &format!("/containers/{id}/json"), &json!({}));
        let pid = seen["State"]["Pid"].as_u64().must("a pid");
        let space = Space::at(Path::new(&format!("/proc/{pid}/ns/net"))).must("its namespace");
        let addr = &seen["NetworkSettings"]["Networks"][network]["IPAddress"];
        (space, addr.as_str().must("an address").to_owned())
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(ANSWERS)).ok()?;
        let kind = if body.starts_with(b"{") { "application/json" } else { "application/x-tar" };
        let head = format!(
            "{method} /v1.41{path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut answer = Vec::new();
        // It may answer and close before it has read all.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let code = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Some((code, body.unwrap_or_default()))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        for id in &self.containers {
            self.ask("DELETE", &format!("/containers/{id}?force=true"), b"{}");
        }
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        if !within(PATIENCE, || self.child.try_wait().is_ok_and(|end| end.is_some())) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        for pid in left(self.dir.path()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // There is none where this kind of group is not used.
            let _ = fs::remove_dir(hierarchy.path().join(group(self.dir.path())));
        }
    }
}

/// The control group of its containers.
fn group(dir: &Path) -> PathBuf {
    dir.file_name().map(PathBuf::from).unwrap_or_default()
}

/// What it started and left: all of that names its directory.
fn left(dir: &Path) -> Vec<Pid> {
    let mark = dir.as_os_str().as_bytes();
    let names = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        line.windows(mark.len()).any(|part| part == mark)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| names(path));
    paths.filter_map(|path| Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)).collect()
}
