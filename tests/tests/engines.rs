//! One Env whose members several engines run, each on the processor itself. KVM is where `cargo xtask lab` runs this; what it
//! shows of one engine without KVM, other tests do.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod engines {
    use std::time::Duration;
    use testkit::{CLIENT, Dockerd, HOST, Lab, Setup};

    /// How often the Env is suspended: what one start leaves behind, the next one meets.
    const ROUNDS: u32 = 3;
    const MEMBERS: [&str; 3] = ["q", "f", "o"];
    /// What an image of others runs.
    const PROCESS: &str = "echo $COLOUR >/tmp/colour && exec sleep 1000000";

    #[test]
    fn the_small_template_has_a_form_for_each_engine() {
        let Some(lab) = Lab::new("the_small_template_has_a_form_for_each_engine") else { return };
        let shown = lab.json(&["template", "show", "micro"]);
        let engines =
            shown["template"]["compatible_engines"].as_array().cloned().unwrap_or_default();
        assert_eq!(engines, ["qemu", "firecracker", "docker"], "{shown}");
        lab.finish();
    }

    #[test]
    fn members_on_kvm_and_firecracker_live_in_one_env() {
        let name = "members_on_kvm_and_firecracker_live_in_one_env";
        let variables = ["TT_TEST_ACCELERATOR", "TT_FIRECRACKER"].map(std::env::var);
        let [Ok(_), Ok(firecracker)] = &variables else {
            return testkit::skip(name, "the environment names no accelerator and no Firecracker");
        };
        // What Firecracker's disks are made of.
        let setup = Setup::new(name).top("storage = \"file\"");
        let setup = setup.top(&format!("firecracker.binary = {firecracker:?}"));
        let Some(mut lab) = setup.start() else { return };
        let image = Dockerd::busybox(&lab.data(), &["/bin/sh", "-c", PROCESS]);
        lab.tt(&["template", "import", "example.org/me/box", &image.to_string_lossy()]).good();
        let members = [
            ["--vm", "q=micro,port=7"],
            ["--vm", "f=micro,engine=firecracker,port=7"],
            ["--vm", "o=example.org/me/box,engine=firecracker,port=7"],
        ];
        lab.tt(&[&["env", "create", "mixed"], &members.concat()[..]].concat()).good();
        assert_eq!(
            MEMBERS.map(|vm| lab.vm("mixed", vm)["engine"].clone()),
            ["qemu", "firecracker", "firecracker"]
        );
        let name = "cat /proc/sys/kernel/hostname";
        assert_eq!(MEMBERS.map(|vm| lab.sh(&at(vm), name)), MEMBERS);
        lab.sh("mixed/o", "mkdir -p /root /usr/local/bin");
        let runs = "for file in /proc/[0-9]*/comm; do read name <$file; [ $name = sleep ] && cat /tmp/colour; done; true";
        assert_eq!(lab.sh("mixed/o", runs), "green");
        for vm in MEMBERS {
            lab.serve_echo(&at(vm), 7);
        }
        reach_each_other(&lab);
        lab.sh("mixed/f", "echo kept >/root/file && sync");
        let boots = MEMBERS.map(|vm| lab.boot_id(&at(vm)));

        lab.tt(&["snapshot", "create", "mixed", "s"]).good();
        for vm in MEMBERS {
            lab.sh(&at(vm), "echo later >/root/file && sync");
        }
        lab.restart();
        for round in 0..ROUNDS {
            lab.tt(&["env", "stop", "mixed"]).good();
            lab.reaches_phase("mixed", "suspended", Duration::ZERO);
            assert_eq!(lab.machines(), [], "round {round}: a suspended guest has a process");
            lab.tt(&["env", "start", "mixed"]).good();
            assert_eq!(MEMBERS.map(|vm| lab.boot_id(&at(vm))), boots, "round {round}");
        }
        reach_each_other(&lab);
        assert_eq!(MEMBERS.map(|vm| lab.sh(&at(vm), "cat /root/file")), ["later"; 3]);

        lab.tt(&["snapshot", "apply", "mixed", "s"]).good();
        assert_eq!(MEMBERS.map(|vm| lab.boot_id(&at(vm))), boots);
        assert_eq!(lab.sh("mixed/f", "cat /root/file"), "kept");
        assert_eq!(lab.sh("mixed/o", "cat /tmp/colour"), "green");
        lab.exec("mixed/q", &["test", "-e", "/root/file"]).fails(1, "");
        reach_each_other(&lab);
        lab.tt(&["env", "destroy", "mixed"]).good();
        lab.assert_empty();
        lab.finish();
    }

    fn at(vm: &str) -> String {
        format!("mixed/{vm}")
    }

    fn reach_each_other(lab: &Lab) {
        lab.sh("mixed/q", "ping -c 1 -W 5 f");
        lab.sh("mixed/f", "ping -c 1 -W 5 o");
        lab.sh("mixed/o", "ping -c 1 -W 5 q");
        for vm in MEMBERS {
            let port = lab.port("mixed", vm, "7");
            assert!(lab.client.reaches_tcp((HOST, port)), "{vm} from {CLIENT}");
        }
    }
}
