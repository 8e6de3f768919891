//! Names of everything that TT makes on a host. Identity lives on the thing: each name carries
//! the id, so looking at the host tells what belongs to whom.

use crate::{EnvId, StorageKind, Vm, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Tells the things of one daemon from those of another one on the same machine; drawn once for
/// each data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance(pub u16);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// Where a daemon keeps its things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What outlives a reboot (`/var/lib/tt`).
    pub data: PathBuf,
    /// Sockets and namespaces (`/run/tt`).
    pub run: PathBuf,
    /// In every name that is not below these two directories.
    pub instance: Instance,
}

/// Longest run directory, so that every socket below it fits the 107 bytes of `sun_path`.
pub const RUN_DIR_BYTES_MAX: usize = 70;

/// Relative path of the runtime image of `id` in `epoch`.
pub fn runtime_image(storage: StorageKind, id: VmId, epoch: u32) -> String {
    let name = format!("images/{id}/{epoch}.{}", storage.extension());
    storage.inner().map_or(name.clone(), |inner| format!("{name}/{inner}"))
}

/// Relative path of what a back end keeps of the template of that digest, where it keeps anything: a directory.
pub fn template_volume(storage: StorageKind, digest: &str) -> String {
    format!("volumes/{digest}.{}", storage.extension())
}

/// Relative path of the memory of `id` with that number: a directory.
pub fn memory(id: VmId, number: u32) -> String {
    format!("memory/{id}/{number}")
}

/// Relative path of the memory that a suspended machine of that incarnation left: a directory.
pub fn suspended(id: VmId, incarnation: u32) -> String {
    format!("memory/{id}/suspended-{incarnation}")
}

/// Relative path of the memory of the firmware of `id`, where UEFI keeps its variables: a directory. It outlives every
/// machine of the Vm.
pub fn firmware(id: VmId) -> String {
    format!("memory/{id}/firmware")
}

/// Relative path of the meta of `id` with that number.
pub fn meta(id: VmId, number: u32) -> PathBuf {
    PathBuf::from(format!("meta/{id}/{number}.json"))
}

/// Relative path of the meta that follows every change of `id`.
pub fn latest_meta(id: VmId) -> PathBuf {
    PathBuf::from(format!("meta/{id}/latest.json"))
}

/// Relative path of the meta of an Env.
pub fn env_meta(id: EnvId) -> PathBuf {
    PathBuf::from(format!("meta/env-{id}.json"))
}

/// Relative path of the meta of a kept image.
pub fn image_meta(id: VmId) -> PathBuf {
    PathBuf::from(format!("meta/image-{id}.json"))
}

/// Relative path of the meta of the host itself.
pub fn host_meta() -> PathBuf {
    PathBuf::from("meta/host.json")
}

impl Layout {
    /// The runtime image of `vm`.
    pub fn disk(&self, vm: &Vm) -> PathBuf {
        self.data.join(&vm.runtime_image)
    }

    /// The directory of all runtime images of a Vm.
    pub fn images_of(&self, id: VmId) -> PathBuf {
        self.data.join("images").join(id.to_string())
    }

    /// The directory of all memory of a Vm that lies on disk.
    pub fn memory_of(&self, id: VmId) -> PathBuf {
        self.data.join("memory").join(id.to_string())
    }

    /// The directory of all metas of a Vm.
    pub fn meta_of(&self, id: VmId) -> PathBuf {
        self.data.join("meta").join(id.to_string())
    }

    /// The directory of a template's files (`kernel`, `initramfs`, `disk.raw`).
    pub fn template(&self, vm: &Vm) -> PathBuf {
        self.data.join(&vm.template.path)
    }

    /// The directory of a machine's sockets and logs; it exists as long as the machine or its
    /// remains do.
    pub fn vm_dir(&self, id: VmId) -> PathBuf {
        self.run.join("vm").join(id.to_string())
    }

    /// The socket of the guest agent's channel.
    pub fn agent_socket(&self, id: VmId) -> PathBuf {
        self.vm_dir(id).join("agent.sock")
    }

    /// Where the agent's channel is reached instead if the machine has a vsock: a socket that the machine's user made.
    /// Whoever connects says `CONNECT PORT` and hears `OK` and a number once the guest listens, on a line each.
    pub fn agent_vsock(&self, id: VmId) -> PathBuf {
        self.vm_dir(id).join("own").join("vsock")
    }

    /// The pipes of the serial console, of a machine that has no socket for it: what is typed, and what is shown.
    pub fn console_pipes(&self, id: VmId) -> [PathBuf; 2] {
        ["console.in", "console.out"].map(|name| self.vm_dir(id).join(name))
    }

    /// The socket of the serial console.
    pub fn console_socket(&self, id: VmId) -> PathBuf {
        self.vm_dir(id).join("console.sock")
    }

    /// The bounded log of the serial console.
    pub fn console_log(&self, id: VmId) -> PathBuf {
        self.data.join("logs").join(format!("{id}.console"))
    }

    /// The directory of the Envs' network namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// An Env's network namespace.
    pub fn netns(&self, id: EnvId) -> PathBuf {
        self.netns_dir().join(id.to_string())
    }

    /// The host's end of an Env's veth pair. At most 15 bytes (`IFNAMSIZ` - 1).
    pub fn edge(&self, id: EnvId) -> String {
        format!("{}{:x}", self.edge_prefix(), id.0)
    }

    /// How the names of all edges of this daemon begin.
    pub fn edge_prefix(&self) -> String {
        format!("{}e", self.link_prefix())
    }

    /// The tunnel to other hosts.
    pub fn tunnel(&self) -> String {
        format!("{}v", self.link_prefix())
    }

    /// How the names of all links of this daemon begin.
    pub fn link_prefix(&self) -> String {
        format!("tt{}", self.instance)
    }

    /// The nft table of this daemon in the host's namespace.
    pub fn nft_table(&self) -> String {
        format!("tt_{}", self.instance)
    }

    /// The cgroup of all machines, relative to a controller's mount.
    pub fn cgroup_root(&self) -> PathBuf {
        Path::new("tt").join(self.instance.to_string())
    }

    /// The cgroup of a machine, relative to a controller's mount.
    pub fn cgroup(&self, id: VmId) -> PathBuf {
        self.cgroup_root().join(id.to_string())
    }

    /// The container that holds the disk of a Vm in `epoch` as long as a machine may write to it.
    pub fn container(&self, id: VmId, epoch: u32) -> String {
        format!("{}{id}-{epoch}", self.container_prefix())
    }

    /// How the names of all containers of this daemon's begin.
    pub fn container_prefix(&self) -> String {
        format!("tt-{}-", self.instance)
    }

    /// The repository of all images of this daemon's.
    pub fn docker_repo(&self) -> String {
        format!("tt-{}", self.instance)
    }

    /// The image that the disk of a Vm in `epoch` began with, or is.
    pub fn docker_image(&self, id: VmId, epoch: u32) -> String {
        format!("{}:{}", self.docker_repo(), docker_tag(id, epoch))
    }

    /// The image of the template of that digest.
    pub fn docker_template(&self, digest: &str) -> String {
        format!("{}:{DOCKER_TEMPLATE_TAG}{digest}", self.docker_repo())
    }

    /// The label, with its value, of all containers of this daemon.
    pub fn docker_label(&self) -> String {
        format!("{LABEL_INSTANCE}={}", self.instance)
    }

    /// The unprivileged user that a machine runs as: its own, so that no machine can touch
    /// another's files. Above 0x7000_0000, which systemd's list of UID ranges leaves unused.
    pub fn uid(&self, id: VmId) -> u32 {
        0x7000_0000 | (u32::from(self.instance.0) & 0xfff) << 16 | (id.0 & 0xffff) as u32
    }
}

/// A member's tap in its Env's namespace. At most 15 bytes for ids below 2^48.
pub fn tap(id: VmId) -> String {
    format!("tap{:x}", id.0)
}

/// The other end of a container's port, as long as it is in the Env's namespace. At most 15 bytes for ids below 2^44.
pub fn plug(id: VmId) -> String {
    format!("plug{:x}", id.0)
}

/// A container's label: whose it is.
pub const LABEL_INSTANCE: &str = "tt.instance";
/// A container's label: its Vm.
pub const LABEL_VM: &str = "tt.vm";
/// A container's label: which disk of its Vm it holds.
pub const LABEL_EPOCH: &str = "tt.epoch";
/// A container's label, and so that of the images made of it: the image's process, as JSON of what `tt-guest` calls an entry.
/// The container's own first process is the agent.
pub const LABEL_ENTRY: &str = "tt.entry";
/// Begins the tags of templates' images.
pub const DOCKER_TEMPLATE_TAG: &str = "t-";

/// Tag of the image that is the disk of `id` in `epoch`.
pub fn docker_tag(id: VmId, epoch: u32) -> String {
    format!("{id}-{epoch}")
}

/// The Vm and the epoch in such a tag.
pub fn parse_docker_tag(tag: &str) -> Option<(VmId, u32)> {
    let (id, epoch) = tag.split_once('-')?;
    let (id, epoch) = (id.parse().ok()?, epoch.parse().ok()?);
    (docker_tag(id, epoch) == tag).then_some((id, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_images_say_whose_they_are() {
        assert_eq!(parse_docker_tag(&docker_tag(VmId(7), 12)), Some((VmId(7), 12)));
        for tag in ["", "7", "7-", "-1", "07-1", "t-12ab", "7-1-1", "7-+1", "latest"] {
            assert_eq!(parse_docker_tag(tag), None, "{tag}");
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        let run = PathBuf::from(String::from("/") + &"r".repeat(RUN_DIR_BYTES_MAX - 1));
        let layout = Layout { data: "/d".into(), run, instance: Instance(0xffff) };
        assert!(layout.edge(EnvId(u32::MAX.into())).len() <= 15);
        assert!(tap(VmId((1 << 48) - 1)).len() <= 15);
        let socket = layout.console_socket(VmId(u64::MAX));
        assert!(socket.as_os_str().len() <= 107, "{}", socket.as_os_str().len());
        assert!(layout.uid(VmId(u64::MAX)) < 1 << 31);
    }
}
