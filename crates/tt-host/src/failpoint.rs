//! Deaths on demand, in debug builds: `TT_FAILPOINT=machine.ensure.before` ends the daemon at
//! once, as `kill -9` would, when it is about to ensure a machine. In release builds this is
//! nothing.
//!
//! Names are `LAYER.VERB.MOMENT`: layer `image`, `net`, `machine` or `ready`; verb `ensure` or
//! `remove`; moment `before` or `after`. `erase.before` and `erase.after` stand around the commit
//! that drops a record, `merge.copy.*` around the copying of layers that are merged, `merge.finish.after`
//! behind the name that it then gets, `snapshot.take.*` around all that a snapshot does to a host, `snapshot.hold.*`
//! at the beginning and the end of the time in which guests stand still for it. A number behind a `#`
//! counts: `net.ensure.after#2` dies at the second one. Behind an `@` stands a file without which
//! nobody dies: `net.ensure.after@/tmp/armed`.

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
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static WANTED: LazyLock<Option<(String, u32, Option<PathBuf>)>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (text, armed) = match text.split_once('@') {
            Some((text, file)) => (text, Some(PathBuf::from(file))),
            None => (&*text, None),
        };
        let (name, count) = text.split_once('#').unwrap_or((text, "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1), armed))
    });
    static REACHED: AtomicU32 = AtomicU32::new(0);
    let Some((name, count, armed)) = &*WANTED else { return };
    let parts = [layer, verb, moment].into_iter().filter(|part| !part.is_empty());
    let is_named = name.split('.').eq(parts) && armed.as_ref().is_none_or(|file| file.exists());
    if is_named && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
        // SIGKILL leaves no handler, destructor or flush a chance: nothing is nearer to a crash.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_layer: &str, _verb: &str, _moment: &str) {}
