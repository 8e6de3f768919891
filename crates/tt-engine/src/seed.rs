//! The seed disk of a guest with cloud-init: what a machine of its kind finds out about itself when it boots (NoCloud, as
//! cloud-init's documentation of that data source has it). Made from the plan alone, in memory; it reads no file and
//! knows no clock.

use crate::EngineError;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::{Value, json};
use std::io::{Cursor, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use tt_model::{Instance, Vm};

/// Size of a seed disk: always the same, so that a machine that begins from memory has the disk that it had. Room for the
/// longest user data and keys several times over.
pub(crate) const BYTES: u64 = 1 << 20;
/// The label by which cloud-init knows it, padded as FAT has it.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// The name that the guest's interface gets; the MAC finds it.
const INTERFACE: &str = "eth0";

/// What guests have in common that set their network up themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// Where the default route goes, and who answers names.
    pub gateway: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
}

/// The seed disk of `vm`: a FAT image of [`BYTES`].
///
/// # Errors
/// Its texts do not fit.
pub(crate) fn image(
    vm: &Vm,
    instance: Instance,
    network: GuestNetwork,
) -> Result<Vec<u8>, EngineError> {
    let failed = |source| EngineError::Make {
        what: "seed disk of",
        path: PathBuf::from(vm.full_name()),
        source,
    };
    pack(&files(vm, instance, network)).map_err(failed)
}

/// The files on it: JSON is YAML. A guest whose agent sets identity and network gets nothing here that could differ.
fn files(vm: &Vm, instance: Instance, network: GuestNetwork) -> [(&'static str, String); 4] {
    let has_agent = vm.has_agent();
    let mut meta = json!({
        // Another one lets cloud-init do again what it does once: so it belongs to the Vm, and not to its name.
        "instance-id": format!("tt-{instance}-{}", vm.id),
        "local-hostname": vm.name,
    });
    if !has_agent {
        meta["public-keys"] = json!(vm.ssh_keys);
    }
    let (network, vendor) = match has_agent {
        true => (json!({"config": "disabled"}), json!({})),
        // The keys open root's account, too, as they do where the agent is.
        false => (interfaces(vm, network), json!({"disable_root": false})),
    };
    let user = vm.user_data.clone().unwrap_or_else(|| "#cloud-config\n{}\n".to_owned());
    [
        ("meta-data", format!("{meta}\n")),
        ("network-config", format!("{network}\n")),
        ("vendor-data", format!("#cloud-config\n{vendor}\n")),
        ("user-data", user),
    ]
}

/// Version 1 of cloud-init's network configuration, which all releases in use know.
fn interfaces(vm: &Vm, network: GuestNetwork) -> Value {
    let GuestNetwork { gateway, prefix_len } = network;
    json!({
        "version": 1,
        "config": [{
            "type": "physical",
            "name": INTERFACE,
            "mac_address": vm.resource.mac_addr,
            "subnets": [{
                "type": "static",
                "address": format!("{}/{prefix_len}", vm.resource.ip_addr),
                "gateway": gateway,
                "dns_nameservers": [gateway],
            }],
        }],
    })
}

fn pack(files: &[(&str, String)]) -> std::io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; BYTES as usize]);
    format_volume(&mut disk, FormatVolumeOptions::new().volume_label(LABEL))?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, text) in files {
        volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;
    use tt_model::login::{SSH_KEYS_BYTES_MAX, USER_DATA_BYTES_MAX};
    use tt_model::{StorageKind, sample};

    const NETWORK: GuestNetwork =
        GuestNetwork { gateway: Ipv4Addr::new(10, 0, 0, 1), prefix_len: 8 };

    fn vm(features: &[&str]) -> Vm {
        let mut vm = sample::vm(7, "qemu", StorageKind::File);
        vm.template.features = features.iter().map(ToString::to_string).collect();
        vm.ssh_keys = vec!["ssh-ed25519 AAAA a".into(), "ssh-ed25519 BBBB \"b\": #c".into()];
        vm.user_data = Some("#cloud-config\nruncmd: [[touch, /ran]]\n".into());
        vm
    }

    /// The disk as a guest reads it.
    fn read(vm: &Vm) -> (String, BTreeMap<String, String>) {
        let image = image(vm, Instance(1), NETWORK).unwrap();
        assert_eq!(image.len() as u64, BYTES);
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        let files = volume.root_dir().iter().map(|entry| {
            let entry = entry.unwrap();
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        });
        let files = files.collect();
        (volume.volume_label(), files)
    }

    fn parsed(files: &BTreeMap<String, String>, name: &str) -> Value {
        serde_json::from_str(&files[name]).unwrap()
    }

    #[test]
    fn a_guest_without_the_agent_finds_all_of_itself() {
        let vm = vm(&["cloud-init"]);
        let (label, files) = read(&vm);
        assert_eq!(label, "CIDATA");
        assert_eq!(files.len(), 4);
        let meta = parsed(&files, "meta-data");
        assert_eq!(
            (&meta["instance-id"], &meta["local-hostname"]),
            (&json!("tt-0001-7"), &json!("vm-7"))
        );
        assert_eq!(meta["public-keys"], json!(vm.ssh_keys));
        let network = &parsed(&files, "network-config")["config"][0];
        assert_eq!(network["mac_address"], "82:17:0d:00:00:07");
        assert_eq!(network["subnets"][0]["address"], "10.0.0.7/8");
        assert_eq!(network["subnets"][0]["gateway"], "10.0.0.1");
        assert_eq!(files["user-data"], vm.user_data.clone().unwrap());
        assert!(files["vendor-data"].starts_with("#cloud-config\n"));
    }

    #[test]
    fn a_guest_with_the_agent_is_told_nothing_that_the_agent_sets() {
        let (_, files) = read(&vm(&["cloud-init", "agent"]));
        let meta = parsed(&files, "meta-data");
        assert_eq!(meta["public-keys"], Value::Null);
        assert_eq!(parsed(&files, "network-config"), json!({"config": "disabled"}));
    }

    #[test]
    fn the_same_plan_makes_the_same_disk_and_another_name_another_one() {
        let vm = vm(&["cloud-init"]);
        let renamed = Vm { name: "other".into(), ..vm.clone() };
        let make = |vm: &Vm| image(vm, Instance(1), NETWORK).unwrap();
        assert_eq!(make(&vm), make(&vm));
        assert_ne!(make(&vm), make(&renamed));
        let (one, other) = (read(&vm).1, read(&renamed).1);
        assert_eq!(
            parsed(&one, "meta-data")["instance-id"],
            parsed(&other, "meta-data")["instance-id"]
        );
    }

    #[test]
    fn the_longest_texts_fit() {
        let mut vm = vm(&["cloud-init"]);
        vm.ssh_keys = vec!["k".repeat(SSH_KEYS_BYTES_MAX)];
        vm.user_data = Some("u".repeat(USER_DATA_BYTES_MAX));
        assert_eq!(read(&vm).1["user-data"].len(), USER_DATA_BYTES_MAX);
    }
}
