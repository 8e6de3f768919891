//! What the benches found, as lines for people.

use std::io::Write;
use std::time::Duration;

/// One finding.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    found: String,
    ratio: Option<f64>,
    ratio_max: Option<f64>,
}

impl Row {
    /// A figure without a ratio.
    pub fn figure(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), found: found.into(), ratio: None, ratio_max: None }
    }

    /// `time` over `base`, with the bound that it is to keep, if there is one.
    pub fn ratio(
        what: impl Into<String>,
        time: Duration,
        base: Duration,
        ratio_max: Option<f64>,
    ) -> Self {
        let ratio = time.as_secs_f64() / base.as_secs_f64();
        let found = format!("{} over {}", millis(time), millis(base));
        Self { what: what.into(), found, ratio: Some(ratio), ratio_max }
    }

    /// The same; it may take so often what the base does, and so much more.
    pub fn within(
        what: impl Into<String>,
        time: Duration,
        base: Duration,
        ratio_max: f64,
        more_max: Duration,
    ) -> Self {
        let max = ratio_max + more_max.as_secs_f64() / base.as_secs_f64();
        // As many digits as are printed of the ratio.
        Self::ratio(what, time, base, Some((max * 1000.0).round() / 1000.0))
    }

    /// Whether the ratio keeps its bound.
    pub fn is_within(&self) -> bool {
        self.ratio.zip(self.ratio_max).is_none_or(|(ratio, max)| ratio <= max)
    }
}

/// The middle one of some times.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A time in milliseconds.
pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Prints the findings.
pub fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
    for row in rows {
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("  ratio {ratio:.3}"));
        let bound = row.ratio_max.map_or(String::new(), |max| {
            format!(" (at most {max}: {})", if row.is_within() { "kept" } else { "BROKEN" })
        });
        say(&format!("{:width$}  {}{ratio}{bound}", row.what, row.found));
    }
}

/// Prints a line.
pub fn say(line: &str) {
    // Where nobody listens nothing can be done.
    let _ = writeln!(std::io::stdout(), "{line}");
}
