//! The asynchronous machinery of one client.

use crate::ImageError;
use std::io;
use tokio::runtime::Runtime;

/// What runs the asynchronous parts. It is gone at once: a name that is still being looked up is not waited for, which may
/// take a resolver half a minute.
pub(super) struct Machine(Option<Runtime>);

impl Machine {
    /// With an event queue of the system's.
    pub(super) fn new() -> io::Result<Self> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().map(|it| Self(Some(it)))
    }

    /// Runs it to its end.
    pub(super) fn block_on<F: Future>(&self, future: F) -> Result<F::Output, ImageError> {
        match &self.0 {
            Some(runtime) => Ok(runtime.block_on(future)),
            None => Err(ImageError::Unwanted),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
