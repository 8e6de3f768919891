//! A kernel that starts at once: the ELF file inside of a packed x86 kernel image, after the kernel's documentation
//! (arch/x86/boot.rst). It never runs anything of it.

use crate::{ImageError, Progress, elf, unpack};

/// Largest kernel; Debian's cloud kernel has 53 MB.
const KERNEL_BYTES_MAX: usize = 512 << 20;
/// `HdrS`, at 0x202.
const HEADER_MAGIC: [u8; 4] = *b"HdrS";
/// First boot protocol with the payload's place, as at 0x206.
const PROTOCOL_MIN: u16 = 0x0208;
/// Linux appends the unpacked size to every payload but those of gzip, which has it already.
const SIZE_BYTES: usize = 4;

/// The ELF kernel in `image` (the kernel is then not unpacked under emulation, and Firecracker takes it); `image` itself
/// where it is one already, or is packed in an unknown way.
pub(crate) fn unpacked(image: Vec<u8>, progress: &dyn Progress) -> Result<Vec<u8>, ImageError> {
    if elf::is_elf(&image) {
        return Ok(image);
    }
    let payload = payload(&image).ok_or_else(|| ImageError::Format {
        what: "kernel image".into(),
        problem: "it has no payload of Linux boot protocol 2.08 or newer".into(),
    })?;
    let kernel = match unpack::decompress("kernel image", payload, KERNEL_BYTES_MAX, progress) {
        // Some programs refuse what follows the end of their data.
        Err(ImageError::Tool { .. }) => {
            let data = &payload[..payload.len().saturating_sub(SIZE_BYTES)];
            unpack::decompress("kernel image", data, KERNEL_BYTES_MAX, progress)?
        }
        kernel => kernel?,
    };
    match kernel {
        Some(kernel) if elf::is_elf(&kernel) => Ok(kernel),
        Some(_) => Err(ImageError::Format {
            what: "kernel image".into(),
            problem: "its payload is no ELF kernel".into(),
        }),
        None => Ok(image),
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let bytes = |at: usize| image.get(at..at + 4)?.first_chunk::<4>().copied();
    let protocol = u16::from_le_bytes([*image.get(0x206)?, *image.get(0x207)?]);
    if bytes(0x202)? != HEADER_MAGIC || protocol < PROTOCOL_MIN {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4, // as the documentation has it, for very old images
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + u32::from_le_bytes(bytes(0x248)?) as usize;
    let len = u32::from_le_bytes(bytes(0x24c)?) as usize;
    image.get(start..start.checked_add(len)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packed kernel image with this payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(&HEADER_MAGIC);
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn a_kernel_comes_out_of_its_image() {
        let elf = b"\x7fELF\x02\x01";
        let mut payload = [&crate::lz4::MAGIC[..], &7_u32.to_le_bytes(), &[0x60], elf].concat();
        payload.extend_from_slice(&6_u32.to_le_bytes());
        assert_eq!(unpacked(image(&payload), &crate::Quiet).unwrap(), elf);
        assert_eq!(unpacked(elf.to_vec(), &crate::Quiet).unwrap(), elf);
    }

    #[test]
    fn an_unknown_packing_stays_and_an_unknown_image_is_refused() {
        let unknown = image(b"BZh91AY&SY");
        assert_eq!(unpacked(unknown.clone(), &crate::Quiet).unwrap(), unknown);
        for image in [&b""[..], b"MZ", &[0; 2000]] {
            assert!(unpacked(image.to_vec(), &crate::Quiet).is_err());
        }
        let no_kernel = [&crate::lz4::MAGIC[..], &2_u32.to_le_bytes(), &[0x10, b'x']].concat();
        assert!(unpacked(image(&no_kernel), &crate::Quiet).is_err());
    }

    proptest! {
        #[test]
        fn no_header_crashes_it(noise in prop::collection::vec(any::<u8>(), 0x260..0x400)) {
            let mut image = image(&[]);
            image.truncate(noise.len());
            image[0x248..0x250].copy_from_slice(&noise[..8]);
            image[0x1f1] = noise[8];
            let _ = unpacked(image, &crate::Quiet);
        }
    }
}
