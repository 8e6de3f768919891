//! Disks that boot by themselves, by a BIOS and by UEFI, with a seed beside them: guests of some dozen instructions, one in
//! a boot sector, one as the program that UEFI looks for on a disk without an entry in its variables.

use crate::rig::{Rig, remove, wait_until};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tt_engine::conformance::Fixture;
use tt_engine::qemu::QemuEngine;
use tt_engine::{Machine, VmEngine};
use tt_model::{StopMode, Vm, feat, names};

// Both say `~` for ever, and switch the machine off by its ACPI block (0x604) when they are told `q`.
core::arch::global_asm!(
    ".pushsection .rodata.tt_sector, \"a\"",
    ".code16",
    ".globl tt_sector_begin",
    ".globl tt_sector_end",
    "tt_sector_begin:",
    "2: mov dx, 0x3f8",
    "mov al, 0x7e",
    "out dx, al",
    "mov ecx, 200000",
    "3: dec ecx",
    "jnz 3b",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 0x71",
    "jne 2b",
    "mov dx, 0x604",
    "mov ax, 0x2000",
    "out dx, ax",
    "hlt",
    "tt_sector_end:",
    ".globl tt_program_begin",
    ".globl tt_program_end",
    ".code64",
    "tt_program_begin:",
    "4: mov dx, 0x3f8",
    "mov al, 0x7e",
    "out dx, al",
    "mov ecx, 200000",
    "5: dec ecx",
    "jnz 5b",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 4b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 0x71",
    "jne 4b",
    "mov dx, 0x604",
    "mov ax, 0x2000",
    "out dx, ax",
    "hlt",
    "tt_program_end:",
    ".popsection",
);

unsafe extern "C" {
    static tt_sector_begin: u8;
    static tt_sector_end: u8;
    static tt_program_begin: u8;
    static tt_program_end: u8;
}

/// Firmware under a busy emulator takes its time.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// So many `~` in a row are no chance.
const BEATS: usize = 8;

#[test]
fn a_disk_boots_by_a_bios_and_comes_back_from_memory() {
    // SAFETY: the symbols bound one read-only piece of this program.
    let code = unsafe { piece(&raw const tt_sector_begin, &raw const tt_sector_end) };
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let rig = Rig::new();
    let (engine, vm) = started(&rig, &[], &disk);
    await_beats(&rig, &vm);
    let seed = rig.layout.vm_dir(vm.id).join("seed");
    let meta = fs::metadata(&seed).unwrap();
    assert_eq!(
        (meta.mode() & 0o777, meta.uid()),
        (0o440, 0),
        "the guest's program can not write to it"
    );
    comes_back(&rig, &engine, &vm);
    remove(&engine, &vm);
    assert!(!seed.exists());
}

#[test]
fn a_disk_boots_by_uefi_and_its_variables_outlive_the_machine() {
    // SAFETY: the symbols bound one read-only piece of this program.
    let code = unsafe { piece(&raw const tt_program_begin, &raw const tt_program_end) };
    let rig = Rig::new();
    let engine = rig.engine();
    engine.init(Arc::new(|_| {}));
    if !engine.check_feat(&[feat::UEFI]) {
        println!(
            "SKIPPED a_disk_boots_by_uefi_and_its_variables_outlive_the_machine: no UEFI firmware"
        );
        return;
    }
    let (engine, vm) = started(&rig, &["uefi"], &system_disk(&program(code)));
    await_beats(&rig, &vm);
    comes_back(&rig, &engine, &vm);
    let vars = rig.layout.data.join(names::firmware(vm.id)).join("vars");
    let written = fs::read(&vars).unwrap();
    engine.stop_vm(&vm, StopMode::Kill).unwrap();
    wait_until("the end", || !matches!(engine.look(&vm).unwrap(), Machine::Running));
    let mut stopped = vm.clone();
    stopped.set_goal(tt_model::Goal::Stopped, 0);
    engine.remove_memory(&stopped).unwrap();
    assert!(fs::read(&vars).unwrap() == written, "a stopped Vm keeps its variables");
    engine.start_vm(&vm).unwrap();
    await_beats(&rig, &vm);
    remove(&engine, &vm);
    engine.remove_stray_memory(vm.id).unwrap();
    assert!(!rig.layout.memory_of(vm.id).exists());
}

/// Suspends the machine, and sees it go on.
fn comes_back(rig: &Rig, engine: &QemuEngine, vm: &Vm) {
    engine.stop_vm(vm, StopMode::Suspend).unwrap();
    wait_until("the end", || {
        !matches!(engine.look(vm).unwrap(), Machine::Running | Machine::Paused)
    });
    engine.start_vm(vm).unwrap();
    let heard = await_beats(rig, vm);
    // The port's buffer comes back, too, with the last that firmware once said in it.
    assert!(heard.len() < 64, "it booted: {heard}");
}

/// A machine with this disk, and a seed.
fn started(rig: &Rig, features: &[&str], disk: &[u8]) -> (QemuEngine, Vm) {
    let engine = rig.engine();
    assert_eq!(engine.init(Arc::new(|_| {})).unusable, None);
    let mut vm = rig.vm();
    vm.template.features = ["cloud-init"].iter().chain(features).map(ToString::to_string).collect();
    vm.machine.mem_size = 128;
    fs::write(rig.layout.disk(&vm), disk).unwrap();
    engine.start_vm(&vm).unwrap();
    (engine, vm)
}

fn console(rig: &Rig, vm: &Vm) -> UnixStream {
    let console = UnixStream::connect(rig.layout.console_socket(vm.id)).unwrap();
    console.set_read_timeout(Some(BOOT_MAX)).unwrap();
    console
}

/// Listens until it beats; answers all that it said.
fn await_beats(rig: &Rig, vm: &Vm) -> String {
    let (mut heard, mut byte) = (Vec::new(), [0]);
    let mut console = console(rig, vm);
    let until = Instant::now() + BOOT_MAX;
    while !heard.ends_with(&[b'~'; BEATS]) {
        assert!(Instant::now() < until, "{}", String::from_utf8_lossy(&heard));
        console.read_exact(&mut byte).unwrap();
        heard.extend(byte);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// # Safety
/// They bound one piece of this program's read-only memory.
unsafe fn piece(begin: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

/// A disk without partitions, with the program where UEFI looks for it.
fn system_disk(program: &[u8]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; 2 << 20]);
    format_volume(&mut disk, FormatVolumeOptions::new()).unwrap();
    let volume = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
    let dir = volume.root_dir().create_dir("EFI").unwrap().create_dir("BOOT").unwrap();
    dir.create_file("BOOTX64.EFI").unwrap().write_all(program).unwrap();
    drop(dir);
    volume.unmount().unwrap();
    disk.into_inner()
}

/// An application for UEFI: a PE32+ file with one section (Microsoft's PE format, "Optional Header").
fn program(code: &[u8]) -> Vec<u8> {
    const CODE: u32 = 0x1000;
    let mut file = vec![0; CODE as usize];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    let mut headers = b"PE\0\0".to_vec();
    let mut put = |bytes: &[u8]| headers.extend_from_slice(bytes);
    // x86-64, one section; no symbols; size of the optional header; executable, without line numbers and symbols.
    put(&[0x64, 0x86, 1, 0]);
    put(&[0; 12]);
    put(&[0xf0, 0, 0x0e, 0x02]);
    // PE32+; sizes; entry and base of the code.
    put(&[0x0b, 0x02, 0, 0]);
    for number in [CODE, 0, 0, CODE, CODE] {
        put(&number.to_le_bytes());
    }
    // Loaded anywhere; alignments; versions; size of image and headers; checksum.
    put(&0u64.to_le_bytes());
    for number in [0x1000u32, 0x1000, 0, 0, 0, 0, 2 * CODE, CODE, 0] {
        put(&number.to_le_bytes());
    }
    // An application of UEFI; stack, heap; sixteen directories, all empty.
    put(&[10, 0, 0, 0]);
    put(&[0; 32]);
    put(&[0, 0, 0, 0, 16, 0, 0, 0]);
    put(&[0; 128]);
    put(b".text\0\0\0");
    for number in [CODE, CODE, CODE, CODE, 0, 0, 0, 0xe000_0020] {
        put(&number.to_le_bytes());
    }
    file[0x40..0x40 + headers.len()].copy_from_slice(&headers);
    file.extend_from_slice(code);
    file.resize(2 * CODE as usize, 0);
    file
}
