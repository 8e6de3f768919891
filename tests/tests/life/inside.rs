//! What guests find: their identity, their disk, their peers, the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testkit::Lab;

/// How far a guest's clock may be from the host's: both are read one after the other on a busy machine.
const CLOCK_ERROR: Duration = Duration::from_secs(10);

#[test]
fn guests_are_who_was_planned_and_reach_each_other_and_the_world() {
    let Some(lab) = Lab::new("guests_are_who_was_planned_and_reach_each_other_and_the_world")
    else {
        return;
    };
    let web = "web=micro,port=80,port=53/udp,disk=128M";
    lab.tt(&["env", "create", "shop", "--vm", web, "--vm", "db=micro,no-rand-uuid,net=flat"])
        .good();
    lab.reaches_phase("shop", "ready", Duration::ZERO);
    for vm in ["web", "db"] {
        has_its_identity(&lab, vm);
        knows_the_time(&lab, vm);
    }
    machine_ids_are_as_asked(&lab);
    disks_have_their_size(&lab);
    names_resolve(&lab);
    super::reach::ports_are_published(&lab);
    super::reach::outgoing_traffic_is_masqueraded(&lab);
    super::reach::a_flat_member_is_reached_at_its_own_address(&lab);
    an_address_is_lent(&lab);
    lab.assert_clean();
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.finish();
}

fn has_its_identity(lab: &Lab, vm: &str) {
    let record = lab.vm("shop", vm);
    let target = format!("shop/{vm}");
    let addr = record["resource"]["ip_addr"].as_str().unwrap();
    let mac = record["resource"]["mac_addr"].as_str().unwrap();
    let links = lab.sh(&target, "ip link show eth0");
    assert!(links.contains(mac), "{mac} is not in: {links}");
    let addrs = lab.sh(&target, "ip -4 addr show eth0");
    assert!(addrs.contains(&format!("inet {addr}/")), "{addr} is not in: {addrs}");
    let routes = lab.sh(&target, "ip route");
    assert!(routes.contains(&format!("default via {} ", gateway(lab))), "{routes}");
    assert_eq!(lab.sh(&target, "hostname"), vm);
    assert_eq!(lab.sh(&target, "nproc"), "1");
}

/// The first address of the host's range.
fn gateway(lab: &Lab) -> String {
    let hosts = lab.json(&["host", "show"]);
    let range = hosts["range"].as_str().unwrap();
    let (first, _) = range.split_once('/').unwrap();
    format!("{}.1", first.rsplit_once('.').unwrap().0)
}

/// For guests without the agent, and whoever asks beside it.
fn an_address_is_lent(lab: &Lab) {
    let addr = lab.addr("shop", "db");
    let said = lab.sh("shop/db", "udhcpc -f -n -q -i eth0 -s /bin/true 2>&1");
    assert!(said.contains(&format!("lease of {addr} obtained")), "{said}");
}

fn knows_the_time(lab: &Lab, vm: &str) {
    let guest: u64 = lab.sh(&format!("shop/{vm}"), "date +%s").parse().unwrap();
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) < CLOCK_ERROR.as_secs(), "{vm}: {guest}, the host: {host}");
}

fn machine_ids_are_as_asked(lab: &Lab) {
    let planned = lab.vm("shop", "web")["machine_id"].as_str().unwrap().to_owned();
    let found = lab.sh("shop/web", "cat /etc/machine-id");
    assert_eq!(found, planned);
    assert!(found.len() == 32 && found.bytes().all(|b| b.is_ascii_hexdigit()), "{found}");
    assert!(lab.vm("shop", "db")["machine_id"].is_null());
    assert_eq!(lab.sh("shop/db", "cat /etc/machine-id"), "");
}

fn disks_have_their_size(lab: &Lab) {
    // MB of the file system and of the device, as the guest has them.
    let fs =
        |vm: &str| -> u32 { lab.sh(vm, "df -m / | tail -n 1 | awk '{print $2}'").parse().unwrap() };
    let device = |vm: &str| -> u32 {
        lab.sh(vm, "echo $(($(cat /sys/block/vda/size) / 2048))").parse().unwrap()
    };
    assert_eq!(device("shop/web"), 128);
    // A file system keeps some of its device for itself.
    assert!((100..=128).contains(&fs("shop/web")), "{}", fs("shop/web"));
    let small: u32 =
        lab.vm("shop", "db")["resource"]["disk_size"].as_u64().unwrap().try_into().unwrap();
    assert_eq!(device("shop/db"), small);
    assert!(fs("shop/db") < fs("shop/web"));
    // What df says can be used.
    lab.sh("shop/web", "dd if=/dev/zero of=/big bs=1M count=80 2>&1 && rm /big");
}

fn names_resolve(lab: &Lab) {
    let (web, db) = (lab.addr("shop", "web").to_string(), lab.addr("shop", "db").to_string());
    for vm in ["shop/web", "shop/db"] {
        let hosts = lab.sh(vm, "cat /etc/hosts");
        for (addr, name) in [(&web, "web"), (&db, "db")] {
            let named = |line: &str| {
                let mut words = line.split_whitespace();
                words.next() == Some(addr.as_str()) && words.any(|word| word == name)
            };
            assert!(hosts.lines().any(named), "{addr} {name} is not in: {hosts}");
        }
    }
    lab.sh("shop/web", "ping -c 1 -W 5 db");
    lab.sh("shop/db", "ping -c 1 -W 5 web");
    for name in ["db", "db.shop"] {
        let answer = lab.sh("shop/web", &format!("nslookup {name} {}", gateway(lab)));
        assert!(answer.contains(&db), "{name}: {db} is not in: {answer}");
    }
    let unknown = lab.exec("shop/web", &["nslookup", "nobody.shop", &gateway(lab)]);
    assert_ne!(unknown.code, Some(0), "{unknown:?}");
}
