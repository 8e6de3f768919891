//! One Env with a machine and a container: they are the same to everybody who reaches them.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;
use testkit::{CLIENT, Dockerd, Echo, HOST, Lab, Setup};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;
const READY: Duration = Duration::from_secs(60);

#[test]
fn a_container_and_a_machine_live_in_one_env() {
    let name = "a_container_and_a_machine_live_in_one_env";
    let Some(dockerd) = Dockerd::start(name) else { return };
    let Some(lab) = Setup::new(name).docker(&dockerd).start() else { return };
    let outside = Echo::new(&lab.client, OUTSIDE);
    let web = "web=micro,engine=docker,mem=64M,port=80,port=53/udp";
    lab.tt(&["env", "create", "shop", "--vm", web, "--vm", "db=micro"]).good();
    has_its_identity(&lab);
    they_reach_each_other_and_are_reached(&lab);
    it_is_confined(&lab);
    policies_hold(&lab);
    files_are_copied(&lab);
    limits_change_while_it_runs(&lab, &dockerd);
    it_rests_and_comes_back(&lab);
    a_snapshot_brings_it_back(&lab);
    a_snapshot_of_all_brings_all_back(&lab);
    lab.assert_clean();
    drop(outside);
    what_it_holds_is_a_template_for_all_engines(&lab);
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.assert_empty();
    assert_eq!(dockerd.docker().containers(&[]).unwrap(), [], "containers are left");
    for template in ["held", "micro"] {
        lab.tt(&["template", "rm", template]).good();
    }
    lab.finish();
}

/// By the socket of Podman, which answers as Docker does.
#[test]
fn a_container_of_podman_lives_like_one_of_docker() {
    let name = "a_container_of_podman_lives_like_one_of_docker";
    let Some(dockerd) = Dockerd::start_podman(name) else { return };
    let Some(lab) = Setup::new(name).docker(&dockerd).start() else { return };
    let web = "web=micro,engine=docker,mem=64M,port=80,port=53/udp";
    lab.tt(&["env", "create", "shop", "--vm", web, "--vm", "db=micro"]).good();
    has_its_identity(&lab);
    they_reach_each_other_and_are_reached(&lab);
    it_is_confined(&lab);
    limits_change_while_it_runs(&lab, &dockerd);
    it_rests_and_comes_back(&lab);
    a_snapshot_brings_it_back(&lab);
    lab.assert_clean();
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.assert_empty();
    assert_eq!(dockerd.docker().containers(&[]).unwrap(), [], "containers are left");
    lab.tt(&["template", "rm", "micro"]).good();
    lab.finish();
}

fn has_its_identity(lab: &Lab) {
    let record = lab.vm("shop", "web");
    assert_eq!((&record["engine"], &record["storage"]), (&"docker".into(), &"docker".into()));
    let resource = &record["resource"];
    let links = lab.sh("shop/web", "ip link show eth0");
    assert!(links.contains(resource["mac_addr"].as_str().unwrap()), "{links}");
    let addrs = lab.sh("shop/web", "ip -4 addr show eth0");
    let addr = format!("inet {}/", resource["ip_addr"].as_str().unwrap());
    assert!(addrs.contains(&addr), "{addrs}");
    assert_eq!(lab.sh("shop/web", "hostname"), "web");
    assert_eq!(lab.sh("shop/web", "cat /etc/machine-id"), record["machine_id"].as_str().unwrap());
    assert_eq!(lab.sh("shop/web", "cat /proc/1/comm"), "tt-guest");
}

fn they_reach_each_other_and_are_reached(lab: &Lab) {
    for vm in ["web", "db"] {
        let line = format!("mkdir -p /srv && echo {vm} >/srv/index.html && httpd -p 80 -h /srv");
        lab.sh(&format!("shop/{vm}"), &line);
    }
    assert_eq!(lab.sh("shop/db", "wget -qO- http://web/"), "web");
    assert_eq!(lab.sh("shop/web", "wget -qO- http://db.shop/"), "db");
    lab.serve_echo("shop/web", 53);
    let (tcp, udp) = (lab.port("shop", "web", "80"), lab.port("shop", "web", "53/udp"));
    for (space, addr) in [(&lab.client, HOST), (&lab.host, HOST), (&lab.host, Ipv4Addr::LOCALHOST)]
    {
        assert!(space.connect((addr, tcp)).is_ok(), "TCP from {addr}");
        assert!(space.reaches_udp((addr, udp)), "UDP from {addr}");
    }
}

fn it_is_confined(lab: &Lab) {
    let status = lab.sh("shop/web", "cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    // CAP_NET_ADMIN (12), CAP_NET_RAW (13), CAP_SYS_ADMIN (21), CAP_MKNOD (27).
    let bounding = u64::from_str_radix(&field("CapBnd:"), 16).unwrap();
    assert_eq!(bounding & (1 << 12 | 1 << 13 | 1 << 21 | 1 << 27), 0, "{bounding:x}");
    for line in [
        "ip link set eth0 down",
        "ip addr add 10.9.9.9/8 dev eth0",
        "mount -t tmpfs none /mnt",
        "hostname other",
        "echo x >/.tt/door/x",
        "echo x >>/.tt/agent",
        "echo c >/proc/sysrq-trigger",
        "mknod /tmp/disk b 8 0",
    ] {
        assert_ne!(lab.exec("shop/web", &["sh", "-c", line]).code, Some(0), "{line}");
    }
    assert_eq!(lab.sh("shop/web", "cat /proc/keys /proc/timer_list 2>&1 | wc -c"), "0");
}

fn policies_hold(lab: &Lab) {
    lab.bring_helper("shop/web");
    let opens = || {
        let line = format!("helper tcp {CLIENT} {OUTSIDE}");
        lab.exec("shop/web", &["sh", "-c", &line]).code == Some(0)
    };
    assert!(opens());
    lab.tt(&["env", "deny-outgoing", "shop"]).good();
    assert!(!opens());
    assert_eq!(lab.sh("shop/web", "wget -qO- http://db/"), "db");
    assert!(lab.client.connect((HOST, lab.port("shop", "web", "80"))).is_ok());
    lab.tt(&["env", "allow-outgoing", "shop"]).good();
    lab.tt(&["vm", "update", "shop/web", "--block", &CLIENT.to_string()]).good();
    assert!(!opens());
    lab.tt(&["vm", "update", "shop/web", "--no-block"]).good();
    assert!(opens());
}

fn files_are_copied(lab: &Lab) {
    let (there, back) = (lab.dir().join("there"), lab.dir().join("back"));
    fs::write(&there, vec![7; 1 << 20]).unwrap();
    lab.copy(&there, "shop/web:/srv/there");
    lab.tt(&["cp", "shop/web:/srv/there", &back.display().to_string()]).good();
    assert_eq!(fs::read(&back).unwrap(), fs::read(&there).unwrap());
    lab.exec("shop/web", &["sh", "-c", "echo out; echo err >&2; exit 7"]).fails(7, "err");
}

fn limits_change_while_it_runs(lab: &Lab, dockerd: &Dockerd) {
    let record = lab.vm("shop", "web");
    let boot = lab.sh("shop/web", "stat -c %Y /proc/1");
    lab.tt(&["vm", "update", "shop/web", "--mem", "96M", "--name", "front"]).good();
    testkit::eventually("the name follows", READY, || {
        let run = lab.exec("shop/front", &["hostname"]);
        (run.out.trim() != "front").then(|| format!("{run:?}"))
    });
    assert_eq!(lab.sh("shop/front", "stat -c %Y /proc/1"), boot, "it was started again");
    assert_eq!(lab.sh("shop/db", "wget -qO- http://front/"), "web");
    let label = format!("tt.vm={}", record["id"]);
    let containers = dockerd.docker().containers(&[label]).unwrap();
    let [container] = containers.as_slice() else { panic!("{containers:?}") };
    assert_eq!(dockerd.mem_bytes(&container.id), 96 << 20);
    assert_eq!(lab.vm("shop", "front")["machine"]["mem_size"], 96);
    lab.tt(&["vm", "update", "shop/front", "--name", "web"]).good();
}

fn it_rests_and_comes_back(lab: &Lab) {
    lab.sh("shop/web", "echo kept >/root/kept; (while :; do date +%s%N >/tmp/beat; sleep 0.1; done) >/dev/null 2>&1 &");
    for mode in ["pause", "shutdown", "kill"] {
        lab.tt(&["env", "stop", "shop", "--mode", mode]).good();
        lab.assert_clean();
        lab.tt(&["env", "start", "shop"]).good();
        lab.reaches_phase("shop", "ready", READY);
        assert_eq!(lab.sh("shop/web", "cat /root/kept; hostname"), "kept\nweb", "after {mode}");
        assert_eq!(lab.sh("shop/db", "ping -c 1 -W 5 web >/dev/null && echo there"), "there");
    }
    // A guest that switches itself off is stopped, as a machine is.
    lab.exec("shop/web", &["poweroff"]);
    testkit::eventually("it is stopped", READY, || {
        let vm = lab.vm("shop", "web");
        (vm["status"]["phase"] != "stopped").then(|| vm.to_string())
    });
    lab.tt(&["vm", "start", "shop/web"]).good();
    lab.reaches_phase("shop", "ready", READY);
}

fn a_snapshot_brings_it_back(lab: &Lab) {
    lab.tt(&["snapshot", "create", "shop/web", "before", "--no-memory"]).good();
    lab.sh("shop/web", "echo lost >/root/kept; sync");
    lab.tt(&["snapshot", "create", "shop/web", "later", "--no-memory"]).good();
    for (snapshot, text) in [("before", "kept"), ("later", "lost"), ("before", "kept")] {
        lab.tt(&["snapshot", "apply", "shop/web", snapshot]).good();
        lab.reaches_phase("shop", "ready", READY);
        assert_eq!(lab.sh("shop/web", "cat /root/kept; hostname"), format!("{text}\nweb"));
        assert_eq!(
            lab.sh(
                "shop/web",
                "ping -c 1 -W 5 db >/dev/null 2>&1; wget -qO- http://db:1/ 2>&1 | grep -c refused"
            ),
            "1"
        );
    }
    lab.tt(&["snapshot", "rm", "shop/web", "later"]).good();
}

/// Of all members at one moment: memory where the engine can, disk and a start where not.
fn a_snapshot_of_all_brings_all_back(lab: &Lab) {
    lab.tt(&["snapshot", "create", "shop", "all"]).good();
    lab.sh("shop/web", "echo lost >/root/kept; sync");
    lab.tt(&["snapshot", "apply", "shop", "all"]).good();
    lab.reaches_phase("shop", "ready", READY);
    assert_eq!(lab.sh("shop/web", "cat /root/kept"), "kept");
    lab.tt(&["snapshot", "rm", "shop", "all"]).good();
}

fn what_it_holds_is_a_template_for_all_engines(lab: &Lab) {
    lab.sh("shop/web", "echo published >/root/kept; rm -rf /srv; sync");
    let began = lab.sh("shop/web", "stat -c %Y /proc/1");
    lab.tt(&["template", "publish", "shop/web", "a.org/held"]).good();
    assert_eq!(lab.sh("shop/web", "stat -c %Y /proc/1"), began, "it was started again");
    assert_eq!(lab.vm("shop", "web")["snapshots"].as_object().map(|all| all.len()), Some(1));
    let made = lab.json(&["template", "show", "held"]);
    let features = serde_json::json!(["disk", "kernel", "container", "agent"]);
    assert_eq!(made["template"]["features"], features, "{made}");
    let members = ["--vm", "c=held,engine=docker,mem=64M", "--vm", "m=held,engine=qemu"];
    lab.tt(&[&["env", "create", "new"], &members[..]].concat()).good();
    for name in ["c", "m"] {
        let holds = "cat /root/kept; hostname; test -e /srv || echo gone";
        let found = lab.sh(&format!("new/{name}"), holds);
        assert_eq!(found, format!("published\n{name}\ngone"));
    }
    lab.tt(&["env", "destroy", "new"]).good();
}
