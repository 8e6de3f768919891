//! One machine: that it keeps the contract, how it is confined, how it is refused and reached.

use crate::host::{remove, wait_until};
use crate::rig::Rig;
use crate::table;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use tt_engine::conformance::{self, Fixture};
use tt_engine::firecracker::{FirecrackerConfig, FirecrackerEngine};
use tt_engine::{EngineError, Machine, VmEngine};
use tt_model::{MachineSize, StopMode, StorageKind, Vm, names};

fn conforms_on(rig: &Rig, column: &str) {
    table::compare(column, &conformance::run(&rig.engine(), rig));
    let left = fs::read_dir(&rig.layout.run).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| n != "netns").collect();
    assert!(left.is_empty(), "{left:?}");
    for controller in ["", "cpu", "memory", "pids"] {
        let root = Path::new("/sys/fs/cgroup").join(controller).join(rig.layout.cgroup_root());
        assert!(!root.exists(), "{root:?}");
    }
}

#[test]
fn conforms() {
    conforms_on(&Rig::new(), "firecracker, stand-in");
}

#[test]
fn conforms_for_real() {
    if let Some(rig) = Rig::real("conforms_for_real") {
        conforms_on(&rig, "firecracker");
    }
}

fn is_confined_on(rig: &Rig) {
    let (engine, vm) = rig.started();
    assert!(rig.beats(&vm));
    let proc = Path::new("/proc").join(rig.pid(vm.id).to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let four = [rig.layout.uid(vm.id); 4].map(|id| id.to_string()).join(" ");
    assert_eq!((field("Uid:"), field("Gid:")), (four.clone(), four));
    assert_eq!((field("NoNewPrivs:"), field("CapEff:")), ("1".into(), "0".repeat(16)));
    let inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().ino()
    };
    // The one that has its tap, and nothing of the host's.
    assert_eq!(inode(&proc.join("ns/net")), inode(&rig.layout.netns(vm.env_id)));
    assert_ne!(inode(&proc.join("ns/ipc")), inode(Path::new("/proc/self/ns/ipc")));
    assert_eq!(inode(&proc.join("cwd")), inode(&rig.layout.vm_dir(vm.id).join("own")));
    let group = fs::read_to_string(proc.join("cgroup")).unwrap();
    assert!(group.contains(rig.layout.cgroup(vm.id).to_str().unwrap()), "{group}");
    for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let name = target.to_str().unwrap();
        let messages = rig.layout.vm_dir(vm.id).join("messages");
        let known = ["socket:", "anon_inode:", "pipe:", "/dev/", "/disk", "/log", "/kernel"];
        let pipe = rig.layout.console_pipes(vm.id).contains(&target);
        let is_known = known.iter().any(|k| name.starts_with(k)) || pipe || target == messages;
        assert!(is_known, "{entry:?} is {name}");
    }
    sees_little(rig, &proc);
    let path = names::memory(vm.id, 1);
    let mut hold = engine.prepare_hold(&vm, Some(&path)).unwrap();
    hold.pause().unwrap();
    hold.release().unwrap();
    assert!(hold.finish().unwrap());
    sees_little(rig, &proc);
    remove(&engine, &vm);
    engine.remove_stray_memory(vm.id).unwrap();
}

/// All that the program finds is what a machine needs that boots.
fn sees_little(rig: &Rig, proc: &Path) {
    let is_static =
        !String::from_utf8_lossy(&fs::read(rig.program()).unwrap()).contains("/ld-linux");
    let names = |dir: &str| {
        let entries = fs::read_dir(proc.join("root").join(dir)).unwrap().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let mut shown = set(&["disk", "firecracker", "initramfs", "kernel", "log", "own"]);
    if !is_static {
        shown.extend(set(&["lib", "lib64"]));
    }
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4)?.strip_prefix('/'));
    let mounts: BTreeSet<String> =
        mounts.filter(|at| !at.starts_with("usr/")).map(str::to_owned).collect();
    let mut wanted = shown.clone();
    wanted.insert(String::new());
    assert_eq!(mounts, wanted);
    shown.extend(set(&["dev", "saved"]));
    if !is_static {
        shown.insert("usr".into());
    }
    assert_eq!(names(""), shown);
    assert_eq!((names("dev"), names("dev/net")), (set(&["kvm", "net", "urandom"]), set(&["tun"])));
}

#[test]
fn a_machine_is_confined() {
    is_confined_on(&Rig::new());
}

#[test]
fn a_machine_is_confined_for_real() {
    if let Some(rig) = Rig::real("a_machine_is_confined_for_real") {
        is_confined_on(&rig);
    }
}

/// What cloud-init in the guest reads is a second disk, also of a machine that goes on from memory.
fn has_its_seed_on(rig: &Rig) {
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    let mut vm = rig.vm();
    vm.template.features.push("cloud-init".into());
    vm.user_data = Some("#cloud-config\n".into());
    for _ in 0..2 {
        engine.start_vm(&vm).unwrap();
        assert!(rig.beats(&vm));
        let seed = rig.layout.vm_dir(vm.id).join("seed");
        assert!(rig.has_file_open(&vm, &seed), "its seed is not open");
        engine.stop_vm(&vm, StopMode::Suspend).unwrap();
        wait_until("it is suspended", || {
            matches!(engine.look(&vm), Ok(Machine::Exited { .. } | Machine::Absent))
        });
        engine.stop_vm(&vm, StopMode::Kill).unwrap();
    }
    engine.remove_stray_memory(vm.id).unwrap();
}

#[test]
fn a_machine_has_its_seed() {
    has_its_seed_on(&Rig::new());
}

#[test]
fn a_machine_has_its_seed_for_real() {
    if let Some(rig) = Rig::real("a_machine_has_its_seed_for_real") {
        has_its_seed_on(&rig);
    }
}

#[test]
fn what_is_missing_is_named_and_nothing_is_left() {
    let rig = Rig::new();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    let vm = rig.vm();
    let template = rig.layout.template(&vm);
    for path in [rig.layout.disk(&vm), template.join("kernel"), template.join("initramfs")] {
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        let refused = engine.start_vm(&vm).unwrap_err();
        assert!(matches!(&refused, EngineError::Read { path: p, .. } if *p == path), "{refused:?}");
        fs::rename(&aside, &path).unwrap();
    }
    let size = |cpu_num, mem_size| Vm { machine: MachineSize { cpu_num, mem_size }, ..vm.clone() };
    let layered = Vm { storage: StorageKind::Qcow2, ..vm.clone() };
    for odd in [size(0, 32), size(33, 32), size(1, 0), layered] {
        let refused = engine.start_vm(&odd).unwrap_err();
        assert!(matches!(refused, EngineError::Describe { .. }), "{refused:?}");
    }
    fs::write(template.join("kernel"), b"MZ, a packed kernel").unwrap();
    let refused = engine.start_vm(&vm).unwrap_err().to_string();
    assert!(refused.contains("vmlinux"), "{refused}");
    // A tap that is not there must not be made: nothing would be connected to it.
    fs::write(template.join("kernel"), b"\x7fELF").unwrap();
    let wrong = Vm { id: tt_model::VmId(99), ..vm.clone() };
    let refused = engine.start_vm(&wrong).unwrap_err();
    assert!(matches!(&refused, EngineError::OpenTap { .. }), "{refused:?}");
    assert_eq!(engine.machines().unwrap(), []);
}

#[test]
fn hosts_that_lack_something_say_what() {
    let rig = Rig::new();
    let facts = |config: FirecrackerConfig| {
        let engine = FirecrackerEngine::new(config);
        let facts = engine.init(Arc::new(|_| {}));
        assert!(matches!(engine.start_vm(&rig.vm()), Err(EngineError::Unusable { .. })));
        facts.unusable.unwrap()
    };
    let why = facts(FirecrackerConfig { has_layers: true, ..rig.config() });
    assert!(why.contains("storage `file`"), "{why}");
    let why = facts(FirecrackerConfig { binary: "/no/firecracker".into(), ..rig.config() });
    assert!(why.contains("install a release"), "{why}");
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(rig.program(), 0o700);
    let why = facts(rig.config());
    assert!(why.contains("can not run") && why.contains("chmod o+x"), "{why}");
    // A wrapper has no shell in its root.
    let script = rig.path().join("wrapper");
    fs::write(&script, "#!/bin/sh\necho Firecracker v1.15.1\n").unwrap();
    mode(&script, 0o755);
    let why = facts(FirecrackerConfig { binary: script, ..rig.config() });
    assert!(why.contains("no ELF program"), "{why}");
}

#[test]
fn a_refused_machine_says_why_and_is_gone() {
    let rig = Rig::new();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    let vm = rig.vm();
    // Somebody else's: found out by the program, not before.
    fs::set_permissions(rig.layout.template(&vm).join("kernel"), Permissions::from_mode(0o600))
        .unwrap();
    let refused = engine.start_vm(&vm).unwrap_err().to_string();
    assert!(refused.contains("Cannot load kernel"), "{refused}");
    assert_eq!(engine.machines().unwrap(), []);
}

#[test]
fn the_agent_is_reached_over_the_vsock() {
    let rig = Rig::new();
    let (engine, vm) = rig.started();
    let mut stream = UnixStream::connect(rig.layout.agent_vsock(vm.id)).unwrap();
    stream.write_all(b"CONNECT 1024\nhello\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("OK "));
    assert_eq!(lines.next().unwrap(), "hello");
    remove(&engine, &vm);
}

/// What listens in the machine's directory may have been put there by a program that was taken over.
#[test]
fn a_socket_of_others_is_not_talked_to() {
    let rig = Rig::new();
    let (engine, vm) = rig.started();
    let other = rig.path().join("other");
    let listener = UnixListener::bind(&other).unwrap();
    listener.set_nonblocking(true).unwrap();
    let api = rig.layout.vm_dir(vm.id).join("own/api");
    fs::remove_file(&api).unwrap();
    std::os::unix::fs::symlink(&other, &api).unwrap();
    let refused = engine.stop_vm(&vm, StopMode::Pause).unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("listens there"), "{refused}");
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    assert_eq!(BufReader::new(stream).lines().count(), 0, "it was told something");
    // It can still be ended, and its record be started anew.
    engine.stop_vm(&vm, StopMode::Kill).unwrap();
    wait_until("its end", || matches!(engine.look(&vm).unwrap(), Machine::Exited { .. }));
    engine.start_vm(&vm).unwrap();
    assert!(rig.beats(&vm));
    remove(&engine, &vm);
}

/// Somebody removed it: the guest is not disturbed, who asks is told, and it is healed with the next process.
#[test]
fn a_socket_that_was_deleted_is_told_and_healed_by_the_next_start() {
    let rig = Rig::new();
    let (engine, vm) = rig.started();
    let own = rig.layout.vm_dir(vm.id).join("own");
    fs::remove_file(own.join("api")).unwrap();
    assert_eq!(engine.look(&vm).unwrap(), Machine::Running);
    assert!(rig.beats(&vm), "the guest was disturbed");
    let path = names::memory(vm.id, 1);
    let told = engine.prepare_hold(&vm, Some(&path)).and_then(|mut hold| hold.pause()).unwrap_err();
    assert!(told.is_retryable() && told.to_string().contains("own/api"), "{told}");
    assert!(rig.beats(&vm) && !rig.has_memory(&path));
    // From here on nobody knows whether it stands still: this daemon and the next one replace it.
    let next = rig.engine();
    next.init(Arc::new(|_| {}));
    for engine in [&engine, &next] {
        assert_eq!(engine.look(&vm).unwrap(), Machine::Outdated);
    }
    next.stop_vm(&vm, StopMode::Kill).unwrap();
    wait_until("its end", || matches!(next.look(&vm).unwrap(), Machine::Exited { .. }));
    next.start_vm(&vm).unwrap();
    next.stop_vm(&vm, StopMode::Pause).unwrap();
    assert_eq!(next.look(&vm).unwrap(), Machine::Paused);
    remove(&next, &vm);
    next.remove_stray_memory(vm.id).unwrap();
}

/// What a machine wrote of itself is read as what it is, and nothing else is.
#[test]
fn a_link_in_place_of_a_state_is_not_followed() {
    let rig = Rig::new();
    let (engine, vm) = rig.started();
    let secret = rig.path().join("secret");
    fs::write(&secret, b"of the host").unwrap();
    let path = names::memory(vm.id, 1);
    let mut hold = engine.prepare_hold(&vm, Some(&path)).unwrap();
    hold.pause().unwrap();
    hold.release().unwrap();
    let state = rig.layout.vm_dir(vm.id).join("own/state");
    fs::remove_file(&state).unwrap();
    std::os::unix::fs::symlink(&secret, &state).unwrap();
    let refused = hold.finish().unwrap_err();
    assert!(matches!(refused, EngineError::Read { .. }), "{refused:?}");
    assert!(!rig.has_memory(&path));
    assert!(rig.beats(&vm));
    remove(&engine, &vm);
}
