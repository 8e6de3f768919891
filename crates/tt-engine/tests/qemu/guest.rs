//! A guest of some dozen instructions, as a kernel that QEMU boots directly (PVH): it says that it is alive on the serial
//! port, obeys the power button, and does what it is told there: `q` switches it off, `r` resets it, `t` counts and tells
//! (`a` is 0, after `p` comes `a` again), `n` tells.

// Ports: 0x3f8 is the serial port, 0x600 the chipset's ACPI block (power button status and enable bits, sleep control),
// 0xcf9 the reset register.
core::arch::global_asm!(
    ".pushsection .rodata.tt_beat, \"a\"",
    ".code32",
    ".globl tt_beat_begin",
    ".globl tt_beat_end",
    "tt_beat_begin:",
    "mov dx, 0x602",
    "mov ax, 0x100",
    "out dx, ax",
    "mov dx, 0x3f8",
    "mov al, 'B'",
    "out dx, al",
    "2: mov dx, 0x3f8",
    "mov al, '.'",
    "out dx, al",
    "mov ecx, 200000",
    "3: dec ecx",
    "jnz 3b",
    "mov dx, 0x600",
    "in ax, dx",
    "test ax, 0x100",
    "jnz 5f",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 'q'",
    "je 5f",
    "cmp al, 'r'",
    "je 6f",
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
    "5: mov dx, 0x604",
    "mov ax, 0x2000",
    "out dx, ax",
    "hlt",
    "6: mov dx, 0xcf9",
    "mov al, 6",
    "out dx, al",
    "hlt",
    "tt_beat_end:",
    ".code64",
    ".popsection",
    counter = const COUNTER,
);

// The same on `microvm`, which has no chipset: its generic event device (ACPI 6.1, 5.6.9) lies in memory. 0xfea00000 tells events
// (2: the power button), 0xfea00200 takes sleep states, 0xfea00202 resets.
core::arch::global_asm!(
    ".pushsection .rodata.tt_beat_micro, \"a\"",
    ".code32",
    ".globl tt_beat_micro_begin",
    ".globl tt_beat_micro_end",
    "tt_beat_micro_begin:",
    "mov dx, 0x3f8",
    "mov al, 'B'",
    "out dx, al",
    "2: mov dx, 0x3f8",
    "mov al, '.'",
    "out dx, al",
    "mov ecx, 200000",
    "3: dec ecx",
    "jnz 3b",
    "mov esi, 0xfea00000",
    "mov eax, dword ptr [esi]",
    "test eax, 2",
    "jnz 5f",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 'q'",
    "je 5f",
    "cmp al, 'r'",
    "je 6f",
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
    "5: mov byte ptr [esi + 0x200], 0x34",
    "hlt",
    "6: mov byte ptr [esi + 0x202], 0x42",
    "hlt",
    "tt_beat_micro_end:",
    ".code64",
    ".popsection",
    counter = const COUNTER,
);

unsafe extern "C" {
    static tt_beat_begin: u8;
    static tt_beat_end: u8;
    static tt_beat_micro_begin: u8;
    static tt_beat_micro_end: u8;
}

/// Where it counts in its memory, in bytes: far from where it is loaded to.
const COUNTER: u32 = 0x180_0000;

/// The ELF file, for `microvm` or `q35`.
pub fn kernel(is_micro: bool) -> Vec<u8> {
    let (begin, end) = match is_micro {
        true => (&raw const tt_beat_micro_begin, &raw const tt_beat_micro_end),
        false => (&raw const tt_beat_begin, &raw const tt_beat_end),
    };
    // SAFETY: the symbols bound one read-only piece of this program.
    let code = unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) };
    crate::pvh::kernel(code)
}
