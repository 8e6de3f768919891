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

unsafe extern "C" {
    static tt_beat_begin: u8;
    static tt_beat_end: u8;
}

/// Where it counts in its memory, in bytes: far from where it is loaded to.
const COUNTER: u32 = 0x180_0000;
/// Where it is loaded to, in bytes.
const ADDRESS: u64 = 0x10_0000;
/// Where the code lies in the file, behind the headers and the note.
const CODE: u64 = 0x1000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the entry point of a PVH guest.
const NOTE_PHYS32_ENTRY: u32 = 18;

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const tt_beat_begin, &raw const tt_beat_end);
    // SAFETY: the symbols bound one read-only piece of this program.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

/// The ELF file.
pub fn kernel() -> Vec<u8> {
    let code = code();
    let len = code.len() as u64;
    let note = [
        &4_u32.to_le_bytes()[..],
        &8_u32.to_le_bytes(),
        &NOTE_PHYS32_ENTRY.to_le_bytes(),
        b"Xen\0",
        &ADDRESS.to_le_bytes(),
    ]
    .concat();
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Executable, x86-64, version; entry, program headers, no sections; sizes and numbers of headers.
    halves(&mut file, &[2, 62]);
    words(&mut file, &[1]);
    longs(&mut file, &[ADDRESS, 64, 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 2, 0, 0, 0]);
    // Load (readable, writable, executable), then note.
    words(&mut file, &[1, 7]);
    longs(&mut file, &[CODE, ADDRESS, ADDRESS, len, len, 0x1000]);
    words(&mut file, &[4, 4]);
    let size = note.len() as u64;
    longs(&mut file, &[64 + 2 * 56, 0, 0, size, size, 4]);
    file.extend(note);
    file.resize(CODE as usize, 0);
    file.extend(code);
    file
}

fn halves(file: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|v| file.extend(v.to_le_bytes()));
}

fn words(file: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| file.extend(v.to_le_bytes()));
}

fn longs(file: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| file.extend(v.to_le_bytes()));
}
