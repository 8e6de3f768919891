//! What the program is told from outside: the only file that reads configuration files and the environment. Everything
//! else gets values. It checks each value by itself and changes nothing.

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use serde::Deserialize;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::plan::Policy;

mod file;
mod resolve;

/// Where the configuration lies unless `--config` says otherwise; it need not exist there.
pub const CONFIG_FILE: &str = "/etc/tt/tt.toml";
/// Where the daemon of this machine answers unless something else is said.
pub const SOCKET: &str = "/run/tt/api.sock";

/// What a daemon is told. Directories are absolute, every value has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What outlives a reboot.
    pub data_dir: PathBuf,
    /// Sockets, RAM files, namespaces; at most [`RUN_DIR_BYTES_MAX`](tt_model::names::RUN_DIR_BYTES_MAX) bytes.
    pub run_dir: PathBuf,
    /// What can be fetched or made again.
    pub cache_dir: PathBuf,
    /// Where the API is served.
    pub socket: PathBuf,
    /// The range that all inner addresses come from; 8 to 16 bits long.
    pub range: Ipv4Net,
    /// The part of it that this host hands out; the first one that the host does not use if nothing is said.
    pub block: Option<Ipv4Net>,
    /// First public port that is handed out.
    pub port_min: u16,
    /// Last public port that is handed out; not below `port_min`.
    pub port_max: u16,
    /// Where published ports are reached; to be found out if nothing is said.
    pub public_addr: Option<Ipv4Addr>,
    /// The address of this host that tunnels of other hosts lead to; to be found out if nothing is said.
    pub underlay_addr: Option<Ipv4Addr>,
    /// UDP port of the tunnels between hosts.
    pub tunnel_port: u16,
    /// Name servers that guests' questions are forwarded to; none if the host has none.
    pub upstream_dns: Vec<SocketAddr>,
    /// The QEMU engine.
    pub qemu: Qemu,
    /// The program of an engine of others, if there is one.
    pub exec_program: Option<PathBuf>,
    /// Firecracker's program; looked up in `PATH` unless it holds a slash.
    pub firecracker: PathBuf,
    /// Where the Docker listens that runs containers.
    pub docker_socket: PathBuf,
    /// The back end for new runtime images.
    pub storage: StorageChoice,
    /// What data sets and volumes lie below; to be found out if nothing is said.
    pub pool: Option<String>,
    /// The agent that goes into templates: an existing file.
    pub guest_agent: PathBuf,
    /// What planning follows.
    pub policy: Policy,
    /// What is logged, as `tracing_subscriber::EnvFilter` reads it.
    pub log: String,
    /// How long a thing that no record knows is left alone before it is cleared.
    pub sweep_grace: Duration,
    /// What the host is to give, where that is not all it has.
    pub host: Capacity,
}

/// The QEMU engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program; looked up in `PATH` unless it holds a slash.
    pub binary: PathBuf,
    /// How it executes.
    pub accelerator: Accelerator,
}

/// How QEMU executes guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM if a probe shows that it works, TCG otherwise.
    #[default]
    Auto,
    /// KVM, or the engine is unusable.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Which back end new runtime images get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum StorageChoice {
    /// The best that the data directory can carry.
    #[default]
    Auto,
    /// Raw files, cloned by reflink where the file system can.
    File,
    /// Overlays on the template's disk.
    Qcow2,
    /// Subvolumes.
    Btrfs,
    /// Data sets of ZFS.
    Zfs,
    /// Volumes of ZFS.
    Zvol,
}

/// What a host is to give to Vms, where that is not all it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Memory in MB (2^20 bytes).
    pub mem_size: Option<u32>,
    /// CPUs.
    pub cpu_num: Option<u16>,
}

/// What the command line says of a daemon; it overrides the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file [default: /etc/tt/tt.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What outlives a reboot: records, templates, disks [default: /var/lib/tt]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Sockets and namespaces [default: /run/tt]. With --data it moves everything, so that daemons can run side by
    /// side
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// The range that inner addresses come from [default: 10.0.0.0/8]
    #[arg(long, value_name = "NET")]
    pub range: Option<Ipv4Net>,
    /// The part of the range that this host hands out [default: the first that the host does not use]
    #[arg(long, value_name = "NET")]
    pub block: Option<Ipv4Net>,
    /// First public port that is handed out [default: 20000]
    #[arg(long, value_name = "PORT")]
    pub port_min: Option<u16>,
    /// Last public port that is handed out [default: 29999]
    #[arg(long, value_name = "PORT")]
    pub port_max: Option<u16>,
    /// Where published ports are reached [default: found out]
    #[arg(long, value_name = "ADDRESS")]
    pub public_addr: Option<Ipv4Addr>,
    /// The back end for new runtime images [default: auto]
    #[arg(long, value_name = "KIND")]
    pub storage: Option<StorageChoice>,
    /// How QEMU executes guests [default: auto]
    #[arg(long, value_name = "HOW")]
    pub accelerator: Option<Accelerator>,
    /// The agent that goes into templates [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub guest_agent: Option<PathBuf>,
    /// What is logged, e.g. `info,tt_host=debug` [env: TT_LOG] [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// Why there is no configuration. A retry never helps.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no configuration.
    #[error("{} is no configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// A value is not allowed.
    #[error("{key} = {value}: {problem}")]
    Accept {
        /// The key, as in the file.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// The guest's agent is nowhere.
    #[error("there is no guest agent at {}", tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or "))]
    FindAgent {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// The program does not know where it lies, or where it is.
    #[error("cannot find out {what}")]
    LookAround {
        /// What was asked.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("name a file that can be read with --config".into()),
            Self::Parse { .. } => Some("correct the file".into()),
            Self::Accept { remedy, .. } => Some(remedy.clone()),
            Self::FindAgent { .. } => Some(
                "install `tt-guest` there, or name it with --guest-agent or `guest_agent`".into(),
            ),
            Self::LookAround { .. } => None,
        }
    }
}

impl Config {
    /// Reads the configuration: defaults, then the file, then `args`. `socket` overrides where the API is served.
    ///
    /// # Errors
    /// [`ConfigError`] names the file or the key, the value, and what would be right.
    pub fn load(args: &ConfigArgs, socket: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match read_config(args.config.as_deref())? {
            Some((path, text)) => file::parse(&path, &text)?,
            None => file::File::default(),
        };
        let around = look_around()?;
        let config = resolve::resolve(file, args, socket, &around)?;
        if config.guest_agent.is_file() {
            return Ok(config);
        }
        let is_default = around.agents.contains(&config.guest_agent);
        let tried = if is_default { around.agents } else { vec![config.guest_agent] };
        Err(ConfigError::FindAgent { tried })
    }
}

/// Where the client finds its daemon: the flag, else `TT_SOCKET`, else [`SOCKET`].
pub fn client_socket(flag: Option<PathBuf>) -> PathBuf {
    let variable = || std::env::var_os("TT_SOCKET").filter(|path| !path.is_empty());
    flag.or_else(|| variable().map(PathBuf::from)).unwrap_or_else(|| SOCKET.into())
}

/// Where the client remembers the keys of guests' servers, in the user's directory for state (the XDG base directories);
/// nowhere for a user without one.
pub fn known_hosts() -> PathBuf {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || variable("HOME").map(|home| home.join(".local/state"));
    match variable("XDG_STATE_HOME").or_else(home) {
        Some(state) => state.join("tt/known_hosts"),
        None => "/dev/null".into(),
    }
}

/// The type of the terminal that the program runs on, for a guest's `TERM`.
pub fn terminal_type() -> String {
    let usable = |term: &String| !term.is_empty() && term != "dumb";
    std::env::var("TERM").ok().filter(usable).unwrap_or_else(|| "xterm".into())
}

/// Where a program of that name lies, by `PATH` and the directories of an administrator's programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path).chain(administrator);
    candidates.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()))
}

/// What a configuration depends on beside the file and the command line.
#[derive(Clone, Debug)]
struct Surroundings {
    /// `TT_LOG`.
    log: Option<String>,
    /// Where relative paths begin.
    current_dir: PathBuf,
    /// Where an agent lies, best first.
    agents: Vec<PathBuf>,
    /// Where Docker listens, or who answers as Docker does.
    docker: PathBuf,
    /// The text of `/etc/resolv.conf`.
    resolv_conf: String,
}

fn look_around() -> Result<Surroundings, ConfigError> {
    let failed = |what| move |source| ConfigError::LookAround { what, source };
    let program = std::env::current_exe().map_err(failed("where this program lies"))?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let candidates = [beside.join("tt-guest"), beside.join("../lib/tt/tt-guest")];
    let agents: Vec<PathBuf> = candidates.iter().filter(|path| path.is_file()).cloned().collect();
    let dockers = [tt_docker::SOCKET, tt_docker::PODMAN_SOCKET].map(PathBuf::from);
    // Docker's socket outlives a Docker that was removed.
    let answers = |socket: &&PathBuf| UnixStream::connect(socket).is_ok();
    Ok(Surroundings {
        log: std::env::var("TT_LOG").ok().filter(|log| !log.is_empty()),
        current_dir: std::env::current_dir().map_err(failed("the current directory"))?,
        agents: if agents.is_empty() { candidates.into() } else { agents },
        docker: dockers.iter().find(answers).unwrap_or(&dockers[0]).clone(),
        // A host without the file has no name server; guests then resolve each other only.
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    })
}

/// The configuration file with its path; nothing if there is none where none was named.
fn read_config(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = named.unwrap_or(Path::new(CONFIG_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// The name of QEMU's program for this machine's architecture.
fn qemu_name() -> PathBuf {
    format!("qemu-system-{}", std::env::consts::ARCH).into()
}
