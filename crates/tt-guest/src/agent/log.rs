//! Lines on the agent's standard error, which is the console of a guest. At a bounded rate: a host that sends nonsense
//! must not fill it.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines in one [`PERIOD`] at most; more are counted and dropped.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

struct Rate {
    since: Option<Instant>,
    lines: u32,
    dropped: u32,
}

static RATE: Mutex<Rate> = Mutex::new(Rate { since: None, lines: 0, dropped: 0 });

/// Writes one line, unless there were too many.
pub fn say(line: impl AsRef<str>) {
    let Ok(mut rate) = RATE.lock() else { return };
    if rate.since.is_none_or(|since| since.elapsed() > PERIOD) {
        rate.since = Some(Instant::now());
        rate.lines = 0;
        if rate.dropped > 0 {
            write(&format!("tt-guest: {} more lines were dropped\n", rate.dropped));
            rate.dropped = 0;
        }
    }
    if rate.lines == LINES {
        rate.dropped += 1;
        return;
    }
    rate.lines += 1;
    write(&format!("tt-guest: {}\n", line.as_ref()));
}

/// An error with all its causes, on one line.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn write(line: &str) {
    // Without a console there is nobody to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}
