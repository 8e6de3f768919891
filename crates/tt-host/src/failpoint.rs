//! Deaths on demand, in debug builds: `TT_FAILPOINT=machine.ensure.before` ends the daemon at
//! once, as `kill -9` would, when it is about to ensure a machine. In release builds this is
//! nothing.
//!
//! Names are `LAYER.VERB.MOMENT`: layer `image`, `net`, `machine` or `ready`; verb `ensure` or
//! `remove`; moment `before` or `after`. `erase.before` and `erase.after` stand around the commit
//! that drops a record. A number behind a `#` counts: `net.ensure.after#2` dies at the second one.

use tt_model::Phase;

/// Name of the environment variable.
#[cfg(debug_assertions)]
const VARIABLE: &str = "TT_FAILPOINT";

/// The name of the layer that is made in `phase`.
pub(crate) fn layer_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Image => "image",
        Phase::Net => "net",
        Phase::Machine => "machine",
        _ => "ready",
    }
}

/// Ends the process here if the environment says so.
#[cfg(debug_assertions)]
pub(crate) fn reached(layer: &str, verb: &str, moment: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static WANTED: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, count) = text.split_once('#').unwrap_or((&text, "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    });
    static REACHED: AtomicU32 = AtomicU32::new(0);
    let Some((name, count)) = &*WANTED else { return };
    let parts = [layer, verb, moment].into_iter().filter(|part| !part.is_empty());
    if name.split('.').eq(parts) && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
        // SIGKILL leaves no handler, destructor or flush a chance: nothing is nearer to a crash.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_layer: &str, _verb: &str, _moment: &str) {}
