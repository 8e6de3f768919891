//! From file, command line and surroundings to a configuration that makes sense. Pure.

use super::file::{File, PolicyTable, Span, name_servers};
use super::{Capacity, Config, ConfigArgs, ConfigError, Qemu, Surroundings, qemu_name};
use ipnet::Ipv4Net;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tt_model::check::MEM_SIZE_MIN;
use tt_model::names::RUN_DIR_BYTES_MAX;
use tt_model::plan::Policy;

/// Longest path of a socket: `sun_path` has 108 bytes, of which one ends the text (unix(7)).
const SOCKET_BYTES_MAX: usize = 107;
/// How long a thing that no record knows is left alone unless something else is said: longer than any step of a pass.
const SWEEP_GRACE: Duration = Duration::from_secs(60);

/// Joins what is said, and checks it.
pub(super) fn resolve(
    file: File,
    args: &ConfigArgs,
    socket: Option<&Path>,
    around: &Surroundings,
) -> Result<Config, ConfigError> {
    let absolute = |path: PathBuf| around.current_dir.join(path);
    let data_dir = absolute(args.data.clone().or(file.data_dir).unwrap_or("/var/lib/tt".into()));
    let run_dir = absolute(args.run.clone().or(file.run_dir).unwrap_or("/run/tt".into()));
    let socket = socket.map(Path::to_owned).or(file.socket).map(absolute);
    let agent = args.guest_agent.clone().or(file.guest_agent).map(absolute);
    let servers = file.upstream_dns.map(|all| all.into_iter().map(|server| server.0).collect());
    let config = Config {
        cache_dir: file.cache_dir.map_or_else(|| data_dir.join("cache"), absolute),
        socket: socket.unwrap_or_else(|| run_dir.join("api.sock")),
        data_dir,
        run_dir,
        range: args
            .range
            .or(file.range)
            .unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
        block: args.block.or(file.block),
        port_min: args.port_min.or(file.port_min).unwrap_or(20000),
        port_max: args.port_max.or(file.port_max).unwrap_or(29999),
        public_addr: args.public_addr.or(file.public_addr),
        underlay_addr: file.underlay_addr,
        tunnel_port: file.tunnel_port.map_or(tt_network::TUNNEL_PORT, NonZero::get),
        upstream_dns: servers.unwrap_or_else(|| name_servers(&around.resolv_conf)),
        qemu: Qemu {
            binary: file.qemu.binary.unwrap_or_else(qemu_name),
            accelerator: args.accelerator.unwrap_or(file.qemu.accelerator),
        },
        exec_program: file.exec.program.map(absolute),
        firecracker: file.firecracker.binary.unwrap_or_else(|| "firecracker".into()),
        docker_socket: file.docker.socket.map_or_else(|| around.docker.clone(), absolute),
        storage: args.storage.unwrap_or(file.storage),
        pool: file.zfs.pool.map(|pool| pool.0),
        guest_agent: agent.or_else(|| around.agents.first().cloned()).unwrap_or_default(),
        policy: policy(&file.policy)?,
        log: args.log.clone().or(around.log.clone()).or(file.log).unwrap_or("info".into()),
        sweep_grace: file.sweep_grace.map_or(SWEEP_GRACE, |span| span.0),
        host: Capacity {
            mem_size: file.host.mem_size.map(|size| size.0),
            cpu_num: file.host.cpu_num,
        },
    };
    check(&config)?;
    Ok(config)
}

fn policy(table: &PolicyTable) -> Result<Policy, ConfigError> {
    let default = Policy::default();
    let secs = |key, span: Option<Span>, default| match span {
        Some(Span(span)) if span.subsec_nanos() == 0 => Ok(span.as_secs()),
        Some(Span(span)) => Err(refuse(
            key,
            humantime::format_duration(span),
            "it is no whole number of seconds",
            "write e.g. \"20s\"",
        )),
        None => Ok(default),
    };
    Ok(Policy {
        life_time_default: secs(
            "policy.life_time_default",
            table.life_time_default,
            default.life_time_default,
        )?,
        life_time_max: secs("policy.life_time_max", table.life_time_max, default.life_time_max)?,
        mgmt_interval: secs("policy.mgmt_interval", table.mgmt_interval, default.mgmt_interval)?,
        shutdown_grace: secs(
            "policy.shutdown_grace",
            table.shutdown_grace,
            default.shutdown_grace,
        )?,
        cpu_num_default: table.cpu_num_default.unwrap_or(default.cpu_num_default),
        mem_size_default: table.mem_size_default.map_or(default.mem_size_default, |size| size.0),
    })
}

fn refuse(
    key: &'static str,
    value: impl Display,
    problem: impl Into<String>,
    remedy: impl Into<String>,
) -> ConfigError {
    ConfigError::Accept {
        key,
        value: value.to_string(),
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

fn check(config: &Config) -> Result<(), ConfigError> {
    check_paths(config)?;
    check_addresses(config)?;
    check_policy(&config.policy)?;
    let ports = format!("{}..{}", config.port_min, config.port_max);
    if config.port_min == 0 || config.port_min > config.port_max {
        let remedy = "give ports from 1 to 65535, and a port_max that is not below port_min";
        return Err(refuse("port_min..port_max", ports, "it is no range of ports", remedy));
    }
    if config.host.cpu_num == Some(0) {
        return Err(refuse("host.cpu_num", 0, "a host gives at least one", "give a number from 1"));
    }
    if let Some(mem) = config.host.mem_size.filter(|mem| *mem < MEM_SIZE_MIN) {
        let remedy = format!("give at least \"{MEM_SIZE_MIN}M\"");
        return Err(refuse("host.mem_size", mem, "no guest boots in so little memory", remedy));
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log) {
        return Err(refuse(
            "log",
            &config.log,
            error.to_string(),
            "write e.g. `info,tt_host=debug`",
        ));
    }
    Ok(())
}

fn check_paths(config: &Config) -> Result<(), ConfigError> {
    let bytes = |path: &Path| path.as_os_str().len();
    if bytes(&config.run_dir) > RUN_DIR_BYTES_MAX {
        return Err(refuse(
            "run_dir",
            config.run_dir.display(),
            "it is too long for the sockets below it",
            format!("use a path of at most {RUN_DIR_BYTES_MAX} bytes"),
        ));
    }
    if bytes(&config.socket) > SOCKET_BYTES_MAX {
        return Err(refuse(
            "socket",
            config.socket.display(),
            "it is too long for a socket",
            format!("use a path of at most {SOCKET_BYTES_MAX} bytes"),
        ));
    }
    for (key, path) in [("data_dir", &config.data_dir), ("run_dir", &config.run_dir)] {
        if path.parent().is_none() {
            let remedy = "name a directory of its own, e.g. /var/lib/tt and /run/tt";
            return Err(refuse(key, path.display(), "it is the root of all files", remedy));
        }
    }
    if config.data_dir == config.run_dir {
        let remedy = "name two directories: one outlives a reboot, the other one must not";
        return Err(refuse("run_dir", config.run_dir.display(), "it is the data_dir too", remedy));
    }
    Ok(())
}

fn check_addresses(config: &Config) -> Result<(), ConfigError> {
    let range = config.range;
    if range != range.trunc() || !(8..=16).contains(&range.prefix_len()) {
        let remedy = "write the first address with a prefix from 8 to 16, e.g. 10.0.0.0/8: the last three bytes of an \
                      address are those of its MAC";
        return Err(refuse("range", range, "it can not hold the inner addresses", remedy));
    }
    let first = range.network();
    if first.octets()[0] == 0
        || first.is_loopback()
        || first.is_multicast()
        || first.octets()[0] >= 240
    {
        return Err(refuse(
            "range",
            range,
            "no host can have such addresses",
            "use e.g. 10.0.0.0/8",
        ));
    }
    if let Some(block) = config.block
        && (block != block.trunc() || !range.contains(&block) || block.prefix_len() > 30)
    {
        let remedy = "write the first address with a prefix of at most 30, e.g. 10.1.0.0/16";
        return Err(refuse("block", block, format!("it is no part of the range {range}"), remedy));
    }
    let is_unusable = |addr: &Ipv4Addr| {
        addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() || range.contains(addr)
    };
    let remedy = "give an address of this host, outside of the range";
    if let Some(addr) = config.public_addr.filter(is_unusable) {
        return Err(refuse("public_addr", addr, "no port can be reached there", remedy));
    }
    if let Some(addr) = config.underlay_addr.filter(|addr| is_unusable(addr) || addr.is_loopback())
    {
        return Err(refuse("underlay_addr", addr, "no tunnel can lead there", remedy));
    }
    Ok(())
}

fn check_policy(policy: &Policy) -> Result<(), ConfigError> {
    let Policy { life_time_default, life_time_max, cpu_num_default, mem_size_default, .. } =
        *policy;
    if life_time_default == 0 || life_time_default > life_time_max {
        return Err(refuse(
            "policy.life_time_default",
            format!("{life_time_default}s"),
            format!("it is not between 1s and life_time_max ({life_time_max}s)"),
            "set both so that the default is within the limit",
        ));
    }
    if cpu_num_default == 0 {
        return Err(refuse(
            "policy.cpu_num_default",
            0,
            "a Vm has at least one",
            "give a number from 1",
        ));
    }
    if mem_size_default < MEM_SIZE_MIN {
        let remedy = format!("give at least \"{MEM_SIZE_MIN}M\"");
        let value = format!("{mem_size_default}M");
        return Err(refuse(
            "policy.mem_size_default",
            value,
            "no guest boots in so little memory",
            remedy,
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
