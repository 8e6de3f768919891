//! An image as `docker save` writes it, for an engine that runs containers. Layers stay packed as they are where every
//! Docker can read that, so it costs no more than the image itself.

use super::image::Image;
use crate::space::{self, ROOM_LOOK_BYTES};
use crate::{ImageError, Progress, files};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

pub(crate) const BLOCK: usize = 512;
/// Copied at once.
const PIECE_BYTES: usize = 256 << 10;

/// Writes `image` to the new file `path`.
pub(super) fn write(
    image: &Image<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let not_written = files::not_written(path);
    let file = File::create_new(path).map_err(&not_written)?;
    let mut out = BufWriter::with_capacity(PIECE_BYTES, file);
    let config = format!("{}.json", image.id.hex());
    let layers: Vec<String> =
        (0..image.layers()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{ "Config": config, "RepoTags": null, "Layers": layers }]);
    let manifest = manifest.to_string().into_bytes();
    for (name, content) in [("manifest.json", &*manifest), (&config, image.config())] {
        put(&mut out, &Head::file(name), content).map_err(&not_written)?;
    }
    for (number, name) in layers.iter().enumerate() {
        let mut layer = image.open_for_docker(number)?;
        space::check_room(path, layer.bytes)?;
        let head = Head { bytes: layer.bytes, ..Head::file(name) };
        head.write(&mut out).map_err(&not_written)?;
        let mut buffer = vec![0; PIECE_BYTES];
        let (mut done, mut looked) = (0, 0);
        loop {
            progress.check()?;
            progress.bytes(done, Some(layer.bytes));
            let len = layer.content.read(&mut buffer).map_err(|e| image.not_read(number, e))?;
            if len == 0 {
                break;
            }
            out.write_all(&buffer[..len]).map_err(&not_written)?;
            done += len as u64;
            if done - looked > ROOM_LOOK_BYTES {
                looked = done;
                space::check_room(path, 0)?;
            }
        }
        pad(&mut out, done).map_err(&not_written)?;
    }
    out.write_all(&[0; 2 * BLOCK]).map_err(&not_written)?;
    let file = out.into_inner().map_err(|e| not_written(e.into_error()))?;
    file.sync_all().map_err(&not_written)
}

/// What the header of an entry says: root's, of the first second. Name and target are short.
pub(crate) struct Head<'a> {
    pub(crate) name: &'a str,
    /// The type flag.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    /// Where a symbolic link points.
    pub(crate) target: &'a str,
    pub(crate) bytes: u64,
}

impl<'a> Head<'a> {
    /// An empty file that anybody reads.
    pub(crate) fn file(name: &'a str) -> Self {
        Self { name, kind: b'0', mode: 0o644, target: "", bytes: 0 }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let mut field = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        field(0, self.name.as_bytes());
        field(100, format!("{:07o}\x000000000\x000000000\0", self.mode).as_bytes());
        if self.bytes < 1 << 33 {
            field(124, format!("{:011o}", self.bytes).as_bytes());
        } else {
            field(124, &[0x80, 0, 0, 0]);
            field(128, &self.bytes.to_be_bytes());
        }
        field(136, b"00000000000\0");
        field(156, &[self.kind]);
        field(157, self.target.as_bytes());
        field(257, b"ustar\x0000");
        let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&block)
    }
}

/// A whole entry.
pub(crate) fn put(out: &mut impl Write, head: &Head<'_>, content: &[u8]) -> io::Result<()> {
    let bytes = content.len() as u64;
    Head { bytes, ..*head }.write(out)?;
    out.write_all(content)?;
    pad(out, bytes)
}

fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let rest = (bytes % BLOCK as u64) as usize;
    out.write_all(&vec![0; (BLOCK - rest) % BLOCK])
}
