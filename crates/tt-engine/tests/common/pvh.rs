//! A kernel that machine monitors boot directly (PVH): an ELF file around some dozen instructions.

/// Where it is loaded to, in bytes.
const ADDRESS: u64 = 0x10_0000;
/// Where the code lies in the file, behind the headers and the note.
const CODE: u64 = 0x1000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the entry point of a PVH guest.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// The ELF file of a guest that consists of this code.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
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
