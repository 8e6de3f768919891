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
mod tests {
    use super::super::file::parse;
    use super::super::{Accelerator, StorageChoice};
    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            log: None,
            current_dir: "/home/u".into(),
            agents: vec!["/usr/bin/tt-guest".into(), "/usr/lib/tt/tt-guest".into()],
            resolv_conf: "nameserver 192.0.2.1\n".into(),
        }
    }

    fn resolved(text: &str, args: &ConfigArgs) -> Result<Config, ConfigError> {
        resolve(parse(Path::new("/etc/tt/tt.toml"), text)?, args, None, &around())
    }

    #[test]
    fn nothing_said_is_the_documented_default() {
        let config = resolved("", &ConfigArgs::default()).unwrap();
        assert_eq!(
            config,
            Config {
                data_dir: "/var/lib/tt".into(),
                run_dir: "/run/tt".into(),
                cache_dir: "/var/lib/tt/cache".into(),
                socket: crate::config::SOCKET.into(),
                range: "10.0.0.0/8".parse().unwrap(),
                block: None,
                port_min: 20000,
                port_max: 29999,
                public_addr: None,
                underlay_addr: None,
                tunnel_port: 4789,
                upstream_dns: vec!["192.0.2.1:53".parse().unwrap()],
                qemu: Qemu {
                    binary: format!("qemu-system-{}", std::env::consts::ARCH).into(),
                    accelerator: Accelerator::Auto,
                },
                exec_program: None,
                storage: StorageChoice::Auto,
                pool: None,
                guest_agent: "/usr/bin/tt-guest".into(),
                policy: Policy::default(),
                log: "info".into(),
                sweep_grace: Duration::from_secs(60),
                host: Capacity::default(),
            }
        );
    }

    #[test]
    fn the_file_says_everything_and_the_flags_override_it() {
        let text = r#"
            data_dir = "/srv/tt"
            run_dir = "/run/tt2"
            cache_dir = "/srv/cache"
            range = "10.128.0.0/9"
            block = "10.128.0.0/16"
            port_min = 30000
            port_max = 30999
            public_addr = "192.0.2.7"
            underlay_addr = "192.0.2.8"
            tunnel_port = 8472
            upstream_dns = ["192.0.2.5", "192.0.2.6:5353"]
            storage = "qcow2"
            guest_agent = "agent"
            log = "debug"
            sweep_grace = "1h"
            zfs.pool = "tank/vms"
            exec.program = "engine"
            qemu = { binary = "/opt/qemu", accelerator = "tcg" }
            host = { mem_size = "8G", cpu_num = 4 }
            [policy]
            life_time_default = "4h"
            life_time_max = "1d12h"
            mgmt_interval = "0s"
            shutdown_grace = "5s"
            cpu_num_default = 2
            mem_size_default = "1G"
        "#;
        let config = resolved(text, &ConfigArgs::default()).unwrap();
        assert_eq!(config.socket, Path::new("/run/tt2/api.sock"));
        assert_eq!(config.guest_agent, Path::new("/home/u/agent"));
        assert_eq!(config.upstream_dns[1], "192.0.2.6:5353".parse().unwrap());
        let policy = &config.policy;
        assert_eq!((policy.life_time_default, policy.life_time_max), (14_400, 129_600));
        assert_eq!((policy.mgmt_interval, policy.shutdown_grace), (0, 5));
        assert_eq!((policy.cpu_num_default, policy.mem_size_default), (2, 1024));
        assert_eq!(config.host, Capacity { mem_size: Some(8192), cpu_num: Some(4) });
        assert_eq!((config.storage, config.sweep_grace.as_secs()), (StorageChoice::Qcow2, 3600));
        assert_eq!(config.pool.as_deref(), Some("tank/vms"));
        assert_eq!(config.exec_program, Some("/home/u/engine".into()));

        let args = ConfigArgs {
            data: Some("d".into()),
            run: Some("r".into()),
            storage: Some(StorageChoice::File),
            accelerator: Some(Accelerator::Kvm),
            log: Some("warn".into()),
            port_max: Some(30001),
            ..ConfigArgs::default()
        };
        let config = resolved(text, &args).unwrap();
        assert_eq!(config.data_dir, Path::new("/home/u/d"));
        assert_eq!(config.socket, Path::new("/home/u/r/api.sock"));
        assert_eq!((config.storage, config.port_max), (StorageChoice::File, 30001));
        assert_eq!((config.qemu.accelerator, config.log.as_str()), (Accelerator::Kvm, "warn"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key_and_value() {
        let long = format!("run_dir = \"/{}\"", "r".repeat(RUN_DIR_BYTES_MAX));
        for (text, expected) in [
            (long.as_str(), "it is too long for the sockets below it"),
            ("run_dir = \"/\"", "run_dir = /: it is the root of all files"),
            ("data_dir = \"/\"", "data_dir = /: it is the root of all files"),
            ("data_dir = \"/a\"\nrun_dir = \"/a\"", "run_dir = /a: it is the data_dir too"),
            ("port_min = 30000", "port_min..port_max = 30000..29999: it is no range of ports"),
            ("port_min = 0", "port_min..port_max = 0..29999"),
            ("range = \"10.0.0.1/8\"", "range = 10.0.0.1/8: it can not hold"),
            ("range = \"10.0.0.0/7\"", "range = 10.0.0.0/7"),
            ("range = \"10.0.0.0/17\"", "range = 10.0.0.0/17"),
            ("range = \"127.0.0.0/8\"", "range = 127.0.0.0/8: no host can have such addresses"),
            ("range = \"224.0.0.0/8\"", "no host can have"),
            ("range = \"0.0.0.0/8\"", "no host can have"),
            (
                "block = \"192.168.0.0/16\"",
                "block = 192.168.0.0/16: it is no part of the range 10.0.0.0/8",
            ),
            ("block = \"10.0.0.0/31\"", "block = 10.0.0.0/31"),
            ("block = \"10.0.0.1/16\"", "block = 10.0.0.1/16"),
            ("public_addr = \"0.0.0.0\"", "public_addr = 0.0.0.0: no port can be reached there"),
            ("public_addr = \"10.0.0.9\"", "public_addr = 10.0.0.9"),
            ("underlay_addr = \"127.0.0.1\"", "underlay_addr = 127.0.0.1: no tunnel"),
            ("log = \"tt=loud\"", "log = tt=loud"),
            ("[host]\ncpu_num = 0", "host.cpu_num = 0"),
            ("[host]\nmem_size = \"8M\"", "host.mem_size = 8"),
            ("[policy]\nlife_time_default = \"0s\"", "policy.life_time_default = 0s"),
            (
                "[policy]\nlife_time_max = \"1h\"",
                "policy.life_time_default = 86400s: it is not between",
            ),
            (
                "[policy]\nmgmt_interval = \"1500ms\"",
                "policy.mgmt_interval = 1s 500ms: it is no whole number",
            ),
            ("[policy]\ncpu_num_default = 0", "policy.cpu_num_default = 0"),
            ("[policy]\nmem_size_default = \"1M\"", "policy.mem_size_default = 1M"),
        ] {
            let error = resolved(text, &ConfigArgs::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
            assert!(error.remedy().is_some());
        }
        let socket = PathBuf::from("/".to_owned() + &"s".repeat(SOCKET_BYTES_MAX));
        let refused = resolve(File::default(), &ConfigArgs::default(), Some(&socket), &around());
        assert!(refused.unwrap_err().to_string().contains("it is too long for a socket"));
    }
}
