//! Docker, or one container of it, goes away behind TT's back.

use std::time::Duration;
use testkit::{Dockerd, Lab, Setup, eventually};

const HEALED: Duration = Duration::from_secs(120);

#[test]
fn docker_and_containers_that_go_away_are_noticed_and_healed() {
    let name = "docker_and_containers_that_go_away_are_noticed_and_healed";
    let Some(mut dockerd) = Dockerd::start(name) else { return };
    let Some(mut lab) = Setup::new(name).docker(&dockerd).start() else { return };
    lab.tt(&[
        "env",
        "create",
        "shop",
        "--vm",
        "web=micro,engine=docker,mem=64M",
        "--vm",
        "db=micro",
    ])
    .good();
    lab.sh("shop/web", "echo kept >/root/kept; sync");
    let boot = lab.boot_id("shop/db");

    dockerd.kill();
    is_told(&lab, "Docker does not answer");
    assert_eq!(lab.boot_id("shop/db"), boot, "a machine of another engine was disturbed");
    dockerd.run();
    is_healed(&lab);
    assert_eq!(lab.sh("shop/web", "cat /root/kept"), "kept");

    dockerd.end();
    is_told(&lab, "Docker does not answer");
    // The next daemon begins without Docker.
    lab.kill9();
    lab.restart();
    is_told(&lab, "Docker does not answer");
    dockerd.run();
    is_healed(&lab);
    assert_eq!(lab.sh("shop/web", "cat /root/kept"), "kept");

    let containers = dockerd.docker().containers(&[]).unwrap();
    let [container] = containers.as_slice() else { panic!("{containers:?}") };
    dockerd.docker().kill(&container.id, "SIGKILL").unwrap();
    is_healed(&lab);
    assert_eq!(lab.sh("shop/web", "cat /root/kept"), "kept");

    lab.tt(&["vm", "stop", "shop/web", "--mode", "pause"]).good();
    dockerd.docker().unpause(&container.id).unwrap();
    eventually("it stands still again", HEALED, || {
        let now = dockerd.docker().container(&container.id).unwrap().unwrap().state.status;
        (now != "paused").then_some(now)
    });
    lab.tt(&["vm", "start", "shop/web"]).good();

    eventually("it is removed", HEALED, || {
        // The daemon may have started it again before it was removed; then it has a process, or had one a moment ago.
        let _ = dockerd.docker().kill(&container.id, "SIGKILL");
        dockerd.docker().remove(&container.id).err().map(|error| error.to_string())
    });
    eventually("another one takes its place", HEALED, || {
        let ids = dockerd.docker().containers(&[]).unwrap();
        let is_new = ids.len() == 1 && ids[0].id != container.id && ids[0].has_process();
        (!is_new).then(|| format!("{ids:?}"))
    });
    is_healed(&lab);
    assert_eq!(lab.sh("shop/web", "test -e /root/kept || echo lost"), "lost");

    lab.tt(&["env", "destroy", "shop"]).good();
    lab.assert_empty();
    assert_eq!(dockerd.docker().containers(&[]).unwrap(), []);
    lab.finish();
}

/// Unlike Docker's, they have no use for it while they run.
#[test]
fn containers_go_on_without_the_service_of_podman() {
    let name = "containers_go_on_without_the_service_of_podman";
    let Some(mut dockerd) = Dockerd::start_podman(name) else { return };
    let Some(mut lab) = Setup::new(name).docker(&dockerd).start() else { return };
    lab.tt(&["env", "create", "shop", "--vm", "web=micro,engine=docker,mem=64M"]).good();
    let begin = |lab: &Lab| lab.sh("shop/web", "cut -d' ' -f22 /proc/1/stat");
    let begun = begin(&lab);
    dockerd.kill();
    is_told(&lab, "Docker does not answer");
    assert_eq!(begin(&lab), begun, "it answers all the while");
    dockerd.run();
    is_healed(&lab);
    assert_eq!(begin(&lab), begun);

    dockerd.kill();
    lab.kill9();
    lab.restart();
    is_told(&lab, "Docker does not answer");
    dockerd.run();
    is_healed(&lab);
    assert_eq!(begin(&lab), begun);
    lab.tt(&["vm", "stop", "shop/web"]).good();
    lab.tt(&["vm", "start", "shop/web"]).good();
    is_healed(&lab);
    lab.tt(&["env", "destroy", "shop"]).good();
    lab.assert_empty();
    assert_eq!(dockerd.docker().containers(&[]).unwrap(), []);
    lab.finish();
}

/// The member's status says why it is not what it should be.
#[track_caller]
fn is_told(lab: &Lab, why: &str) {
    eventually("it is told", HEALED, || {
        let vm = lab.vm("shop", "web");
        let said = vm["status"]["trouble"]["why"].as_str().unwrap_or_default();
        (!said.contains(why)).then(|| vm["status"].to_string())
    });
    let shown = lab.tt(&["env", "show", "shop"]).good();
    let line = shown.lines().find(|line| line.starts_with("web: ")).unwrap_or_default();
    // It may have been healed by now, but not where Docker is away.
    assert!(line.contains(why) && line.contains("; since ") && line.ends_with(" ago"), "{shown}");
}

#[track_caller]
fn is_healed(lab: &Lab) {
    eventually("it is healed", HEALED, || {
        let vm = lab.vm("shop", "web");
        let is_ready = vm["status"]["phase"] == "ready" && vm["status"]["trouble"].is_null();
        let runs = is_ready && lab.exec("shop/web", &["true"]).code == Some(0);
        (!runs).then(|| vm["status"].to_string())
    });
}
