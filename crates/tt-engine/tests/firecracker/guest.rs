//! A guest of some dozen instructions, as a kernel that Firecracker boots directly: it says that it is alive on the serial port,
//! obeys the keys that Firecracker can press, and does what it is told there: `q` ends it, `t` counts and tells (`a` is 0,
//! after `p` comes `a` again), `n` tells.

// Ports: 0x3f8 is the serial port, 0x64 the keyboard's controller (status; 0xfe resets the machine).
core::arch::global_asm!(
    ".pushsection .rodata.tt_fc_beat, \"a\"",
    ".code32",
    ".globl tt_fc_beat_begin",
    ".globl tt_fc_beat_end",
    "tt_fc_beat_begin:",
    "2: mov dx, 0x3f8",
    "mov al, '.'",
    "out dx, al",
    "mov ecx, 200000",
    "3: dec ecx",
    "jnz 3b",
    "in al, 0x64",
    "test al, 1",
    "jnz 5f",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 'q'",
    "je 5f",
    "cmp al, 't'",
    "jne 4f",
    "inc dword ptr [{counter}]",
    "jmp 7f",
    "4: cmp al, 'n'",
    "jne 2b",
    "7: mov dx, 0x3f8",
    "mov al, byte ptr [{counter}]",
    "and al, 15",
    "add al, 'a'",
    "out dx, al",
    "jmp 2b",
    "5: mov al, 0xfe",
    "out 0x64, al",
    "6: hlt",
    "jmp 6b",
    "tt_fc_beat_end:",
    ".code64",
    ".popsection",
    counter = const COUNTER,
);

unsafe extern "C" {
    static tt_fc_beat_begin: u8;
    static tt_fc_beat_end: u8;
}

/// Where it counts in its memory, in bytes: far from where it is loaded to.
const COUNTER: u32 = 0x180_0000;

/// The ELF file.
pub fn kernel() -> Vec<u8> {
    let (begin, end) = (&raw const tt_fc_beat_begin, &raw const tt_fc_beat_end);
    // SAFETY: the symbols bound one read-only piece of this program.
    let code = unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) };
    crate::pvh::kernel(code)
}
