//! One Env with a member of each engine that this machine has: to its users it is an Env like others, and the daemon may
//! die of anything that is done to it.

use std::time::{Duration, Instant};
use testkit::{CLIENT, Dockerd, Echo, HOST, Lab, Setup, eventually};

/// Where the outside listens.
const OUTSIDE: u16 = 7000;
/// How long an Env may take to be as asked.
const CONVERGES: Duration = Duration::from_secs(120);
/// How long a daemon may take to get to a failpoint.
const REACHED: Duration = Duration::from_secs(60);
/// The members: of QEMU's driver, of Docker's, of a program of others.
const MEMBERS: [(&str, &str); 3] = [("a", "qemu"), ("b", "docker"), ("c", "exec")];
/// Where the daemon dies of a creation, and of the end of what was created; the number says at which member.
const LIVES: [(&str, &str); 4] = [
    ("image.ensure.after#2", "image.remove.before#2"),
    ("net.ensure.after#2", "machine.remove.before"),
    ("machine.ensure.before#3", "net.remove.after#2"),
    ("machine.ensure.after#2", "erase.after#2"),
];
const SNAPSHOT: [&str; 3] = ["snapshot.hold.before", "snapshot.hold.after", "snapshot.take.after"];
const APPLY: [&str; 3] =
    ["image.ensure.after#2", "machine.ensure.before#2", "machine.ensure.after"];

#[test]
fn members_of_all_engines_make_one_env_that_outlives_its_daemons() {
    let name = "members_of_all_engines_make_one_env_that_outlives_its_daemons";
    let Some(dockerd) = Dockerd::start(name) else { return };
    let Some(mut lab) = Setup::new(name).docker(&dockerd).start_with_example() else { return };
    for (created, ended) in LIVES {
        dies_of(&mut lab, created, &Ask::Create(created));
        // It is gone before it was whole.
        dies_of(&mut lab, ended, &Ask::Destroy);
        lab.reaches_phase("all", "gone", CONVERGES);
        lab.assert_empty();
        assert_eq!(dockerd.docker().containers(&[]).unwrap(), [], "after {ended}");
    }
    assert!(Ask::Create("whole").send(&lab));
    lab.reaches_phase("all", "ready", CONVERGES);
    its_members_are_as_those_of_one_engine(&lab);
    it_rests_and_comes_back(&lab);
    what_is_kept_is_said_before_and_after(&lab);
    it_goes_back_through_deaths(&mut lab);
    lab.tt(&["env", "destroy", "all"]).good();
    lab.assert_empty();
    assert_eq!(dockerd.docker().containers(&[]).unwrap(), [], "containers are left");
    lab.finish();
}

/// What is asked of the Env.
enum Ask {
    /// With that as the name of the request.
    Create(&'static str),
    Snapshot,
    Apply,
    Destroy,
}

impl Ask {
    /// Whether it was answered.
    fn send(&self, lab: &Lab) -> bool {
        let answer = match self {
            Self::Create(key) => {
                let key = key.replace(['.', '#'], "-");
                let vms = MEMBERS.map(|(name, engine)| {
                    format!(
                        r#"{{"template": "micro", "name": "{name}", "engine": "{engine}", "ports": ["80"]}}"#
                    )
                });
                let body = format!(r#"{{"vms": [{}]}}"#, vms.join(", "));
                let header = format!("Idempotency-Key: {key}\r\n");
                lab.ask("PUT", "/v1/envs/all", &header, &body)
            }
            Self::Snapshot => lab.ask("POST", "/v1/envs/all/snapshots", "", r#"{"name": "s"}"#),
            Self::Apply => lab.ask("POST", "/v1/envs/all/snapshots/s/apply", "", ""),
            Self::Destroy => lab.ask("DELETE", "/v1/envs/all", "", ""),
        };
        let is_done = match self {
            Self::Destroy => answer.status == 404,
            Self::Snapshot => answer.code() == "ERR_TT_EXISTS",
            _ => false,
        };
        assert!(matches!(answer.status, 0 | 200..=202) || is_done, "{}", answer.text);
        answer.status != 0
    }
}

/// The daemon dies at `failpoint` of what it is asked for; the next one is asked again where that was not answered.
#[track_caller]
fn dies_of(lab: &mut Lab, failpoint: &str, ask: &Ask) {
    let begin = Instant::now();
    lab.restart_disarmed(failpoint);
    lab.arm();
    let was_answered = ask.send(lab);
    assert!(lab.dies(REACHED), "it does not get to {failpoint}");
    lab.restart();
    assert!(was_answered || ask.send(lab), "no answer after {failpoint}");
    println!("through {failpoint}: {:?}", begin.elapsed());
}

fn its_members_are_as_those_of_one_engine(lab: &Lab) {
    let outside = Echo::new(&lab.client, OUTSIDE);
    for (name, engine) in MEMBERS {
        assert_eq!(lab.vm("all", name)["engine"], engine);
        let line = format!("mkdir -p /srv && echo {name} >/srv/index.html && httpd -p 80 -h /srv");
        lab.sh(&format!("all/{name}"), &line);
        lab.bring_helper(&format!("all/{name}"));
        let public = lab.port("all", name, "80");
        assert!(lab.client.connect((HOST, public)).is_ok(), "{name} from outside");
    }
    let opens = |name: &str| {
        let line = format!("helper tcp {CLIENT} {OUTSIDE}");
        lab.exec(&format!("all/{name}"), &["sh", "-c", &line]).code == Some(0)
    };
    for (name, _) in MEMBERS {
        let others = "for of in a b c; do wget -qO- http://$of/; done; wget -qO- http://a.all/";
        assert_eq!(lab.sh(&format!("all/{name}"), others), "a\nb\nc\na", "from {name}");
        assert!(opens(name), "{name} to outside");
    }
    lab.tt(&["env", "deny-outgoing", "all"]).good();
    for (name, _) in MEMBERS {
        assert!(!opens(name), "{name} to outside, though it may not");
        assert!(lab.client.connect((HOST, lab.port("all", name, "80"))).is_ok(), "{name}");
    }
    lab.tt(&["env", "allow-outgoing", "all"]).good();
    drop(outside);
}

fn it_rests_and_comes_back(lab: &Lab) {
    let boot = lab.boot_id("all/a");
    for (name, _) in MEMBERS {
        lab.sh(&format!("all/{name}"), "echo kept >/root/kept; sync");
    }
    // Suspended where the engine can, shut down where not.
    lab.tt(&["env", "stop", "all"]).good();
    lab.tt(&["env", "start", "all"]).good();
    assert_eq!(lab.boot_id("all/a"), boot);
    for (name, _) in MEMBERS {
        assert_eq!(
            lab.sh(&format!("all/{name}"), "cat /root/kept; hostname"),
            format!("kept\n{name}")
        );
        assert_eq!(
            lab.sh("all/a", &format!("ping -c 1 -W 5 {name} >/dev/null && echo there")),
            "there"
        );
    }
}

fn what_is_kept_is_said_before_and_after(lab: &Lab) {
    for dry in [&["--dry-run"][..], &[]] {
        let whole = lab.tt(&[&["snapshot", "create", "all", "s"], dry].concat());
        whole.fails(1, "all/c: engine exec can not take one");
        whole.fails(1, "[ERR_TT_UNSUPPORTED]");
    }
    // Its owner goes on without it.
    lab.tt(&["vm", "rm", "all/c"]).good();
    let told = lab.tt(&["snapshot", "create", "all", "s", "--dry-run"]).good();
    let told: Vec<Vec<&str>> = told.lines().map(|row| row.split("  ").collect()).collect();
    assert_eq!(told, [["a", "memory and disk"], ["b", "disk"]]);
    assert_eq!(lab.json(&["snapshot", "ls", "all"])["snapshots"], serde_json::json!([]));
}

/// Of `a` memory and disk go back, of `b` the disk, with which it begins anew.
fn it_goes_back_through_deaths(lab: &mut Lab) {
    let boot = lab.boot_id("all/a");
    let write = |lab: &Lab, text: &str| {
        for name in ["a", "b"] {
            lab.sh(&format!("all/{name}"), &format!("echo {text} >/root/kept; sync"));
        }
    };
    let last = SNAPSHOT.len() - 1;
    for (number, failpoint) in SNAPSHOT.into_iter().enumerate() {
        write(lab, "then");
        dies_of(lab, failpoint, &Ask::Snapshot);
        eventually("the snapshot", CONVERGES, || {
            let states = ["a", "b"].map(|vm| lab.vm("all", vm)["snapshots"]["s"]["state"].clone());
            states.iter().any(|state| state != "ready").then(|| format!("{states:?}"))
        });
        lab.reaches_phase("all", "ready", CONVERGES);
        assert_eq!(lab.boot_id("all/a"), boot);
        if number < last {
            lab.tt(&["snapshot", "rm", "all", "s"]).good();
        }
    }
    let listed = lab.tt(&["snapshot", "ls", "all"]).good();
    assert!(listed.contains("a: memory and disk, b: disk"), "{listed}");
    for failpoint in APPLY {
        write(lab, "later");
        dies_of(lab, failpoint, &Ask::Apply);
        lab.reaches_phase("all", "ready", CONVERGES);
        for name in ["a", "b"] {
            let kept = lab.sh(&format!("all/{name}"), "cat /root/kept");
            assert_eq!(kept, "then", "{name} after {failpoint}");
        }
        assert_eq!(lab.boot_id("all/a"), boot);
        lab.assert_clean();
    }
}
