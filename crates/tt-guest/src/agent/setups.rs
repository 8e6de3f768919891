//! Set-ups that wait for each other. Threads do not take turns in the order in which they were started, so each applies what
//! the host said last: whoever is last leaves the guest as the host wants it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tt_guest::message::Setup;

/// How many may wait: one that a former host began, and one of each of its successors.
const MAX_SETUPS: usize = 4;

/// All that wait, and the one at work.
#[derive(Default)]
pub struct Setups {
    count: AtomicUsize,
    newest: Mutex<Option<Setup>>,
    turn: Mutex<()>,
}

/// One that is at work. Dropped, it is done.
pub struct Turn<'a> {
    setups: &'a Setups,
    _turn: MutexGuard<'a, ()>,
}

impl Setups {
    /// Notes what the host says, in the order in which it says so. False if too many wait; then [`Setups::take_turn`] is not to
    /// follow.
    pub fn add(&self, setup: &Setup) -> bool {
        if self.count.fetch_add(1, Ordering::Relaxed) >= MAX_SETUPS {
            self.give_up();
            return false;
        }
        *lock(&self.newest) = Some(setup.clone());
        true
    }

    /// One that was added has no thread.
    pub fn give_up(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits for the turn of one that was added; answers what is to be applied.
    pub fn take_turn(&self, setup: Setup) -> (Turn<'_>, Setup) {
        let turn = Turn { setups: self, _turn: lock(&self.turn) };
        let newest = lock(&self.newest).clone();
        // Entropy is for one time, and each is good for all.
        let entropy = setup.entropy.clone();
        (turn, Setup { entropy, ..newest.unwrap_or(setup) })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.setups.give_up();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(hostname: &str, entropy: Option<&str>) -> Setup {
        Setup {
            hostname: hostname.to_owned(),
            network: None,
            dns: Vec::new(),
            hosts: Vec::new(),
            machine_id: None,
            ssh_keys: Vec::new(),
            entropy: entropy.map(str::to_owned),
        }
    }

    #[test]
    fn whoever_is_last_applies_what_was_said_last() {
        let setups = Setups::default();
        let (old, new) = (setup("old", Some("dice")), setup("new", None));
        assert!(setups.add(&old) && setups.add(&new));
        // In the other order than they were added.
        assert_eq!(setups.take_turn(new.clone()).1, new);
        assert_eq!(setups.take_turn(old).1, setup("new", Some("dice")));
    }

    #[test]
    fn too_many_are_refused_until_one_is_done() {
        let setups = Setups::default();
        let all = ["a", "b", "c", "d", "e"].map(|name| setup(name, None));
        assert_eq!(all.each_ref().map(|setup| setups.add(setup)), [true, true, true, true, false]);
        assert_eq!(
            setups.take_turn(all[0].clone()).1.hostname,
            "d",
            "a refused one is not applied"
        );
        assert!(setups.add(&all[4]) && !setups.add(&all[4]));
    }
}
