//! A guest of some hundred bytes on the raw KVM interface, to see whether KVM executes code. It decides nothing, and it
//! never lets a KVM that hangs hang its caller.
//!
//! Numbers and structures: `linux/kvm.h` of the kernel's stable API; x86-64 only.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::ffi::{c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

/// How often the guest is run: a busy host may take the processor away during one run.
const RUNS: usize = 3;
/// Turns of the guest's counting loop, of two instructions each.
pub(crate) const TURNS: u32 = 20_000;

// What the counting loop finds out: whether the processor executes the guest, or the kernel interprets it instruction by
// instruction. The second loop changes a page table and sees that the change holds. Answer: 0 on port 0x80.
core::arch::global_asm!(
    ".pushsection .rodata.tt_kvm_guest, \"a\"",
    ".globl tt_kvm_guest_begin",
    ".globl tt_kvm_guest_end",
    "tt_kvm_guest_begin:",
    "mov ecx, {turns}",
    "2: dec ecx",
    "jnz 2b",
    "mov edi, 64",
    "3: mov qword ptr [{entry}], {first} + 3",
    "invlpg [{window}]",
    "cmp dword ptr [{window}], 1",
    "jne 4f",
    "mov qword ptr [{entry}], {second} + 3",
    "mov rax, cr3",
    "mov cr3, rax",
    "cmp dword ptr [{window}], 2",
    "jne 4f",
    "dec edi",
    "jnz 3b",
    "xor eax, eax",
    "xor ecx, ecx",
    "cpuid",
    "xor eax, eax",
    "out 0x80, al",
    "4: mov al, 1",
    "out 0x80, al",
    "tt_kvm_guest_end:",
    ".popsection",
    turns = const TURNS,
    entry = const PAGE_TABLE,
    window = const WINDOW,
    first = const FIRST,
    second = const SECOND,
);

unsafe extern "C" {
    static tt_kvm_guest_begin: u8;
    static tt_kvm_guest_end: u8;
}

// The guest's physical memory.
const CODE: usize = 0x1000;
const PML4: usize = 0x1_0000;
const PDPT: usize = 0x1_1000;
const PAGE_DIRECTORY: usize = 0x1_2000;
const PAGE_TABLE: usize = 0x1_3000;
const FIRST: usize = 0x2_0000;
const SECOND: usize = 0x2_1000;
const MEMORY: usize = 0x3_0000;
/// The virtual address that is mapped to `FIRST` and `SECOND` in turn.
const WINDOW: usize = 0x20_0000;
/// What the child tells its parent, behind the guest's memory.
const REPORT: usize = MEMORY;
const SHARED: usize = MEMORY + 0x1000;

const GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
const GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
const CREATE_VM: c_ulong = 0xae01;
const SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const CREATE_VCPU: c_ulong = 0xae41;
const SET_CPUID2: c_ulong = 0x4008_ae90;
const GET_SREGS: c_ulong = 0x8138_ae83;
const SET_SREGS: c_ulong = 0x4138_ae84;
const SET_REGS: c_ulong = 0x4090_ae82;
const RUN: c_ulong = 0xae80;
const EXIT_IO: u32 = 2;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// `kvm_regs`: rax … rdi, rsp, rbp, r8 … r15, rip, rflags.
#[repr(C)]
struct Regs {
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Default)]
struct Sregs {
    /// cs, ds, es, fs, gs, ss, tr, ldt.
    segments: [Segment; 8],
    /// gdt, idt.
    tables: [[u64; 2]; 2],
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// `kvm_cpuid2` with room for as many entries as the kernel has (`KVM_MAX_CPUID_ENTRIES`).
#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [[u32; 10]; 256],
}

/// The beginning of `kvm_run`, up to the data of an I/O exit.
#[repr(C)]
struct Run {
    head: [u32; 2],
    exit_reason: u32,
    middle: [u32; 5],
    io_direction: u8,
    io_size: u8,
    io_port: u16,
    io_count: u32,
    io_offset: u64,
}

/// What the child tells its parent.
#[repr(C)]
#[derive(Clone, Copy)]
struct Report {
    error: i32,
    exit_reason: u32,
    answer: u32,
    /// 0: it was not run.
    run_ns: [u64; RUNS],
}

/// How the test guest did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran and answered rightly; the time of its fastest run.
    Ran(Duration),
    /// It ran and came to a wrong answer, or left in an unexpected way (`KVM_EXIT_…`).
    Wrong { exit_reason: u32 },
    /// KVM refused to set it up.
    Refused { errno: i32 },
    /// It did not end in time.
    Hung,
}

/// Runs the guest on `device`, in a child process that is killed after `bound`.
///
/// # Errors
/// The device can not be opened, or no process be made.
pub(crate) fn run(device: &Path, bound: Duration) -> io::Result<Outcome> {
    let kvm = OpenOptions::new().read(true).write(true).open(device)?;
    let shared = Shared::new()?;
    let parent = rustix::process::getpid();
    // SAFETY: the child makes system calls on memory and descriptors that were prepared before, and ends by `_exit`; it
    // neither allocates nor takes a lock.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => child(&kvm, &shared, parent),
        _ => {}
    }
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?;
    let ended = wait(pid, bound)?;
    let report = shared.report();
    let fastest = report.run_ns.iter().copied().filter(|ns| *ns > 0).min();
    Ok(match (fastest, ended) {
        (Some(ns), _) if report.answer == 0 => Outcome::Ran(Duration::from_nanos(ns)),
        (Some(_), _) => Outcome::Wrong { exit_reason: report.exit_reason },
        (None, false) => Outcome::Hung,
        (None, true) => Outcome::Refused { errno: report.error },
    })
}

/// Whether the child ended by itself. It is reaped in any case, if need be later: a process that hangs inside the
/// kernel takes its time to die.
fn wait(pid: Pid, bound: Duration) -> io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let bound = Timespec::try_from(bound).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = poll(&mut polled, Some(&bound)).is_ok_and(|n| n > 0);
    if !ended {
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
    }
    let reap = move || rustix::process::waitpid(Some(pid), WaitOptions::empty());
    let reaper = thread::Builder::new().name("tt-kvm-probe".into());
    reaper.spawn(reap)?;
    Ok(ended)
}

/// Memory that parent and child see: the guest's, then the report.
struct Shared(*mut c_void);

impl Shared {
    fn new() -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let memory =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), SHARED, protection, flags)? };
        let shared = Self(memory);
        let (code, end) = (&raw const tt_kvm_guest_begin, &raw const tt_kvm_guest_end);
        // SAFETY: both symbols bound the guest's code, which is shorter than a page and fits behind `CODE`.
        unsafe { ptr::copy_nonoverlapping(code, shared.at(CODE), end.offset_from_unsigned(code)) };
        // Present and writable; the page directory's first entry is 2 MB of the guest's memory itself.
        for (at, value) in [
            (PML4, PDPT | 3),
            (PDPT, PAGE_DIRECTORY | 3),
            (PAGE_DIRECTORY, 0x83),
            (PAGE_DIRECTORY + 8, PAGE_TABLE | 3),
            (FIRST, 1),
            (SECOND, 2),
        ] {
            // SAFETY: the offsets are aligned and lie inside the mapping.
            unsafe { shared.at::<usize>(at).write(value) };
        }
        Ok(shared)
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        self.0.wrapping_byte_add(offset).cast()
    }

    fn report(&self) -> Report {
        // SAFETY: inside the mapping, aligned, and every bit pattern is a report; the child may still write to it.
        unsafe { self.at::<Report>(REPORT).read_volatile() }
    }

    fn tell(&self, report: Report) {
        // SAFETY: as above.
        unsafe { self.at::<Report>(REPORT).write_volatile(report) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nobody holds a reference into it.
        let _ = unsafe { rustix::mm::munmap(self.0, SHARED) };
    }
}

impl Report {
    const NONE: Self = Self { error: 0, exit_reason: 0, answer: 1, run_ns: [0; RUNS] };
}

fn child(kvm: &File, shared: &Shared, parent: Pid) -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut report = Report::NONE;
    if rustix::process::getppid() == Some(parent)
        && let Err(errno) = guest(kvm.as_raw_fd(), shared, &mut report)
    {
        report.error = errno;
    }
    shared.tell(report);
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

fn guest(kvm: RawFd, shared: &Shared, report: &mut Report) -> Result<(), i32> {
    let vm = ioctl(kvm, CREATE_VM, ptr::null_mut::<c_void>())?;
    let mut region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: shared.0 as u64,
    };
    ioctl(vm, SET_USER_MEMORY_REGION, &raw mut region)?;
    let vcpu = ioctl(vm, CREATE_VCPU, ptr::null_mut::<c_void>())?;
    let mut cpuid = Cpuid { count: 256, padding: 0, entries: [[0; 10]; 256] };
    ioctl(kvm, GET_SUPPORTED_CPUID, &raw mut cpuid)?;
    ioctl(vcpu, SET_CPUID2, &raw mut cpuid)?;
    let size = ioctl(kvm, GET_VCPU_MMAP_SIZE, ptr::null_mut::<c_void>())? as usize;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice; it stays until the process ends.
    let run = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, vcpu, 0) };
    if run == libc::MAP_FAILED || size < size_of::<Run>() {
        return Err(errno());
    }
    for turn in 0..RUNS {
        enter_long_mode(vcpu)?;
        let began = Instant::now();
        ioctl(vcpu, RUN, ptr::null_mut::<c_void>())?;
        let took = began.elapsed();
        // SAFETY: the kernel mapped at least a `Run` there, and writes to it only inside the call above.
        let run = unsafe { &*run.cast::<Run>() };
        report.exit_reason = run.exit_reason;
        report.answer = match run.exit_reason == EXIT_IO && (run.io_offset as usize) < size {
            // SAFETY: inside the mapping, as was just checked.
            true => unsafe { *ptr::from_ref(run).cast::<u8>().add(run.io_offset as usize) }.into(),
            false => 1,
        };
        if let Some(ns) = report.run_ns.get_mut(turn) {
            *ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        }
        // What is known so far stays known if a later run hangs.
        shared.tell(*report);
        if report.answer != 0 {
            break;
        }
    }
    Ok(())
}

/// Sets the processor to the guest's first instruction, in 64-bit mode with paging.
fn enter_long_mode(vcpu: RawFd) -> Result<(), i32> {
    let mut sregs = Sregs::default();
    ioctl(vcpu, GET_SREGS, &raw mut sregs)?;
    // Flat, present, accessed; type 11 is executable and readable, 3 readable and writable.
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
        kind: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    let code = Segment { selector: 8, kind: 11, db: 0, l: 1, ..data };
    let [cs, rest @ .., _, _] = &mut sregs.segments;
    *cs = code;
    *rest = [data; 5];
    // PG, ET, PE; PAE; LME and LMA.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, PML4 as u64, 0x20, 0x500);
    ioctl(vcpu, SET_SREGS, &raw mut sregs)?;
    let mut regs = Regs { general: [0; 16], rip: CODE as u64, rflags: 2 };
    ioctl(vcpu, SET_REGS, &raw mut regs).map(drop)
}

fn ioctl<T>(fd: RawFd, request: c_ulong, argument: *mut T) -> Result<c_int, i32> {
    // SAFETY: every request above is given the structure that the kernel's API names for it, or none.
    match unsafe { libc::ioctl(fd, request, argument) } {
        -1 => Err(errno()),
        value => Ok(value),
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernels_requests() {
        let size = |request: c_ulong| (request >> 16) as usize & 0x3fff;
        assert_eq!(size_of::<MemoryRegion>(), size(SET_USER_MEMORY_REGION));
        assert_eq!(size_of::<Regs>(), size(SET_REGS));
        assert_eq!(size_of::<Sregs>(), size(SET_SREGS));
        assert_eq!(size_of::<Sregs>(), size(GET_SREGS));
        assert_eq!(std::mem::offset_of!(Run, io_direction), 32);
        assert_eq!(std::mem::offset_of!(Run, io_offset), 40);
    }
}
