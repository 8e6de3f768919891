//! Changes of a member: what reaches a running guest, what waits for a shutdown, what is refused.

use std::time::{Duration, Instant};
use testkit::{HOST, Lab};

#[test]
fn members_change_while_they_run() {
    let Some(lab) = Lab::new("members_change_while_they_run") else { return };
    lab.tt(&["env", "create", "shop", "--vm", "a=micro,port=7,port=9", "--vm", "b=micro"]).good();
    let boot = lab.boot_id("shop/a");
    ports_come_and_go(&lab);
    disks_grow_under_a_running_guest(&lab);
    disks_are_limited(&lab);
    names_change_for_all(&lab);
    what_makes_no_sense_is_refused(&lab);
    assert_eq!(lab.boot_id("shop/first"), boot);
    processors_and_memory_wait_for_a_shutdown(&lab, &boot);
    the_latest_meta_is_true(&lab);
    lab.assert_clean();
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.finish();
}

fn ports_come_and_go(lab: &Lab) {
    for port in [7, 9, 10] {
        lab.serve_echo("shop/a", port);
    }
    let (stays, goes) = (lab.port("shop", "a", "7"), lab.port("shop", "a", "9"));
    assert!(lab.client.reaches_tcp((HOST, stays)) && lab.client.reaches_tcp((HOST, goes)));
    lab.tt(&["vm", "update", "shop/a", "--port", "7", "--port", "10", "--port", "10/udp"]).good();
    assert_eq!(lab.port("shop", "a", "7"), stays);
    assert!(lab.client.reaches_tcp((HOST, stays)), "the one that stayed");
    assert!(lab.client.reaches_tcp((HOST, lab.port("shop", "a", "10"))), "the new one");
    assert!(lab.client.reaches_udp((HOST, lab.port("shop", "a", "10/udp"))), "the new one");
    assert!(lab.client.misses_tcp((HOST, goes)), "the one that went");
    lab.tt(&["vm", "update", "shop/a", "--no-ports"]).good();
    assert!(lab.client.misses_tcp((HOST, stays)), "all went");
    lab.tt(&["vm", "update", "shop/a", "--port", "7"]).good();
    assert!(lab.client.reaches_tcp((HOST, lab.port("shop", "a", "7"))));
}

fn disks_grow_under_a_running_guest(lab: &Lab) {
    lab.sh("shop/a", "echo old >/root/old && sync");
    lab.tt(&["vm", "update", "shop/a", "--disk", "256M"]).good();
    let mb =
        || -> u32 { lab.sh("shop/a", "df -m / | tail -n 1 | awk '{print $2}'").parse().unwrap() };
    let has_grown = || (200..=256).contains(&mb());
    assert!(testkit::within(Duration::from_secs(20), has_grown), "{} MB", mb());
    // More than there was before.
    lab.sh("shop/a", "dd if=/dev/zero of=/big bs=1M count=120 2>&1 && sync && rm /big");
    assert_eq!(lab.sh("shop/a", "cat /root/old"), "old");
}

/// In the guest it takes as long as the limit says, whatever the host could do.
fn disks_are_limited(lab: &Lab) {
    let limits = |lab: &Lab| {
        let resource = &lab.vm("shop", "a")["resource"];
        (resource["disk_kib"].as_u64(), resource["disk_ops"].as_u64())
    };
    lab.tt(&["vm", "update", "shop/a", "--disk-kib", "1024", "--disk-ops", "500"]).good();
    assert_eq!(limits(lab), (Some(1024), Some(500)));
    let begin = Instant::now();
    lab.sh("shop/a", "dd if=/dev/zero of=/slow bs=64k count=64 2>&1 && sync");
    let took = begin.elapsed();
    assert!(
        took > Duration::from_secs(2),
        "4 MiB at 1 MiB a second, the first at once, took {took:?}"
    );
    assert!(lab.tt(&["vm", "show", "shop/a"]).good().contains("1024 KiB/s"));
    lab.tt(&["vm", "update", "shop/a", "--disk-kib", "15"]).fails(2, "disk_kib 15");
    lab.tt(&["vm", "update", "shop/a", "--disk-kib", "0", "--disk-ops", "0"]).good();
    assert_eq!(limits(lab), (None, None));
    lab.sh("shop/a", "rm /slow");
}

fn names_change_for_all(lab: &Lab) {
    lab.tt(&["vm", "update", "shop/a", "--name", "first"]).good();
    let renamed = || lab.exec("shop/first", &["hostname"]).out.trim() == "first";
    assert!(testkit::within(Duration::from_secs(20), renamed));
    lab.sh("shop/b", "ping -c 1 -W 5 first");
    lab.sh("shop/first", "ping -c 1 -W 5 b && ping -c 1 -W 5 first");
    assert_ne!(lab.exec("shop/b", &["ping", "-c", "1", "-W", "2", "a"]).code, Some(0));
    lab.tt(&["vm", "show", "shop/a"]).fails(1, "[ERR_TT_NOT_FOUND]");
    lab.tt(&["vm", "update", "shop/first", "--name", "b"]).fails(1, "[ERR_TT_EXISTS]");
}

fn what_makes_no_sense_is_refused(lab: &Lab) {
    let before = lab.vm("shop", "first");
    for (option, value) in
        [("--disk", "128M"), ("--disk", "4000T"), ("--mem", "4000T"), ("--cpu", "4096")]
    {
        let run = lab.tt(&["vm", "update", "shop/first", option, value]);
        assert!(matches!(run.code, Some(1 | 2)), "{option} {value}: {run:?}");
        assert!(run.code == Some(2) || run.err.contains("[ERR_TT_INVALID]"), "{run:?}");
    }
    let shrunk = lab.tt(&["vm", "update", "shop/first", "--disk", "128M"]);
    shrunk.fails(1, "256 MB");
    let after = lab.vm("shop", "first");
    assert_eq!(after["resource"], before["resource"]);
    assert_eq!(after["generation"], before["generation"]);
}

fn processors_and_memory_wait_for_a_shutdown(lab: &Lab, boot: &str) {
    let sizes = || -> (u32, u32) {
        let cpu = lab.sh("shop/first", "nproc").parse().unwrap();
        let kb = lab.sh("shop/first", "awk '/^MemTotal/ {print $2}' /proc/meminfo");
        (cpu, kb.parse::<u32>().unwrap() >> 10)
    };
    let host_cpus = std::thread::available_parallelism().unwrap().get().min(2) as u32;
    let before = sizes();
    let cpu = host_cpus.to_string();
    lab.tt(&["vm", "update", "shop/first", "--cpu", &cpu, "--mem", "192M"]).good();
    assert_eq!(sizes(), before);
    assert_eq!(lab.vm("shop", "first")["needs_restart"], true);
    // A suspended one goes on with what it had.
    lab.tt(&["vm", "stop", "shop/first"]).good();
    lab.tt(&["vm", "start", "shop/first"]).good();
    assert_eq!((sizes(), lab.boot_id("shop/first").as_str()), (before, boot));
    assert_eq!(lab.vm("shop", "first")["needs_restart"], true);
    lab.tt(&["vm", "stop", "shop/first", "--mode", "shutdown"]).good();
    lab.tt(&["vm", "start", "shop/first"]).good();
    let after = sizes();
    assert!(after.0 == host_cpus && (130..=192).contains(&after.1), "{after:?}");
    assert_eq!(lab.vm("shop", "first")["needs_restart"], false);
    assert_eq!(lab.sh("shop/first", "hostname; cat /root/old"), "first\nold");
}

/// After all these changes, and for each member.
fn the_latest_meta_is_true(lab: &Lab) {
    for vm in ["first", "b"] {
        let record = lab.vm("shop", vm);
        let path = lab.data().join(record["latest_meta"].as_str().unwrap());
        let text = std::fs::read_to_string(path).unwrap();
        let cached = text.split_once('\n').unwrap().1;
        let cached: serde_json::Value = serde_json::from_str(cached).unwrap();
        let cached = cached.as_object().unwrap();
        assert!(cached.len() > 20, "{cached:?}");
        for (field, value) in cached {
            assert_eq!(record[field], *value, "{vm}: {field}");
        }
    }
}
