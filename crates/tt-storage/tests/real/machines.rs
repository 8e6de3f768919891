//! What machines see of their disks: QEMU has them open, or is to read them as a user of its own.

use crate::common::{Files, has_qemu_img, tool};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use tempfile::TempDir;
use tt_model::StorageKind::{self, File as Raw, Qcow2};
use tt_model::Vm;
use tt_storage::StorageError;
use tt_storage::conformance::{Life, Rig, vm};

/// A data directory that other users can pass through.
fn data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    dir
}

/// A program of QEMU that has an image open, as a machine would; it ends with the value.
pub struct Open(Child);

impl Open {
    pub fn new(format: &str, path: &Path) -> Self {
        let mut open = Command::new("qemu-io");
        let open = open.args(["-f", format]).arg(path);
        let open = open.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut open = Self(open.unwrap());
        // Once it answers, it has the image open.
        open.0.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut said = [0; 64];
        let mut until = 0;
        while !String::from_utf8_lossy(&said[..until]).contains("MiB") {
            let len = open.0.stdout.as_mut().unwrap().read(&mut said[until..]).unwrap();
            assert!(len > 0, "qemu-io ended");
            until += len;
        }
        open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_has_open_is_not_grown() {
    if !has_qemu_img() {
        println!("SKIPPED an_image_that_qemu_has_open_is_not_grown: qemu-img is not installed");
        return;
    }
    for (kind, format) in [(Qcow2, "qcow2"), (Raw, "raw")] {
        let dir = data();
        let files = Files::new(dir.path(), kind);
        let mut vm = vm(1, kind);
        files.storage().create_image(&vm).unwrap();
        let open = Open::new(format, &files.layout.disk(&vm));
        files.storage().create_image(&vm).unwrap();
        vm.resource.disk_size += 1;
        let error = files.storage().create_image(&vm);
        assert!(matches!(error, Err(StorageError::InUse { .. })), "{error:?}");
        drop(open);
        files.storage().create_image(&vm).unwrap();
        assert_eq!(files.size_mb(&vm), Some(vm.resource.disk_size.into()));
    }
}

#[test]
fn a_snapshot_is_taken_while_qemu_has_the_image_open() {
    if !has_qemu_img() {
        println!(
            "SKIPPED a_snapshot_is_taken_while_qemu_has_the_image_open: qemu-img is not installed"
        );
        return;
    }
    for (kind, format) in [(Qcow2, "qcow2"), (Raw, "raw")] {
        let dir = data();
        let files = Files::new(dir.path(), kind);
        let mut life = Life::new(&files, 1);
        life.write();
        let open = Open::new(format, &files.layout.disk(&life.vm));
        assert!(life.plan_take("a"));
        let snapshot = &life.vm.snapshots["a"];
        files.storage().create_snapshot(&life.vm, snapshot).unwrap();
        drop(open);
        life.take_planned("a");
        life.write();
        life.apply("a");
        life.check();
    }
}

/// A QEMU without a guest that runs as the user of the machine of `vm` and has its disk open as node `disk`; it ends with
/// the value.
struct Qemu {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Qemu {
    fn new(files: &Files, vm: &Vm) -> Self {
        let uid = files.layout.uid(vm.id);
        let mut qemu = Command::new(crate::QEMU);
        qemu.args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio", "-S"]);
        qemu.arg("-blockdev").arg(format!(
            r#"{{"driver":"qcow2","node-name":"disk","file":{{"driver":"file","filename":{:?}}}}}"#,
            files.layout.disk(vm)
        ));
        let qemu = qemu.uid(uid).gid(uid).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = qemu.spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut qemu = Self { process, answers };
        qemu.answer();
        qemu.ask(r#"{"execute":"qmp_capabilities"}"#);
        qemu
    }

    /// The next answer: `qemu-io` prints beside it, and events come between.
    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "QEMU ended");
            assert!(!line.contains("\"error\""), "{line}");
            if line.starts_with('{') && !line.contains("\"event\"") {
                return line;
            }
        }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{question}").unwrap();
        self.answer()
    }

    /// Writes, as its guest would.
    fn write(&mut self, node: &str, byte: u8) {
        self.ask(&format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"qemu-io {node} \"write -P {byte} 0 4096\""}}}}"#
        ));
    }

    /// Ends it in order: what it has in memory of the format goes to disk.
    fn quit(mut self) {
        self.ask(r#"{"execute":"quit"}"#);
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_machine_is_switched_to_the_layer_over_its_frozen_disk() {
    if Command::new(crate::QEMU).arg("--version").output().is_err() || !has_qemu_img() {
        let test = "a_machine_is_switched_to_the_layer_over_its_frozen_disk";
        println!("SKIPPED {test}: QEMU is not installed");
        return;
    }
    let dir = data();
    let files = Files::new(dir.path(), Qcow2);
    let mut life = Life::new(&files, 1);
    let frozen = life.vm.clone();
    let mut qemu = Qemu::new(&files, &life.vm);
    qemu.write("disk", 5);
    assert!(life.plan_take("a"));
    files.storage().create_snapshot(&life.vm, &life.vm.snapshots["a"]).unwrap();
    // It goes on writing where it was until it is switched.
    qemu.write("disk", 6);
    let layer = files.layout.disk(&life.vm);
    qemu.ask(&format!(
        r#"{{"execute":"blockdev-add","arguments":{{"driver":"qcow2","node-name":"layer","backing":null,"file":{{"driver":"file","filename":{layer:?}}}}}}}"#
    ));
    qemu.ask(r#"{"execute":"blockdev-snapshot","arguments":{"node":"disk","overlay":"layer"}}"#);
    let nodes = qemu.ask(r#"{"execute":"query-named-block-nodes"}"#);
    assert!(nodes.contains(r#""ro": true"#), "what is below is read-only: {nodes}");
    qemu.write("layer", 7);
    qemu.quit();
    assert_eq!(files.read(&frozen, 0, 8), Some(vec![6; 8]));
    assert_eq!(files.read(&life.vm, 0, 8), Some(vec![7; 8]));
    // Its next machine opens both anew.
    let mut next = Qemu::new(&files, &life.vm);
    next.write("disk", 8);
    next.quit();
    assert_eq!(files.read(&frozen, 0, 8), Some(vec![6; 8]));
    assert_eq!(files.read(&life.vm, 0, 8), Some(vec![8; 8]));
}

/// What QEMU reads from a disk as the user of the machine of `vm`.
fn convert_as(files: &Files, vm: &Vm, out: &Path) -> Result<(), String> {
    let uid = files.layout.uid(vm.id);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "raw", "-f"]).arg(vm.storage.extension());
    convert.arg(files.layout.disk(vm)).arg(out.join(vm.id.to_string()));
    tool(convert.uid(uid).gid(uid)).map(drop)
}

/// Whether the user of a machine can open a file for writing.
fn can_write(files: &Files, vm: &Vm, path: &Path) -> bool {
    let uid = files.layout.uid(vm.id);
    let mut write = Command::new("dd");
    let of = format!("of={}", path.display());
    write.args(["if=/dev/null", "conv=notrunc", "count=0", &of]);
    tool(write.uid(uid).gid(uid)).is_ok()
}

#[test]
fn machines_reach_their_disks_and_nothing_else() {
    if !has_qemu_img() {
        println!("SKIPPED machines_reach_their_disks_and_nothing_else: qemu-img is not installed");
        return;
    }
    for kind in [Qcow2, Raw] {
        reach(kind);
    }
}

fn reach(kind: StorageKind) {
    let (dir, out) = (data(), tempfile::tempdir().unwrap());
    fs::set_permissions(out.path(), Permissions::from_mode(0o777)).unwrap();
    let files = Files::new(dir.path(), kind);
    let mut life = Life::new(&files, 1);
    for name in ["a", "b"] {
        life.write();
        assert!(life.take(name));
    }
    let other = Life::new(&files, 2);
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    convert_as(&files, &life.vm, out.path()).unwrap();
    assert!(can_write(&files, &life.vm, &path(&life.vm.runtime_image)));
    for name in ["a", "b"] {
        assert!(!can_write(&files, &life.vm, &path(&life.vm.snapshots[name].path)));
    }
    let others = Vm { id: other.vm.id, ..life.vm.clone() };
    assert!(convert_as(&files, &others, out.path()).is_err(), "another machine reads it");
    // Kept: nobody's, until a layer of another Vm is to lie on it.
    files.storage().keep_image(&life.vm).unwrap();
    assert!(convert_as(&files, &life.vm, out.path()).is_err());
    let based = Vm { base: Some(life.vm.runtime_image.clone()), ..vm(3, kind) };
    files.storage().create_image(&based).unwrap();
    convert_as(&files, &based, out.path()).unwrap();
    assert!(!can_write(&files, &based, &path(&life.vm.runtime_image)));
    assert_eq!(convert_as(&files, &others, out.path()).is_ok(), kind.is_layered());
}

#[test]
fn layers_name_what_they_lie_on_with_its_format() {
    let dir = data();
    let files = Files::new(dir.path(), Qcow2);
    let raw = Files::new(dir.path(), Raw);
    let mut life = Life::new(&files, 1);
    assert!(life.take("a"));
    let second = life.vm.clone();
    let kept = vm(2, Raw);
    raw.storage().create_image(&kept).unwrap();
    raw.storage().keep_image(&kept).unwrap();
    let on_raw = Vm { base: Some(kept.runtime_image.clone()), ..vm(3, Qcow2) };
    files.storage().create_image(&on_raw).unwrap();
    let first = Vm { runtime_image: second.snapshots["a"].path.clone(), ..second.clone() };
    for (vm, name, format) in [
        (&first, "../../templates/sample/disk.raw", &b"\xe2\x79\x2a\xca\0\0\0\x03raw\0"[..]),
        (&second, "0.qcow2", b"\xe2\x79\x2a\xca\0\0\0\x05qcow2\0"),
        (&on_raw, "../../images/2/0.raw", b"\xe2\x79\x2a\xca\0\0\0\x03raw\0"),
    ] {
        let mut head = [0; 512];
        File::open(files.layout.disk(vm)).unwrap().read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head[104..104 + format.len()], *format);
        let (at, len) = (head[15] as usize, head[19] as usize);
        assert_eq!(std::str::from_utf8(&head[at..at + len]).unwrap(), name);
    }
    if has_qemu_img() {
        assert_eq!(files.content(&on_raw), raw.content(&kept));
    }
}

#[test]
fn a_spoiled_overlay_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), Qcow2);
    let vm = vm(1, Qcow2);
    files.storage().create_image(&vm).unwrap();
    let image = File::options().write(true).open(files.layout.disk(&vm)).unwrap();
    for (offset, bytes) in [(79_u64, 2_u8), (63, 1), (20, 9), (0, 0)] {
        image.write_all_at(&[bytes], offset).unwrap();
        let error = files.storage().create_image(&vm).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{offset}: {error:?}");
    }
    image.set_len(10).unwrap();
    let error = files.storage().create_image(&vm).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error:?}");
}
