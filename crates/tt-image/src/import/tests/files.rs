//! Files of strangers: each is refused for its own reason, in bounded time and space, and nothing else is touched.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::os::unix::fs::symlink;

/// What, how it comes to be, and what the answer must say.
pub(super) type Case = (&'static str, fn(&Lab) -> Import, &'static str);

pub(super) fn run(cases: &[Case]) {
    for (what, make, says) in cases {
        let lab = Lab::new();
        let import = make(&lab);
        let why = lab.refused(what, &import);
        assert!(why.contains(says), "{what}: {why:?} does not say {says:?}");
    }
}

fn node(lab: &Lab, kind: FileType) -> Import {
    let path = lab.path("node");
    mknodat(CWD, &path, kind, Mode::RUSR, rustix::fs::makedev(1, 5)).unwrap();
    import_of(path)
}

fn sparse(lab: &Lab, bytes: u64) -> Import {
    let path = lab.write("sparse", plain());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    import_of(path)
}

pub(super) const FILES: &[Case] = &[
    (
        "a symbolic link",
        |lab| {
            symlink("/etc/shadow", lab.path("link")).unwrap();
            import_of(lab.path("link"))
        },
        "it is a symbolic link",
    ),
    (
        "a link to nothing",
        |lab| {
            symlink("nowhere", lab.path("link")).unwrap();
            import_of(lab.path("link"))
        },
        "it is a symbolic link",
    ),
    ("a device", |lab| node(lab, FileType::CharacterDevice), "no regular file"),
    ("a FIFO", |lab| node(lab, FileType::Fifo), "no regular file"),
    ("a socket", |lab| node(lab, FileType::Socket), "no regular file"),
    ("nothing", |lab| import_of(lab.path("nothing")), "no such file"),
    ("a relative path", |_| import_of("Cargo.toml"), "its whole path"),
    ("an empty file", |lab| import_of(lab.write("empty", b"")), "no disk or archive"),
    ("a text", |lab| import_of(lab.write("text", b"root:x:0:0\n")), "no disk or archive"),
    ("a sparse terabyte", |lab| sparse(lab, 1 << 40), "the most that fits"),
    ("more than there can be", |lab| sparse(lab, 15 << 40), "the most that fits"),
    (
        "a disk of another product",
        |lab| import_of(lab.write("vhd", b"conectix".repeat(200))),
        "no disk or archive",
    ),
];

#[test]
fn what_is_no_plain_file_is_refused() {
    run(FILES);
}

/// A qcow2 disk with other bytes at a place of its header.
pub(super) fn qcow2(lab: &Lab, at: usize, bytes: &[u8]) -> Import {
    let mut content = disk(lab, "q", &["-O", "qcow2"]);
    content[at..at + bytes.len()].copy_from_slice(bytes);
    import_of(lab.write("q.qcow2", content))
}

pub(super) const QCOW2_DISKS: &[Case] = &[
    (
        "a backing file",
        |lab| {
            let mut content = disk(lab, "q", &["-O", "qcow2"]);
            content[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11]);
            content[512..523].copy_from_slice(b"/etc/shadow");
            import_of(lab.write("q.qcow2", content))
        },
        "it has a backing file",
    ),
    ("a backing file without a name", |lab| qcow2(lab, 8, &512_u64.to_be_bytes()), "backing file"),
    ("data in another file", |lab| qcow2(lab, 79, &[4]), "in another file"),
    ("the name of a data file", |lab| qcow2(lab, 112, b"DATA"), "in another file"),
    ("a header of LUKS", |lab| qcow2(lab, 112, &0x0537_be77_u32.to_be_bytes()), "encrypted"),
    ("encrypted by AES", |lab| qcow2(lab, 35, &[1]), "encrypted"),
    ("encrypted by LUKS", |lab| qcow2(lab, 35, &[2]), "encrypted"),
    ("marked corrupt", |lab| qcow2(lab, 79, &[2]), "marked as corrupt"),
    ("a feature of the future", |lab| qcow2(lab, 72, &[1]), "features that are not known"),
    ("a version of the future", |lab| qcow2(lab, 7, &[9]), "its version"),
    ("clusters of a gigabyte", |lab| qcow2(lab, 23, &[30]), "its clusters"),
    ("clusters of a byte", |lab| qcow2(lab, 23, &[0]), "its clusters"),
    ("an absurd first table", |lab| qcow2(lab, 36, &[0xff; 4]), "its first table"),
    ("no first table", |lab| qcow2(lab, 36, &[0; 4]), "its first table is too small"),
    ("a first table elsewhere", |lab| qcow2(lab, 40, &[0x7f, 0, 0, 0, 0, 0, 0, 0]), "first table"),
    ("an absurd reference table", |lab| qcow2(lab, 56, &[0xff; 4]), "its reference table"),
    (
        "a reference table elsewhere",
        |lab| qcow2(lab, 48, &[0x7f, 0, 0, 0, 0, 0, 0, 0]),
        "its reference table",
    ),
    ("absurd reference counts", |lab| qcow2(lab, 99, &[60]), "its reference counts"),
    ("snapshots inside", |lab| qcow2(lab, 60, &[0, 1, 0, 0]), "it has snapshots"),
    ("an absurd header", |lab| qcow2(lab, 100, &[0xff; 4]), "its header"),
    (
        "an endless header",
        |lab| qcow2(lab, 112, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xf0]),
        "its header",
    ),
    ("no size", |lab| qcow2(lab, 24, &[0; 8]), "no size"),
    ("an absurd size", |lab| qcow2(lab, 24, &[0xff; 8]), "no size"),
    ("a terabyte", |lab| qcow2(lab, 24, &(1_u64 << 40).to_be_bytes()), "first table is too small"),
    ("only its magic", |lab| import_of(lab.write("q", b"QFI\xfb")), "cut off within its header"),
    (
        "cut off in its header",
        |lab| {
            let content = disk(lab, "q", &["-O", "qcow2"]);
            import_of(lab.write("q.qcow2", &content[..80]))
        },
        "not in the file",
    ),
    (
        "cut off in its data",
        |lab| {
            let content = disk(lab, "q", &["-O", "qcow2"]);
            import_of(lab.write("q.qcow2", &content[..content.len() - 70_000]))
        },
        "qemu-img",
    ),
    (
        "tables that lead astray",
        |lab| {
            let mut content = disk(lab, "q", &["-O", "qcow2"]);
            let l1 = u64::from_be_bytes(content[40..48].try_into().unwrap()) as usize;
            content[l1..l1 + 8].copy_from_slice(&0x8000_0000_0000_0200_u64.to_be_bytes());
            import_of(lab.write("q.qcow2", content))
        },
        "qemu-img",
    ),
];

#[test]
fn hostile_qcow2_disks_are_refused() {
    run(QCOW2_DISKS);
}

fn vmdk(lab: &Lab, from: &str, to: &str) -> Import {
    let mut content = disk(lab, "v", &["-O", "vmdk"]);
    let at = content.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    content[at..at + to.len()].copy_from_slice(to.as_bytes());
    import_of(lab.write("v.vmdk", content))
}

fn vmdk_header(lab: &Lab, at: usize, bytes: &[u8]) -> Import {
    let mut content = disk(lab, "v", &["-O", "vmdk"]);
    content[at..at + bytes.len()].copy_from_slice(bytes);
    import_of(lab.write("v.vmdk", content))
}

pub(super) const VMDK_DISKS: &[Case] = &[
    (
        "a descriptor that names another file",
        |lab| {
            let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
                        createType=\"monolithicFlat\"\nRW 100 FLAT \"/etc/shadow\" 0\n";
            import_of(lab.write("d.vmdk", text))
        },
        "names other files",
    ),
    ("an old kind", |lab| import_of(lab.write("d.vmdk", b"COWD".repeat(500))), "of an old kind"),
    ("another type", |lab| vmdk(lab, "monolithicSparse", "monolithicFlat\"\n"), "in other files"),
    ("a flat part", |lab| vmdk(lab, " SPARSE \"", " FLAT \"/e"), "in other files"),
    (
        "two parts",
        |lab| vmdk(lab, "ddb.virtualHWVersion", "RW 1 SPARSE \"/e\"\n   "),
        "in other files",
    ),
    (
        "a parent by name",
        |lab| vmdk(lab, "ddb.virtualHWVersion", "parentFileNameHint=\""),
        "another disk",
    ),
    (
        "a parent by number",
        |lab| vmdk(lab, "parentCID=ffffffff", "parentCID=12345678"),
        "another disk",
    ),
    ("parts elsewhere", |lab| vmdk_header(lab, 12, &[0; 8]), "in other files"),
    ("an absurd size", |lab| vmdk_header(lab, 12, &[0xff; 8]), "absurd size"),
    ("a petabyte", |lab| vmdk_header(lab, 12, &(1_u64 << 41).to_le_bytes()), "too many tables"),
    ("no grains", |lab| vmdk_header(lab, 20, &[0; 8]), "its grains"),
    ("odd grains", |lab| vmdk_header(lab, 20, &3_u64.to_le_bytes()), "its grains"),
    ("absurd tables", |lab| vmdk_header(lab, 44, &[0xff; 4]), "its tables"),
    ("tables elsewhere", |lab| vmdk_header(lab, 56, &[0x7f; 8]), "its tables"),
    ("a descriptor elsewhere", |lab| vmdk_header(lab, 28, &[0x7f; 8]), "its descriptor"),
    ("no descriptor", |lab| vmdk_header(lab, 28, &[0; 8]), "no descriptor"),
    ("tables at an end that is none", |lab| vmdk_header(lab, 56, &[0xff; 8]), "its end is missing"),
    ("cut off in its header", |lab| import_of(lab.write("v", b"KDMV\x01\0\0\0")), "cut off"),
    (
        "cut off in its data",
        |lab| {
            let content = disk(lab, "v", &["-O", "vmdk"]);
            import_of(lab.write("v.vmdk", &content[..content.len() - 70_000]))
        },
        "qemu-img",
    ),
    (
        "a stream that is cut off",
        |lab| {
            let content = disk(lab, "v", &["-O", "vmdk", "-o", "subformat=streamOptimized"]);
            import_of(lab.write("v.vmdk", &content[..content.len() / 2]))
        },
        "qemu-img",
    ),
];

#[test]
fn hostile_vmdk_disks_are_refused() {
    run(VMDK_DISKS);
}

fn vdi(lab: &Lab, at: usize, bytes: &[u8]) -> Import {
    let mut content = disk(lab, "v", &["-O", "vdi"]);
    content[at..at + bytes.len()].copy_from_slice(bytes);
    import_of(lab.write("v.vdi", content))
}

pub(super) const VDI_DISKS: &[Case] = &[
    ("a parent", |lab| vdi(lab, 0x1b8, &[1]), "another disk"),
    ("a link", |lab| vdi(lab, 0x1a8, &[1]), "another disk"),
    ("a difference", |lab| vdi(lab, 0x4c, &[4]), "another disk"),
    ("blocks of no size", |lab| vdi(lab, 0x178, &[0; 4]), "its blocks"),
    ("too few blocks", |lab| vdi(lab, 0x180, &[1, 0, 0, 0]), "does not fit"),
    ("an absurd size", |lab| vdi(lab, 0x170, &[0xff; 8]), "absurd"),
    ("a map elsewhere", |lab| vdi(lab, 0x154, &[0, 0, 0, 0x7f]), "its map"),
    ("a version of the future", |lab| vdi(lab, 0x44, &[9]), "its version"),
    (
        "cut off in its header",
        |lab| {
            let content = disk(lab, "v", &["-O", "vdi"]);
            import_of(lab.write("v.vdi", &content[..0x100]))
        },
        "cut off",
    ),
    (
        "cut off in its data",
        |lab| {
            let content = disk(lab, "v", &["-O", "vdi"]);
            import_of(lab.write("v.vdi", &content[..content.len() - 70_000]))
        },
        "cut off",
    ),
];

#[test]
fn hostile_vdi_disks_are_refused() {
    run(VDI_DISKS);
}
