//! Sizes as people write them.

/// A text that is no size, or one that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no size; write a whole number of MB, or one with M, G or T behind it")]
pub struct ParseSizeError {
    /// What was given.
    pub text: String,
}

/// Reads a size into MB (2^20 bytes): `512` and `512M` are 512, `2G` is 2048, `1T` is 1048576.
pub fn parse_size_mb(text: &str) -> Result<u32, ParseSizeError> {
    let refuse = || ParseSizeError { text: text.to_owned() };
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
        Some(b'T' | b't') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let number: u32 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(factor).filter(|mb| *mb > 0).ok_or_else(refuse)
}

/// Writes a size in MB (2^20 bytes) with the largest unit that divides it: `2048` is `2G`.
pub fn format_size_mb(mb: u64) -> String {
    match mb {
        0 => "0M".into(),
        mb if mb % (1024 * 1024) == 0 => format!("{}T", mb / (1024 * 1024)),
        mb if mb % 1024 == 0 => format!("{}G", mb / 1024),
        mb => format!("{mb}M"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, mb) in
            [("1", 1), ("512M", 512), ("2g", 2048), ("1T", 1 << 20), ("4095T", 4095 << 20)]
        {
            assert_eq!(parse_size_mb(text), Ok(mb));
            assert_eq!(parse_size_mb(&format_size_mb(mb.into())), Ok(mb));
        }
        for text in [
            "",
            "0",
            "-1",
            "+1",
            "1.5G",
            "1K",
            "4096T",
            "4294967296",
            "G",
            "1 G",
            "1GB",
            "٣",
            "0x10",
            "1é",
        ] {
            assert!(parse_size_mb(text).is_err(), "{text:?}");
        }
    }
}
