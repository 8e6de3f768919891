//! How far the making of a template is, and whether anybody still wants it. It never waits.

use crate::ImageError;
use std::io::{self, Read};

/// Whoever waits for a template: is told how far it is, and asked whether it is still wanted.
pub trait Progress: Sync {
    /// A step begins.
    fn step(&self, what: &str);

    /// So many bytes of the present step are done, of so many where that is known. Called often.
    fn bytes(&self, _done: u64, _total: Option<u64>) {}

    /// Whether it should go on. Asked often.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Whether to wait while somebody else builds on the same: that may take as long as a build. Else it ends with
    /// [`ImageError::Busy`] at once, to be tried again.
    fn is_patient(&self) -> bool {
        true
    }

    /// Ends what nobody wants any more.
    ///
    /// # Errors
    /// [`ImageError::Unwanted`].
    fn check(&self) -> Result<(), ImageError> {
        if self.is_wanted() { Ok(()) } else { Err(ImageError::Unwanted) }
    }
}

/// What is read between two questions whether it is wanted: some milliseconds.
const ASK_BYTES: u64 = 1 << 20;

/// Reads on as long as it is wanted.
pub(crate) struct Asking<'a, R> {
    input: R,
    progress: &'a dyn Progress,
    unasked: u64,
}

impl<'a, R: Read> Asking<'a, R> {
    pub(crate) fn new(input: R, progress: &'a dyn Progress) -> Self {
        Self { input, progress, unasked: ASK_BYTES }
    }
}

impl<R: Read> Read for Asking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unasked >= ASK_BYTES {
            self.unasked = 0;
            self.progress.check().map_err(io::Error::other)?;
        }
        let len = self.input.read(buffer)?;
        self.unasked += len as u64;
        Ok(len)
    }
}

/// Whether reading ended because nobody wants it any more, see [`Asking`].
pub(crate) fn is_unwanted(error: &io::Error) -> bool {
    let why = error.get_ref().and_then(|error| error.downcast_ref::<ImageError>());
    matches!(why, Some(ImageError::Unwanted))
}

/// Somebody who only listens to the steps.
impl<F: Fn(&str) + Sync> Progress for F {
    fn step(&self, what: &str) {
        self(what);
    }
}

/// Nobody listens, and all is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _what: &str) {}
}

/// Wants something so many times, for tests.
#[cfg(test)]
pub(crate) struct WantedFor(std::sync::atomic::AtomicU64);

#[cfg(test)]
impl WantedFor {
    pub(crate) fn times(times: u64) -> Self {
        Self(times.into())
    }
}

#[cfg(test)]
impl Progress for WantedFor {
    fn step(&self, _what: &str) {}

    fn is_wanted(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}
