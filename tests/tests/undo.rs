//! Creation is all or nothing: where one member fails for good, the command says which and why, and nothing is left.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod undo {
    use std::time::Duration;
    use testkit::{Lab, Setup};

    /// Stands in QEMU's place: ends at once for the machine that has 96 MB, and is QEMU for all others.
    const FAILS_FOR_ONE: &str = r#"#!/bin/sh
case "$*" in
*100663296* | *"-m 96"* | *"-m size=96"* | *96M*)
    echo "this one can not run" >&2
    exit 3
    ;;
esac
exec qemu-system-x86_64 "$@"
"#;

    #[test]
    fn a_machine_that_can_not_run_undoes_its_env() {
        let setup = Setup::new("a_machine_that_can_not_run_undoes_its_env");
        let Some(lab) = setup.qemu_script(FAILS_FOR_ONE).start() else { return };
        let create =
            ["env", "create", "pair", "--vm", "good=micro", "--vm", "bad=micro,mem=96M,port=80"];
        let run = lab.tt(&create);
        run.fails(1, "env pair could not be created: bad: ");
        run.fails(1, "[ERR_TT_ENGINE_");
        run.fails(1, "this one can not run");
        lab.assert_empty();
        // The name, the addresses and the port are free again.
        lab.tt(&["env", "create", "pair", "--vm", "good=micro,port=80"]).good();
        assert_eq!(lab.port("pair", "good", "80"), 20001);
        lab.tt(&["env", "destroy", "pair"]).good();
        lab.finish();
    }

    #[test]
    fn a_full_disk_undoes_the_env() {
        // Room for the template and one whole copy of a disk, not for two.
        let setup = Setup::new("a_full_disk_undoes_the_env").top("storage = \"file\"");
        let Some(lab) = setup.data_size("150M").start() else { return };
        lab.tt(&["env", "create", "one", "--vm", "a=micro"]).good();
        fill(&lab);
        let run = lab.tt(&["env", "create", "two", "--vm", "b=micro,disk=2G"]);
        run.fails(1, "");
        assert!(run.err.contains("b:") || run.err.contains("disk_size"), "{}", run.err);
        assert!(run.err.contains("[ERR_TT_"), "{}", run.err);
        assert!(lab.env("two").is_none(), "{:?}", lab.env("two"));
        // Who was there before is as well as before.
        lab.reaches_phase("one", "ready", Duration::from_secs(30));
        assert_eq!(lab.sh("one/a", "hostname"), "a");
        lab.assert_clean();
        lab.tt(&["env", "destroy", "one"]).good();
        lab.finish();
    }

    /// Leaves a few MB of the data directory: the records still have room, a disk has not.
    fn fill(lab: &Lab) {
        use std::io::Write;
        let mut filler = std::fs::File::create(lab.data().join("filler")).unwrap();
        let stat = rustix::fs::statvfs(lab.data()).unwrap();
        let free = (stat.f_bavail * stat.f_frsize).saturating_sub(4 << 20);
        let block = vec![0xa5; 1 << 20];
        for _ in 0..free >> 20 {
            filler.write_all(&block).unwrap();
        }
    }
}
