//! Tests of what is made of file, flags and surroundings.

use super::super::file::parse;
use super::super::{Accelerator, StorageChoice};
use super::*;

fn around() -> Surroundings {
    Surroundings {
        log: None,
        current_dir: "/home/u".into(),
        agents: vec!["/usr/bin/tt-guest".into(), "/usr/lib/tt/tt-guest".into()],
        docker: "/run/podman/podman.sock".into(),
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
            docker_socket: "/run/podman/podman.sock".into(),
            exec_program: None,
            firecracker: "firecracker".into(),
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
        docker.socket = "docker.sock"
        exec.program = "engine"
        qemu = { binary = "/opt/qemu", accelerator = "tcg" }
        firecracker.binary = "/opt/firecracker"
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
    assert_eq!(config.firecracker, Path::new("/opt/firecracker"));
    assert_eq!(config.docker_socket, Path::new("/home/u/docker.sock"));
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
