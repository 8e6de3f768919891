//! Templates of a host: what runtime images are cloned from.
//!
//! Below the data directory lies `templates/<digest>/` for each template, with `template.json`, `disk.raw` and, for direct
//! boot, `kernel` and `initramfs`; `templates/by-name/` says which digest a name means now. Directories have mode 0711 and
//! files 0644, so that a machine's own user can read what it boots from. A template never changes once it is there:
//! another content is another digest, and a Vm keeps the one that it was made from.

mod catalogue;
mod cpio;
mod deb;
mod digest;
mod elf;
mod error;
mod files;
mod kernel;
mod lz4;
mod micro;
mod modules;
mod record;
mod rootfs;
mod tool;
mod unpack;

pub use catalogue::Catalogue;
pub use error::ImageError;
pub use micro::{MICRO, Packages};

/// Longest name of a template, in bytes: with every `/` escaped it is still a file name.
pub const NAME_BYTES_MAX: usize = 120;
/// Name of the disk in a template's directory.
pub const DISK: &str = "disk.raw";
/// Name of the kernel in a template's directory.
pub const KERNEL: &str = "kernel";
/// Name of the initial RAM file system in a template's directory.
pub const INITRAMFS: &str = "initramfs";
