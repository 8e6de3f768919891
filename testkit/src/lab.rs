//! The lab: a directory, a host and a client outside of it in network namespaces, and a daemon on the host.

use crate::Dockerd;
use crate::guard::Guard;
use crate::programs::{Programs, example_engine, fill_debian, fill_recipe, programs};
use crate::space::Space;
use crate::wait::within;
use crate::{Must, remains, skip};
use std::fs::{self, File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The host's address on its link to the client.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Where the daemon asks for names that it does not know; nobody listens there unless the test does.
pub const NAME_SERVER: &str = "127.0.0.1:5300";
/// How long a daemon may take to answer, or to end.
pub(crate) const DAEMON: Duration = Duration::from_secs(60);
/// How much of a daemon's log is shown when a test fails, in bytes.
const LOG_TAIL: usize = 6000;
/// How guests are executed unless `TT_TEST_ACCELERATOR` says: a probe at each start would only take time, and TCG is everywhere.
const ACCELERATOR: &str = "tcg";

/// How a lab is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    name: &'static str,
    top: String,
    log: &'static str,
    policy: String,
    qemu: String,
    data_size: Option<String>,
    spaces: Option<(Space, Space)>,
    docker: Option<PathBuf>,
}

impl Setup {
    /// A lab for the test `name`: no least time between management calls, short graces.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            log: "info",
            top: "sweep_grace = \"5s\"\n".into(),
            policy: "mgmt_interval = \"0s\"\nshutdown_grace = \"15s\"\n".into(),
            qemu: String::new(),
            data_size: None,
            spaces: None,
            docker: None,
        }
    }

    /// Puts it on the host of another lab, with ports and directories of its own.
    pub fn beside(mut self, lab: &Lab) -> Self {
        self.spaces = Some((lab.host.clone(), lab.client.clone()));
        self.top("port_min = 30000").top("port_max = 30999")
    }

    /// Puts it into that namespace, which `client` is outside of.
    pub fn within(mut self, host: &Space, client: &Space) -> Self {
        self.spaces = Some((host.clone(), client.clone()));
        self
    }

    /// Lets it run containers, by that Docker; others know none.
    pub fn docker(self, dockerd: &Dockerd) -> Self {
        self.docker_at(dockerd.socket())
    }

    /// The same, by what listens there.
    pub fn docker_at(mut self, socket: PathBuf) -> Self {
        self.docker = Some(socket);
        self
    }

    /// What the daemon logs, as `TT_LOG` takes it.
    pub fn log(mut self, filter: &'static str) -> Self {
        self.log = filter;
        self
    }

    /// Lets management calls on one Env be so far apart.
    pub fn mgmt_interval(mut self, interval: &str) -> Self {
        self.policy = self.policy.replace("\"0s\"", &format!("{interval:?}"));
        self
    }

    /// Leaves what no record knows alone for that long, unless a repair is asked for.
    pub fn sweep_grace(mut self, grace: &str) -> Self {
        self.top = self.top.replace("\"5s\"", &format!("{grace:?}"));
        self
    }

    /// Adds a line to the table `policy` of the configuration.
    pub fn policy(mut self, line: &str) -> Self {
        self.policy += &format!("{line}\n");
        self
    }

    /// Adds a line to the head of the configuration.
    pub fn top(mut self, line: &str) -> Self {
        self.top += &format!("{line}\n");
        self
    }

    /// Puts a program in QEMU's place: the text of a script, in the lab's directory.
    pub fn qemu_script(mut self, script: &str) -> Self {
        self.qemu = script.into();
        self
    }

    /// Puts the data directory on a file system of that size, as `mount -t tmpfs -o size=` takes it.
    pub fn data_size(mut self, size: &str) -> Self {
        self.data_size = Some(size.into());
        self
    }

    /// As [`Setup::start`], with the example of an engine of others.
    pub fn start_with_example(self) -> Option<Lab> {
        match example_engine() {
            Ok(path) => self.top(&format!("exec.program = {path:?}")).start(),
            Err(reason) => {
                skip(self.name, &reason);
                None
            }
        }
    }

    /// As [`Setup::start`], once all that `debian-12` is built from is at hand: its first build takes minutes.
    pub fn start_with_debian(self) -> Option<Lab> {
        if let Err(reason) = programs().and_then(fill_debian) {
            skip(self.name, &reason);
            return None;
        }
        self.start()
    }

    /// As [`Setup::start`], once the packages of the recipe in `file` are at hand.
    pub fn start_with_recipe(self, file: &Path) -> Option<Lab> {
        if let Err(reason) = programs().and_then(|programs| fill_recipe(programs, file)) {
            skip(self.name, &reason);
            return None;
        }
        self.start()
    }

    /// Builds it and starts its daemon. `None`, after it has been said, if this machine lacks something.
    pub fn start(self) -> Option<Lab> {
        match programs() {
            Ok(programs) => Some(Lab::build(self, programs)),
            Err(reason) => {
                skip(self.name, &reason);
                None
            }
        }
    }
}

/// A scratch host with a daemon. Dropping it takes everything down.
#[derive(Debug)]
pub struct Lab {
    /// Where the daemon is.
    pub host: Space,
    /// Where the host is reached from outside.
    pub client: Space,
    pub(crate) programs: &'static Programs,
    pub(crate) daemon: Option<Child>,
    name: &'static str,
    config: PathBuf,
    // In the order in which they are to be dropped.
    guard: Option<Guard>,
    dir: TempDir,
}

impl Lab {
    /// [`Setup::start`] with nothing special.
    pub fn new(name: &'static str) -> Option<Self> {
        Setup::new(name).start()
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir().join("d")
    }

    /// What is in a directory below the data directory; nothing, where there is none.
    pub fn entries(&self, dir: &str) -> Vec<PathBuf> {
        remains::entries(&self.data().join(dir))
    }

    /// The control groups that this daemon keeps its machines' groups in, one for each hierarchy.
    pub fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let mut groups = remains::cgroups(self.dir());
        groups.retain(|group| group.parent().is_some_and(|parent| parent.ends_with("tt")));
        groups
    }

    /// All files below a directory, as paths below the data directory.
    pub fn tree(&self, dir: &str) -> Vec<String> {
        let below = |path: &PathBuf| {
            let name = path.strip_prefix(self.data()).unwrap_or(path).display().to_string();
            if path.is_dir() { self.tree(&name) } else { vec![name] }
        };
        self.entries(dir).iter().flat_map(below).collect()
    }

    /// The daemon's run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("r")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// What tells this daemon's things from those of another one on the same host.
    pub(crate) fn instance(&self) -> String {
        let text = fs::read_to_string(self.data().join("instance")).must("read the instance");
        text.trim().to_owned()
    }

    /// The running machines of this lab: pid and command line.
    pub fn machines(&self) -> Vec<(i32, String)> {
        remains::machines(self.dir())
    }

    /// The running machines by the ids of their Vms: each with its pid.
    pub fn machine_ids(&self) -> Vec<(u64, i32)> {
        // A machine is called `tt-INSTANCE-ID`.
        let id = |line: &str| {
            let name = line.split_once(" -name tt-")?.1.split([',', ' ']).next()?;
            name.split('-').nth(1)?.parse().ok()
        };
        self.machines().iter().filter_map(|(pid, line)| Some((id(line)?, *pid))).collect()
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// A command that starts a daemon on this lab's host, with its own standard streams.
    pub fn daemon_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.tt);
        command.arg("daemon").args(args);
        for variable in ["TT_LOG", "TT_SOCKET", "TT_FAILPOINT"] {
            command.env_remove(variable);
        }
        command
    }

    /// The configuration file of the lab's daemon.
    pub fn config(&self) -> String {
        self.config.display().to_string()
    }

    fn build(setup: Setup, programs: &'static Programs) -> Self {
        let prefix = format!("ttlab-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().must("make a directory");
        let guard = programs.guard.as_ref().map(|guard| Guard::start(guard, dir.path()));
        let guard = guard.map(|guard| guard.must("start the guard"));
        // Machines of other users pass through it.
        let open = fs::Permissions::from_mode(0o711);
        fs::set_permissions(dir.path(), open).must("open the directory");
        let (host, client) = setup.spaces.clone().unwrap_or_else(spaces);
        let config = dir.path().join("tt.toml");
        let (name, daemon) = (setup.name, None);
        let mut lab = Self { host, client, programs, daemon, name, config, guard, dir };
        lab.configure(&setup);
        lab.restart();
        lab.tt(&["template", "build", "micro"]).good();
        lab
    }

    fn configure(&self, setup: &Setup) {
        let Programs { agent, cache, .. } = self.programs;
        let Setup { top, log, policy, qemu, data_size, .. } = setup;
        let (data, run) = (self.data(), self.run_dir());
        fs::create_dir(&data).must("make the data directory");
        if let Some(size) = data_size {
            let size = format!("size={size},mode=711");
            let mut mount = Command::new("mount");
            let mount = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&data);
            crate::run::run(mount, b"").good();
        }
        let mut binary = String::new();
        if !qemu.is_empty() {
            let script = self.dir().join("qemu");
            fs::write(&script, qemu).must("write a script");
            let runs = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&script, runs).must("let a script run");
            binary = format!("binary = {script:?}\n");
        }
        // Never the machine's own one.
        let docker = setup.docker.clone().unwrap_or_else(|| self.dir().join("no-docker.sock"));
        let accelerator = std::env::var("TT_TEST_ACCELERATOR").unwrap_or(ACCELERATOR.into());
        let text = format!(
            "data_dir = {data:?}\nrun_dir = {run:?}\ncache_dir = {cache:?}\nguest_agent = {agent:?}\n\
             public_addr = \"{HOST}\"\nupstream_dns = [\"{NAME_SERVER}\"]\nlog = {log:?}\ndocker.socket = {docker:?}\n{top}\
             [qemu]\naccelerator = {accelerator:?}\n{binary}[policy]\n{policy}"
        );
        fs::write(&self.config, text).must("write the configuration");
    }

    pub(crate) fn spawn(&mut self, failpoint: Option<&str>) {
        let log = self.dir().join("log");
        let open = || OpenOptions::new().create(true).append(true).open(&log).must("open the log");
        let (out, err): (File, File) = (open(), open());
        let mut command = self.daemon_command(&["--config", &self.config()]);
        failpoint.map(|failpoint| command.env("TT_FAILPOINT", failpoint));
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        self.daemon = Some(self.host.run(|| command.spawn()).must("start the daemon"));
    }

    /// Waits until the daemon answers, or has died.
    pub(crate) fn answers(&mut self) -> bool {
        let mut is_up = false;
        within(DAEMON, || {
            is_up = self.get("/v1/version").is_some_and(|answer| answer.status == 200);
            is_up || self.dies(Duration::ZERO)
        });
        is_up
    }

    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = self.tail();
            crate::complain(&format!("{}: the daemon's log ends with\n{tail}", self.name));
        }
        remains::clear(self.dir.path());
        if let Some(mut daemon) = self.daemon.take() {
            // It was killed with the rest.
            let _ = daemon.wait();
        }
        self.guard = None;
    }
}

/// A host and a client outside of it, which is its way to everywhere else.
pub fn spaces() -> (Space, Space) {
    let (host, client) = (Space::new().must("a space"), Space::new().must("a space"));
    host.ip(&format!("link add up0 type veth peer name eth0 netns {}", client.path()));
    host.ip(&format!("addr add {HOST}/24 dev up0"));
    host.ip("link set up0 up");
    client.ip(&format!("addr add {CLIENT}/24 dev eth0"));
    client.ip("link set eth0 up");
    host.ip(&format!("route add default via {CLIENT}"));
    (host, client)
}
