//! What is right comes in, whatever it is wrapped in.

use super::*;
use std::io::Write;

#[test]
fn a_disk_is_the_same_from_every_format_and_packing() {
    let lab = Lab::new();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let qcow2 = disk(&lab, "a.qcow2", &["-O", "qcow2"]);
    let cases = [
        ("raw", plain()),
        ("old", disk(&lab, "b", &["-O", "qcow2", "-o", "compat=0.10"])),
        ("small", disk(&lab, "c", &["-O", "qcow2", "-c", "-o", "cluster_size=4k"])),
        ("zstd", disk(&lab, "d", &["-O", "qcow2", "-c", "-o", "compression_type=zstd"])),
        ("parts", disk(&lab, "e", &["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"])),
        ("vmdk", disk(&lab, "f", &["-O", "vmdk"])),
        ("stream", disk(&lab, "g", &["-O", "vmdk", "-o", "subformat=streamOptimized"])),
        ("vdi", disk(&lab, "h", &["-O", "vdi"])),
        ("fixed", disk(&lab, "i", &["-O", "vdi", "-o", "static=on"])),
        ("gz", gzip(&qcow2)),
        ("xz", xz(&plain())),
        ("zst", zstd::stream::encode_all(&*qcow2, 1).unwrap()),
        ("qcow2", qcow2),
    ];
    for (name, content) in cases {
        let path = lab.write(name, &content);
        let template = lab.import(name, &import_of(&path)).unwrap_or_else(|error| {
            panic!("{name}: {}", chain(&error));
        });
        assert_eq!((template.disk_size, template.features), (8, vec!["disk".into()]), "{name}");
        let dir = lab.dir.path().join("data").join(&template.path);
        let imported = std::fs::read(dir.join(DISK)).unwrap();
        assert!(imported == plain(), "{name} is not what it was");
        let meta = dir.join(DISK).metadata().unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o644), "{name}");
        assert!(meta.blocks() * 512 < 2 << 20, "{name} has no holes");
        assert!(std::fs::read(&path).unwrap() == content, "{name} was changed");
    }
    assert_eq!(tree(&lab.dir.path().join("data/making")), BTreeMap::new());
}

#[test]
fn a_digest_is_of_the_file_as_it_lies_there() {
    let lab = Lab::new();
    let packed = zstd::stream::encode_all(&*plain(), 1).unwrap();
    let mut import = import_of(lab.write("disk.zst", &packed));
    import.digest = Some(digest::of_bytes(&packed));
    lab.import("right", &import).unwrap();
    import.digest = Some(digest::of_bytes(&plain()));
    let error = lab.import("wrong", &import).unwrap_err().to_string();
    assert!(
        error.contains("its digest is sha256:") && error.contains("nothing was imported"),
        "{error}"
    );
}

#[test]
fn what_is_called_raw_is_taken_as_it_is() {
    let lab = Lab::new();
    let mut import = import_of(lab.write("blob", [7; 1000]));
    lab.import("blob", &import).unwrap_err();
    import.format = Some(Format::Raw);
    let template = lab.import("blob", &import).unwrap();
    let disk = lab.dir.path().join("data").join(template.path).join(DISK);
    // To the end of its last sector.
    assert_eq!(std::fs::read(disk).unwrap(), [&[7; 1000][..], &[0; 24]].concat());
}

#[test]
fn what_a_killed_try_left_is_no_part_of_the_template() {
    let lab = Lab::new();
    let left = [crate::KERNEL, crate::INITRAMFS, crate::CONTAINER];
    let killed = |names: &[&str]| {
        let draft = lab.catalogue.draft("disk", &Quiet).unwrap();
        names.iter().for_each(|name| std::fs::write(draft.dir().join(name), "old").unwrap());
    };
    killed(&left);
    let template = lab.import("disk", &import_of(lab.write("disk", plain()))).unwrap();
    assert_eq!(template.features, ["disk"]);
    // A bare file system needs the agent, of which there is none here, whatever lies there of a kernel.
    let bare = lab.write("bare", vec![0; 8 << 20]);
    assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&bare).status().unwrap().success());
    for names in [&left[..], &left[..1]] {
        killed(names);
        let error = lab.import("disk", &import_of(&bare)).unwrap_err();
        assert!(chain(&error).contains("/none"), "{}", chain(&error));
    } // Nor does a failed one keep the room that a retry would take anew.
    let draft = lab.catalogue.draft("disk", &Quiet).unwrap();
    let facts = Facts { name: "disk".into(), ..Facts::default() };
    lab.catalogue.import(&draft, &import_of(&bare), &facts, &Quiet).unwrap_err();
    assert_eq!(tree(draft.dir()), BTreeMap::new());
}
