//! One machine: how it is confined, what it is limited to, how it is refused.

use crate::rig::{self, Rig, remove, wait_until};
use crate::table;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tt_engine::conformance::{self, Fixture};
use tt_engine::qemu::{QemuConfig, QemuEngine};
use tt_engine::{EngineError, Machine, VmEngine};
use tt_model::{Vm, names};

fn started(rig: &Rig) -> (QemuEngine, Vm) {
    let engine = rig.engine();
    let facts = engine.init(Arc::new(|_| {}));
    assert_eq!(facts.unusable, None);
    let vm = rig.vm();
    engine.start_vm(&vm).unwrap();
    (engine, vm)
}

#[test]
fn conforms() {
    let rig = Rig::new();
    let column = if rig::has_kvm() { "qemu-kvm" } else { "qemu-tcg" };
    table::compare(column, &conformance::run(&rig.engine(), &rig));
    let left = fs::read_dir(&rig.layout.run).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| n != "netns").collect();
    assert!(left.is_empty(), "{left:?}");
    for controller in ["", "cpu", "memory", "pids"] {
        let root = Path::new("/sys/fs/cgroup").join(controller).join(rig.layout.cgroup_root());
        assert!(!root.exists(), "{root:?}");
    }
}

#[test]
fn a_machine_is_confined() {
    let rig = Rig::new();
    let (engine, vm) = started(&rig);
    assert!(rig.beats(&vm));
    let proc = Path::new("/proc").join(rig.pid(vm.id).to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let uid = rig.layout.uid(vm.id);
    let four = [uid; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((field("Uid:"), field("Gid:")), (four.clone(), four));
    assert_eq!(field("Groups:"), "");
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    assert_eq!((field("CapPrm:"), field("CapEff:")), ("0".repeat(16), "0".repeat(16)));
    for namespace in ["net", "ipc"] {
        let (its, ours) =
            (proc.join("ns").join(namespace), Path::new("/proc/self/ns").join(namespace));
        assert_ne!(fs::read_link(its).unwrap(), fs::read_link(ours).unwrap(), "{namespace}");
    }
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), rig.layout.vm_dir(vm.id).join("own"));
    let group = fs::read_to_string(proc.join("cgroup")).unwrap();
    assert!(group.contains(rig.layout.cgroup(vm.id).to_str().unwrap()), "{group}");
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap();
    assert_eq!(session, rig.pid(vm.id).to_string());
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    assert!(limits.lines().any(|l| l.starts_with("Max core file size        0")), "{limits}");
    check_descriptors(&proc, &rig, &vm);
    remove(&engine, &vm);
}

/// Nothing is open that the machine has no use for, and nothing of the daemon's.
fn check_descriptors(proc: &Path, rig: &Rig, vm: &Vm) {
    for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let name = target.to_str().unwrap();
        let known = ["socket:", "anon_inode:", "pipe:", "/dev/null", "/dev/net/tun", "/dev/kvm"];
        let own = [rig.layout.vm_dir(vm.id), rig.layout.disk(vm)];
        assert!(
            known.iter().any(|k| name.starts_with(k)) || own.iter().any(|o| target.starts_with(o)),
            "{entry:?} is {name}"
        );
    }
}

#[test]
fn limits_are_those_of_the_plan() {
    let rig = Rig::new();
    let (engine, vm) = started(&rig);
    let groups = rig.cgroups(vm.id);
    let read = |file: &str| {
        let found = groups.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        found.map(|text| text.trim().to_owned())
    };
    let memory = read("memory.limit_in_bytes").or(read("memory.max")).unwrap();
    let translations = if rig::has_kvm() { 0 } else { 128 };
    assert_eq!(memory.parse(), Ok((32_u64 + translations + 192) << 20));
    let cpu = read("cpu.cfs_quota_us").or(read("cpu.max")).unwrap();
    assert!(["100000", "100000 100000"].contains(&cpu.as_str()), "{cpu}");
    assert_eq!(read("pids.max").unwrap(), "97");
    remove(&engine, &vm);
    assert_eq!(rig.cgroups(vm.id), Vec::<std::path::PathBuf>::new());
}

#[test]
fn sockets_are_roots_alone_and_there_at_once() {
    use std::os::unix::fs::MetadataExt;
    let rig = Rig::new();
    let (engine, vm) = started(&rig);
    for socket in [rig.layout.console_socket(vm.id), rig.layout.agent_socket(vm.id)] {
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let meta = fs::metadata(&socket).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600));
    }
    remove(&engine, &vm);
}

#[test]
fn a_reset_is_no_end() {
    let rig = Rig::new();
    let (engine, vm) = started(&rig);
    assert!(rig.beats(&vm));
    let pid = rig.pid(vm.id);
    rig.say(&vm, b'r', Some(b'B'));
    assert!(rig.beats(&vm));
    assert_eq!(engine.look(&vm).unwrap(), Machine::Running);
    assert_eq!(rig.pid(vm.id), pid);
    remove(&engine, &vm);
}

#[test]
fn what_is_missing_is_named_and_nothing_is_left() {
    let rig = Rig::new();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    let mut vm = rig.vm();
    let disk = rig.layout.disk(&vm);
    let kernel = rig.layout.template(&vm).join("kernel");
    for path in [&disk, &kernel] {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        let refused = engine.start_vm(&vm).unwrap_err();
        assert!(matches!(&refused, EngineError::Read { path: p, .. } if p == path), "{refused:?}");
        fs::rename(&aside, path).unwrap();
    }
    vm.machine.cpu_num = 0;
    assert!(matches!(engine.start_vm(&vm), Err(EngineError::Describe { .. })));
    vm.machine.cpu_num = 1;
    // A tap that is not there must not be made: nothing would be connected to it.
    let other = tt_model::VmId(99);
    let wrong = Vm { id: other, ..vm.clone() };
    let refused = engine.start_vm(&wrong).unwrap_err();
    assert!(
        matches!(&refused, EngineError::OpenTap { tap, .. } if *tap == names::tap(other)),
        "{refused:?}"
    );
    assert_eq!(engine.machines().unwrap(), []);
}

#[test]
fn a_program_that_refuses_says_why() {
    let rig = Rig::new();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    let mut vm = rig.layered_vm().unwrap();
    fs::write(rig.layout.disk(&vm), [7; 4096]).unwrap();
    // One with a limit stands still until it is told.
    for limit in [None, Some(1024)] {
        vm.resource.disk_kib = limit;
        engine.start_vm(&vm).unwrap();
        wait_until("its end", || engine.look(&vm).unwrap() != Machine::Running);
        let Machine::Exited { clean: false, why } = engine.look(&vm).unwrap() else {
            panic!("it did not refuse");
        };
        let problem = "Image is not in qcow2 format";
        assert!(why.ends_with(problem) && !why.contains("-blockdev"), "{why}");
        remove(&engine, &vm);
    }
}

/// As if a machine's cgroup had been lost: its twin gets neither its tap nor its disk.
#[test]
fn a_tap_or_a_disk_in_use_is_refused() {
    let rig = Rig::new();
    let (engine, vm) = started(&rig);
    assert!(rig.beats(&vm));
    let other = Rig::new();
    let mut layout = other.layout.clone();
    layout.data = rig.layout.data.clone();
    let twin = QemuEngine::new(QemuConfig { layout, ..other.config() });
    assert_eq!(twin.init(Arc::new(|_| {})).unusable, None);

    fs::remove_dir(other.layout.netns_dir()).unwrap();
    std::os::unix::fs::symlink(rig.layout.netns_dir(), other.layout.netns_dir()).unwrap();
    let refused = twin.start_vm(&vm).unwrap_err();
    assert!(matches!(refused, EngineError::OpenTap { .. }), "{refused:?}");
    assert_eq!(twin.machines().unwrap(), []);

    fs::remove_file(other.layout.netns_dir()).unwrap();
    fs::create_dir(other.layout.netns_dir()).unwrap();
    rig::make_network(other.layout.netns(vm.env_id), names::tap(vm.id));
    twin.start_vm(&vm).unwrap();
    wait_until("its end", || twin.look(&vm).unwrap() != Machine::Running);
    let Machine::Exited { clean: false, why } = twin.look(&vm).unwrap() else {
        panic!("the disk was shared");
    };
    assert!(why.contains("lock"), "{why}");
    remove(&twin, &vm);
    remove(&engine, &vm);
}
