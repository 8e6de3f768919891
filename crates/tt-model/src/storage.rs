//! The kinds of disks that Vms have: what each is called, and what others have to know of it. It makes none.

use crate::vm::ENGINE_OF_CONTAINERS;
use serde::{Deserialize, Serialize};

/// Which back end holds a runtime image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    /// A raw file, cloned by reflink where the file system can, else copied sparsely.
    File,
    /// A qcow2 overlay on the template's disk.
    Qcow2,
    /// A raw file in a btrfs subvolume of its own.
    Btrfs,
    /// A raw file in a data set of ZFS of its own.
    Zfs,
    /// A volume of ZFS.
    Zvol,
    /// What a container of Docker writes over an image.
    Docker,
}

impl StorageKind {
    /// Every kind there is.
    pub const ALL: [Self; 6] =
        [Self::File, Self::Qcow2, Self::Btrfs, Self::Zfs, Self::Zvol, Self::Docker];

    /// Name as in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Qcow2 => "qcow2",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
            Self::Zvol => "zvol",
            Self::Docker => "docker",
        }
    }

    /// Whether a disk of it goes on needing the one that it was made from.
    pub fn is_layered(self) -> bool {
        match self {
            Self::File | Self::Btrfs | Self::Zfs | Self::Zvol | Self::Docker => false,
            Self::Qcow2 => true,
        }
    }

    /// Whether a disk of it is a block device, and no file.
    pub fn is_device(self) -> bool {
        match self {
            Self::File | Self::Qcow2 | Self::Btrfs | Self::Zfs | Self::Docker => false,
            Self::Zvol => true,
        }
    }

    /// Ending of the name that a runtime image has in its Vm's directory.
    pub fn extension(self) -> &'static str {
        match self {
            Self::File => "raw",
            Self::Qcow2 => "qcow2",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
            Self::Zvol => "zvol",
            Self::Docker => "docker",
        }
    }

    /// Whether disks of it are for machines of that engine.
    pub fn is_for(self, engine: &str) -> bool {
        (self == Self::Docker) == (engine == ENGINE_OF_CONTAINERS)
    }

    /// The file, or the device, below that name that is the disk, where the name is a directory.
    pub fn inner(self) -> Option<&'static str> {
        match self {
            Self::File | Self::Qcow2 | Self::Docker => None,
            Self::Btrfs | Self::Zfs => Some("disk.raw"),
            Self::Zvol => Some("disk"),
        }
    }
}
