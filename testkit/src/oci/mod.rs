//! Container images for tests, made byte by byte, so that they can be as wrong as a stranger's; and a registry that serves
//! them on loopback, which can be as wrong as a stranger's, too.

mod image;
mod registry;
mod tar;

pub use image::{Image, archive, digest, write};
pub use registry::{Asked, Door, Part, Registry, Trick};
pub use tar::{Node, tar};
