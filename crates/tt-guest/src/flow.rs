//! Flow control of one stream in one direction: a sender never has more than [`WINDOW`] bytes under way that the
//! receiver has not consumed. Pure counting; it never holds data.

use crate::Error;
use crate::frame::MAX_PAYLOAD;

/// Bytes that may be under way on a stream in one direction before the receiver grants more. Standard output and
/// standard error of a stream share one window.
pub const WINDOW: u32 = 256 * 1024;

/// Streams that may be open at once in one session.
pub const MAX_STREAMS: usize = 64;

/// Grants are sent for this many bytes at once, so that small reads do not cost a frame each.
const GRANT_BYTES: u32 = WINDOW / 4;

/// The sender's side: how much may still be sent.
#[derive(Debug, Clone)]
pub struct SendWindow {
    available: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { available: WINDOW }
    }
}

impl SendWindow {
    /// Bytes that one frame may carry now: what the window allows, at most `MAX_PAYLOAD`.
    #[must_use]
    pub fn sendable(&self) -> usize {
        (self.available as usize).min(MAX_PAYLOAD)
    }

    /// Notes that `bytes` were sent. More than [`Self::sendable`] empties the window.
    pub fn sent(&mut self, bytes: usize) {
        self.available = self.available.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Takes a credit of the receiver. A credit beyond the window is cut: no peer may make us send more than `WINDOW`.
    pub fn granted(&mut self, bytes: u32) {
        self.available = self.available.saturating_add(bytes).min(WINDOW);
    }
}

/// The receiver's side: how much may still come, and when to grant more.
#[derive(Debug, Clone)]
pub struct ReceiveWindow {
    open: u32,
    owed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { open: WINDOW, owed: 0 }
    }
}

impl ReceiveWindow {
    /// Notes that a frame with `bytes` arrived.
    ///
    /// # Errors
    /// `ReceiveData` if the sender was not granted that much: it breaks the protocol, end the stream.
    pub fn received(&mut self, bytes: usize) -> Result<(), Error> {
        match u32::try_from(bytes).ok().and_then(|count| self.open.checked_sub(count)) {
            Some(open) => {
                self.open = open;
                Ok(())
            }
            None => Err(Error::ReceiveData { bytes, allowed: self.open }),
        }
    }

    /// Notes that `bytes` were passed on and need no buffer any more. Returns the credit to send now, if it is worth a
    /// frame.
    pub fn consumed(&mut self, bytes: usize) -> Option<u32> {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_add(count).min(WINDOW - self.open);
        if self.owed < GRANT_BYTES {
            return None;
        }
        self.open += self.owed;
        Some(std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sender_beyond_its_window_is_caught() {
        let mut window = ReceiveWindow::default();
        window.received(WINDOW as usize).unwrap();
        assert!(window.received(1).is_err());
    }

    proptest! {
        #[test]
        fn a_transfer_always_ends_and_never_exceeds_the_window(sizes in proptest::collection::vec(1usize..90_000, 1..60)) {
            let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
            let (mut buffered, mut left): (usize, usize) = (0, sizes.iter().sum());
            let mut reads = sizes.iter().cycle();
            while left > 0 || buffered > 0 {
                let count = send.sendable().min(left);
                send.sent(count);
                left -= count;
                receive.received(count).unwrap();
                buffered += count;
                prop_assert!(buffered <= WINDOW as usize);
                let read = buffered.min(*reads.next().unwrap());
                prop_assert!(read + count > 0, "neither side can go on");
                buffered -= read;
                if let Some(credit) = receive.consumed(read) {
                    send.granted(credit);
                }
            }
        }

        #[test]
        fn absurd_credits_do_not_widen_the_window(credits in proptest::collection::vec(any::<u32>(), 0..20)) {
            let mut send = SendWindow::default();
            for credit in credits {
                send.granted(credit);
                prop_assert!(send.available <= WINDOW);
            }
        }
    }
}
