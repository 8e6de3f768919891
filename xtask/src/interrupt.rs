//! Ctrl-C while something of ours runs: the step under way ends, and everything is cleaned up as after a failure. It does
//! nothing else in the handler than to remember.

use std::sync::atomic::{AtomicBool, Ordering};

static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_signal: libc::c_int) {
    CAME.store(true, Ordering::Relaxed);
}

/// From now on an interrupt is remembered instead of ending this process.
pub fn remember_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = remember as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic, which is allowed in any signal handler.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether an interrupt came.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}
