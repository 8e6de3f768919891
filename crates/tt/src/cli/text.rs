//! Values as people read and write them: aligned columns, durations, sizes. Pure; the time is brought by the caller.
//! No colours and no spaces at the end of a line, so that scripts can rely on what is printed.

use std::time::Duration;
use tt_model::check::quoted;

/// Columns stand this many spaces apart.
const GAP: usize = 2;

/// What an empty cell shows, so that every line has the same columns; an empty one at the end of a line shows nothing.
const EMPTY: &str = "-";

/// Lines whose columns are to be aligned.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table that begins with a line of column names.
    pub fn with_header(names: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(names.iter().copied());
        table
    }

    /// Adds a line. Control characters are escaped: a guest may have chosen the text.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(|text| one_line(text.as_ref())).collect());
    }

    /// All lines, each with its line feed.
    pub fn render(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// All lines, without line feeds.
    pub fn lines(&self) -> Vec<String> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.rows.iter().map(|row| aligned(row, &widths)).collect()
    }
}

fn aligned(row: &[String], widths: &[usize]) -> String {
    let last = row.len().saturating_sub(1);
    let shown = |place: usize, cell: &str| match cell {
        "" if place < last => EMPTY.to_owned(),
        cell => cell.to_owned(),
    };
    let cells = row.iter().zip(widths).enumerate();
    let padded =
        cells.map(|(i, (cell, width))| format!("{:<width$}", shown(i, cell), width = width + GAP));
    padded.collect::<String>().trim_end().to_owned()
}

/// A text on one line of its own: control characters are escaped, so that a guest that chose it can not write elsewhere
/// on the terminal.
pub fn one_line(text: &str) -> String {
    let escape = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default().to_string());
        escaped.unwrap_or_else(|| c.to_string())
    };
    text.chars().map(escape).collect()
}

/// The two largest units of a duration: `3h58m`, `12d`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    let units =
        [(secs / 86400, 'd'), (secs / 3600 % 24, 'h'), (secs / 60 % 60, 'm'), (secs % 60, 's')];
    let from = units.iter().position(|(number, _)| *number > 0).unwrap_or(units.len() - 1);
    let shown = units[from..].iter().take(2).enumerate();
    shown
        .filter(|(place, (number, _))| *place == 0 || *number > 0)
        .map(|(_, (number, unit))| format!("{number}{unit}"))
        .collect()
}

/// How much of a lifetime is left at `now`; both in seconds since the epoch.
pub fn format_left(end: u64, now: u64) -> String {
    match end.checked_sub(now) {
        Some(left) if left > 0 => format!("{} left", format_duration(Duration::from_secs(left))),
        _ => {
            format!("over since {}", format_duration(Duration::from_secs(now.saturating_sub(end))))
        }
    }
}

/// How long ago something was at `now`; both in seconds since the epoch.
pub fn format_ago(then: u64, now: u64) -> String {
    format!("{} ago", format_duration(Duration::from_secs(now.saturating_sub(then))))
}

/// A waiting time with tenths of a second: `0.4s`.
pub fn format_tenths(ms: u64) -> String {
    format!("{}.{}s", ms / 1000, ms % 1000 / 100)
}

/// Reads a lifetime such as `30m`, `4h` or `1d12h` into seconds; at least one, and none of less.
///
/// # Errors
/// The text names the value and what would be right.
pub fn parse_life_time(text: &str) -> Result<u64, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.subsec_nanos() == 0 && duration.as_secs() > 0 => {
            Ok(duration.as_secs())
        }
        Ok(_) => {
            Err(format!("{} is no whole number of seconds above 0; write e.g. 30m", quoted(text)))
        }
        Err(_) => Err(format!("{} is no duration; write e.g. 30m, 4h or 1d12h", quoted(text))),
    }
}

/// Reads a number of bytes: `4096`, `64K` or `1M` (K is 2^10, M is 2^20).
///
/// # Errors
/// The text names the value and what would be right.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refuse = || {
        format!(
            "{} is no number of bytes; write a whole one above 0, with K or M behind it if wanted",
            quoted(text)
        )
    };
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_spaces_at_the_end() {
        let mut table = Table::with_header(&["NAME", "PHASE", "LEFT"]);
        table.row(["shop", "ready", "3h58m left"]);
        table.row(["a-much-longer-one", "", ""]);
        assert_eq!(
            table.render(),
            "NAME               PHASE  LEFT\n\
             shop               ready  3h58m left\n\
             a-much-longer-one  -\n"
        );
        assert_eq!(Table::default().render(), "");
    }

    #[test]
    fn a_hostile_text_stays_in_its_cell() {
        let mut table = Table::default();
        table.row(["a\nb", "\x1b[2J", "é"]);
        assert_eq!(table.render(), "a\\nb  \\u{1b}[2J  é\n");
    }

    #[test]
    fn durations_show_two_units() {
        for (secs, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m1s"),
            (3600 * 4 - 61, "3h58m"),
            (3600, "1h"),
            (3605, "1h"),
            (86400 * 12, "12d"),
            (86400 + 3600 * 12, "1d12h"),
        ] {
            assert_eq!(format_duration(Duration::from_secs(secs)), text);
        }
        assert_eq!(format_left(100, 40), "1m left");
        assert_eq!(format_left(100, 100), "over since 0s");
        assert_eq!(format_left(100, 160), "over since 1m");
        assert_eq!(format_ago(100, 161), "1m1s ago");
        assert_eq!(format_ago(100, 99), "0s ago");
        assert_eq!(format_tenths(440), "0.4s");
        assert_eq!(format_tenths(12_999), "12.9s");
    }

    #[test]
    fn lifetimes_are_whole_seconds() {
        for (text, secs) in [("4h", 14_400), ("1d12h", 129_600), ("90s", 90), ("1h 30m", 5400)] {
            assert_eq!(parse_life_time(text), Ok(secs));
        }
        for text in ["", "4", "h", "-1h", "4x", "0s", "500ms", "1h1ms", "99999999999999999999h"] {
            assert!(parse_life_time(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_are_read() {
        for (text, bytes) in [("1", 1), ("64K", 65536), ("2m", 2 << 20)] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for text in ["", "0", "K", "-1", "+1", "1G", "1KB", "18446744073709551615K", "é"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }
}
