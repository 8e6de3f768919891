//! The rest of a Vm's life on the command line: snapshots, changes, members that come and go, what is kept.

use crate::daemon::Daemon;

#[test]
fn a_snapshot_is_taken_listed_applied_and_removed() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro", "--vm", "db=micro"]);
    let told = daemon.tt(&["snapshot", "create", "shop", "before", "--dry-run"]).out;
    assert_eq!(told, "web  memory and disk\ndb   memory and disk\n");
    assert_eq!(daemon.tt(&["snapshot", "ls", "shop"]).out.lines().count(), 1);
    let taken = daemon.tt(&["snapshot", "create", "shop", "before", "--ttl", "1d"]);
    let rows: Vec<&str> = taken.out.lines().collect();
    assert_eq!(rows.len(), 2, "{}{}", taken.out, taken.err);
    assert!(rows[0].starts_with("web  memory and disk  ") && rows[0].ends_with('s'), "{rows:?}");
    assert!(taken.err.contains("shop/db ready 0.4s, taking snapshot before\n"), "{}", taken.err);
    daemon.tt(&["snapshot", "create", "shop", "before"]).fails(1, "[ERR_TT_EXISTS]");
    let taken = daemon.tt(&["snapshot", "create", "shop/web", "disk", "--no-memory"]);
    assert!(taken.out.starts_with("web  disk  "), "{}", taken.out);

    let list = daemon.tt(&["snapshot", "ls", "shop"]).out;
    assert!(list.starts_with("SNAPSHOT  PHASE  OF           KEEPS            TAKEN  "), "{list}");
    assert!(list.contains("before    ready  all 2        memory and disk  "), "{list}");
    assert!(list.contains("disk      ready  1 of 2: web  disk             "), "{list}");
    let left = |text: &str| text.contains("23h59m left") || text.contains("1d left");
    assert!(left(&list), "{list}");
    assert!(!daemon.tt(&["snapshot", "ls", "shop/db"]).out.contains("\ndisk "));
    for show in [&["env", "show", "shop"], &["vm", "show", "shop/web"]] {
        let shown = daemon.tt(show).out;
        assert!(shown.contains("\nSNAPSHOT  ") && shown.contains("\nbefore    ready  "), "{shown}");
    }

    let back = daemon.tt(&["snapshot", "apply", "shop", "before"]);
    assert!(back.out.contains("10.0.0.3  ready 0.4s\n"), "{}{}", back.out, back.err);
    assert!(back.err.contains("shop/web starting\n") || !back.err.contains("shop/web image\n"));
    let back = daemon.tt(&["snapshot", "apply", "shop/web", "disk"]);
    assert!(
        back.out.contains("shop/web  micro     qemu    10.0.0.2  ready 0.4s\n"),
        "{}",
        back.out
    );
    let missing = daemon.tt(&["snapshot", "apply", "shop", "disk"]);
    missing.fails(1, "error: snapshot `disk` of shop/db: there is none");
    missing.fails(1, "[ERR_TT_NOT_FOUND]");
    let removed = daemon.tt(&["snapshot", "rm", "shop", "before"]);
    assert_eq!(removed.out, "snapshot before of shop removed\n");
    assert_eq!(
        daemon.tt(&["snapshot", "rm", "shop/web", "disk"]).out,
        "snapshot disk of shop/web removed\n"
    );
    assert_eq!(daemon.tt(&["snapshot", "ls", "shop"]).out.lines().count(), 1);
}

#[test]
fn a_snapshot_that_can_not_be_taken_leaves_nothing() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro", "--vm", "full=micro"]);
    let output = daemon.tt(&["snapshot", "create", "shop", "s"]);
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""));
    assert!(
        output.err.ends_with(
            "error: snapshot s could not be taken: shop/full: no space is left\n  \
             nothing is left of it\n[ERR_TT_SNAPSHOT_CREATE]\n"
        ),
        "{}",
        output.err
    );
    assert_eq!(daemon.tt(&["snapshot", "ls", "shop"]).out.lines().count(), 1);
}

#[test]
fn a_vm_is_changed_and_says_what_waits() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro,port=80", "--vm", "db=micro"]);
    let port = ["--port", "80", "--port", "53/udp", "--block", "198.51.100.1"];
    let more = ["--cpu", "2", "--mem", "256M", "--disk", "1G", "--deny-outgoing", "--keep-image"];
    let changed = daemon.tt(&[&["vm", "update", "shop/web"], &port[..], &more[..]].concat());
    assert!(changed.out.contains("192.0.2.7:20001 -> 53/udp, 192.0.2.7:20000 -> 80\n"));
    let hint = "shop/web: CPUs and memory change once it is shut down and started\n";
    assert!(changed.err.ends_with(hint), "{}", changed.err);
    let shown = daemon.tt(&["vm", "show", "shop/web"]).out;
    for line in [
        "cpu         1, 2 once it is shut down and started\n",
        "memory      128M, 256M once it is shut down and started\n",
        "disk        1G\n",
        "keep image  yes\n",
        "outgoing    denied\n",
        "blocked     198.51.100.1\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    let shown = daemon.tt(&["env", "show", "shop"]).out;
    for line in [
        "outgoing       allowed, denied to web\n",
        "blocked        198.51.100.1 for web\n",
        "keep image     web\n",
        "needs restart  web\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    daemon.tt(&["vm", "update", "shop/web", "--disk", "64M"]).fails(1, "a disk only grows");
    daemon.tt(&["vm", "update", "shop/web", "--name", "db"]).fails(1, "[ERR_TT_EXISTS]");
    let plain =
        ["--name", "www", "--no-ports", "--no-block", "--allow-outgoing", "--no-keep-image"];
    let changed = daemon.tt(&[&["vm", "update", "shop/web"], &plain[..]].concat());
    assert!(changed.out.contains("shop/www  micro     qemu    10.0.0.2  ready"), "{}", changed.out);
    let shown = daemon.tt(&["env", "show", "shop"]).out;
    assert!(!shown.contains("blocked") && shown.contains("outgoing       allowed\n"), "{shown}");
    daemon.tt(&["vm", "stop", "shop/www", "--mode", "kill"]);
    daemon.tt(&["vm", "start", "shop/www"]);
    let shown = daemon.tt(&["vm", "show", "shop/www"]).out;
    assert!(shown.contains("cpu         2\n") && shown.contains("memory      256M\n"), "{shown}");
}

#[test]
fn members_come_and_go_and_policies_hold_for_all() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "web=micro"]);
    let denied = daemon.tt(&["env", "deny-outgoing", "shop"]);
    assert!(denied.out.starts_with("web  micro  qemu  10.0.0.2  ready"), "{}", denied.out);
    let added = daemon.tt(&["vm", "add", "shop", "db=micro,count=2"]);
    assert!(added.out.contains("shop/db-2  micro     qemu    10.0.0.4  ready 0.4s\n"));
    daemon.tt(&["vm", "add", "shop", "db=micro,count=2"]).fails(1, "[ERR_TT_EXISTS]");
    daemon.tt(&["vm", "add", "shop", "web=micro,cpu=2"]).fails(1, "[ERR_TT_EXISTS]");
    let shown = daemon.tt(&["env", "show", "shop"]).out;
    assert!(shown.contains("outgoing  denied\n"), "{shown}");
    assert_eq!(daemon.tt(&["vm", "rm", "shop/web"]).out, "shop/web removed\n");
    daemon.tt(&["vm", "rm", "shop/web"]).fails(1, "[ERR_TT_NOT_FOUND]");
    assert_eq!(
        daemon.tt(&["vm", "rm", "shop/db-1", "--no-wait"]).out,
        "shop/db-1 is being removed\n"
    );
    daemon.tt(&["vm", "rm", "shop/db-2"]).fails(1, "it is the last one");
    daemon.tt(&["env", "allow-outgoing", "shop", "-q"]);
    assert!(daemon.tt(&["env", "show", "shop"]).out.contains("outgoing  allowed\n"));
}

#[test]
fn a_kept_image_outlives_its_vm_and_is_the_start_of_another_one() {
    let daemon = Daemon::start();
    daemon.tt(&["env", "create", "shop", "--vm", "db=micro,keep-image,disk=1G"]);
    assert_eq!(daemon.tt(&["image", "ls"]).out, "ID  OF  TEMPLATE  DISK  STORAGE  KEPT\n");
    daemon.tt(&["env", "destroy", "shop"]);
    let list = daemon.tt(&["image", "ls"]).out;
    assert!(list.contains("2   shop/db  micro     1G    file     "), "{list}");
    daemon.tt(&["env", "create", "new", "--vm", "db=micro,image=2"]);
    let shown = daemon.tt(&["vm", "show", "new/db"]).out;
    assert!(shown.contains("cloned from  images/2/0.raw\n") && shown.contains("1G\n"), "{shown}");
    daemon.tt(&["image", "rm", "2"]).fails(1, "error: image 2: it is used by new/db");
    daemon.tt(&["env", "destroy", "new"]);
    assert_eq!(daemon.tt(&["image", "rm", "2"]).out, "image 2 removed\n");
    daemon.tt(&["image", "rm", "2"]).fails(1, "[ERR_TT_NOT_FOUND]");
    daemon.tt(&["env", "create", "n", "--vm", "micro,image=2"]).fails(1, "see `tt image ls`");
}
