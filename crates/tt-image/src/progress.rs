//! How far the making of a template is, and whether anybody still wants it. It never waits.

use crate::ImageError;

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

    /// Ends what nobody wants any more.
    ///
    /// # Errors
    /// [`ImageError::Unwanted`].
    fn check(&self) -> Result<(), ImageError> {
        if self.is_wanted() { Ok(()) } else { Err(ImageError::Unwanted) }
    }
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
