//! Templates of a host: what runtime images are cloned from.
//!
//! Below the data directory lies `templates/<digest>/` for each template, with `template.json` and its forms: `disk.raw`, for
//! direct boot `kernel` and `initramfs`, `container.tar`. `making/<name>/` has what is not finished; `templates/by-name/` says which digest a name means now. Directories have mode 0711 and
//! files 0644, so that a machine's own user can read what it boots from. A template never changes once it is there:
//! another content is another digest, and a Vm keeps the one that it was made from.

mod boot;
mod busybox;
mod cache;
mod catalogue;
mod cpio;
mod deb;
mod debian;
mod digest;
mod draft;
mod elf;
mod error;
mod export;
mod files;
mod http;
mod import;
mod kernel;
mod lz4;
mod modules;
mod oci;
mod progress;
mod recipe;
mod record;
mod rootfs;
mod saved;
mod sources;
mod space;
mod tool;
mod tree;
mod unpack;

pub use boot::Packages;
pub use catalogue::Catalogue;
pub use draft::{Draft, Facts};
pub use error::ImageError;
pub use export::{Export, ExportForm};
pub use import::Import;
pub use progress::{Progress, Quiet};
pub use recipe::{DEBIAN, MICRO};

/// Longest name of a template, in bytes: with every `/` escaped it is still a file name.
pub const NAME_BYTES_MAX: usize = tt_model::check::TEMPLATE_NAME_BYTES_MAX;
/// Name of the disk in a template's directory.
pub const DISK: &str = "disk.raw";
/// Name of the kernel in a template's directory.
pub const KERNEL: &str = "kernel";
/// Name of the initial RAM file system in a template's directory.
pub const INITRAMFS: &str = "initramfs";
/// Name of the container image in a template's directory, as `docker save` writes it.
pub const CONTAINER: &str = "container.tar";
