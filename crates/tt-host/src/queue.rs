//! Which Vm to look at, and when. Never two visits to one key at a time, different keys in
//! parallel, repeats merged.

use crate::backoff;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A queue of keys that are due at a time. Its size is bounded by the number of keys: each stands
/// in it at most once.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<K> {
    due: BTreeMap<(Instant, u64), K>,
    /// Where a key stands in `due`.
    places: HashMap<K, (Instant, u64)>,
    visited: HashSet<K>,
    /// Keys named while they were being visited: what the visit saw may be old.
    again: HashSet<K>,
    /// Keys of which somebody was reminded while they were being visited.
    reminded: HashSet<K>,
    failures: HashMap<K, u32>,
    sequence: u64,
    is_closed: bool,
}

impl<K: Clone + Eq + Hash + Debug> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Debug> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            due: BTreeMap::new(),
            places: HashMap::new(),
            visited: HashSet::new(),
            again: HashSet::new(),
            reminded: HashSet::new(),
            failures: HashMap::new(),
            sequence: 0,
            is_closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Something happened to `key`: visit it as soon as possible.
    pub fn push(&self, key: K) {
        let mut state = self.lock();
        if state.visited.contains(&key) {
            state.again.insert(key);
        } else {
            state.place(key, Instant::now());
        }
        drop(state);
        // Claims wait for the same condition, and one of them must not take a worker's call.
        self.changed.notify_all();
    }

    /// Something is still to be done about `key`: visit it as soon as possible, but if its last visit failed no earlier than
    /// that failure's pause has it.
    pub fn remind(&self, key: K) {
        let mut state = self.lock();
        if state.visited.contains(&key) {
            state.reminded.insert(key);
        } else if !(state.failures.contains_key(&key) && state.places.contains_key(&key)) {
            state.place(key, Instant::now());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for a key that is due and hands it out, until [`done`](Self::done) is told. `None`
    /// when the queue was closed.
    pub fn take(&self) -> Option<K> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let now = Instant::now();
            let next = state.due.first_key_value().map(|((at, _), _)| *at);
            state = match next {
                Some(at) if at <= now => {
                    let (_, key) = state.due.pop_first()?;
                    state.places.remove(&key);
                    state.visited.insert(key.clone());
                    return Some(key);
                }
                Some(at) => {
                    let waited = self.changed.wait_timeout(state, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The visit is over; look again after `delay`, or never (`None`) unless named again.
    pub fn done(&self, key: &K, delay: Option<Duration>) {
        let mut state = self.lock();
        state.failures.remove(key);
        state.finish(key, delay);
        drop(state);
        self.changed.notify_all();
    }

    /// The visit is over and neither succeeded nor failed: look again after `delay`. Failures before
    /// it still count.
    pub fn wait(&self, key: &K, delay: Duration) {
        self.lock().finish(key, Some(delay));
        self.changed.notify_all();
    }

    /// The visit is over and failed: look again later, each time after a longer pause, or at once
    /// if an event named the key meanwhile.
    pub fn failed(&self, key: &K) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = backoff::delay(*failures);
        // What it was reminded of has just failed.
        state.reminded.remove(key);
        state.finish(key, Some(delay));
        drop(state);
        self.changed.notify_all();
    }

    /// How often in a row visits to `key` failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Waits until none of `keys` is being visited, and keeps every one of them from being visited
    /// until [`free`](Self::free) is told. `false` when the queue was closed.
    pub fn claim(&self, keys: &[K]) -> bool {
        let mut state = self.lock();
        while keys.iter().any(|key| state.visited.contains(key)) {
            if state.is_closed {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        for key in keys {
            state.visited.insert(key.clone());
            if let Some(place) = state.places.remove(key) {
                state.due.remove(&place);
            }
        }
        !state.is_closed
    }

    /// Lets claimed keys be visited again, and as soon as possible.
    pub fn free(&self, keys: &[K]) {
        let mut state = self.lock();
        for key in keys {
            state.finish(key, Some(Duration::ZERO));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends every [`take`](Self::take), now and in future.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn place(&mut self, key: K, at: Instant) {
        match self.places.get(&key) {
            Some((earlier, _)) if *earlier <= at => return,
            Some(place) => {
                self.due.remove(&{ *place });
            }
            None => {}
        }
        self.sequence += 1;
        self.places.insert(key.clone(), (at, self.sequence));
        self.due.insert((at, self.sequence), key);
    }

    fn finish(&mut self, key: &K, delay: Option<Duration>) {
        self.visited.remove(key);
        let now = Instant::now();
        if self.again.remove(key) | self.reminded.remove(key) {
            self.place(key.clone(), now);
        } else if let Some(delay) = delay {
            self.place(key.clone(), now + delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn one_key_is_never_visited_twice_at_once_and_no_event_is_lost() {
        let queue: Arc<Queue<usize>> = Arc::new(Queue::new());
        let pushed: Arc<Vec<AtomicU32>> = Arc::new((0..4).map(|_| AtomicU32::new(0)).collect());
        let seen: Arc<Vec<AtomicU32>> = Arc::new((0..4).map(|_| AtomicU32::new(0)).collect());
        let busy: Arc<Vec<AtomicU32>> = Arc::new((0..4).map(|_| AtomicU32::new(0)).collect());
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (queue, pushed, seen, busy) =
                    (queue.clone(), pushed.clone(), seen.clone(), busy.clone());
                std::thread::spawn(move || {
                    while let Some(key) = queue.take() {
                        assert_eq!(busy[key].fetch_add(1, Ordering::SeqCst), 0);
                        seen[key].store(pushed[key].load(Ordering::SeqCst), Ordering::SeqCst);
                        busy[key].fetch_sub(1, Ordering::SeqCst);
                        queue.done(&key, None);
                    }
                })
            })
            .collect();
        for round in 0..4000 {
            pushed[round % 4].fetch_add(1, Ordering::SeqCst);
            queue.push(round % 4);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen.iter().any(|n| n.load(Ordering::SeqCst) != 1000) {
            assert!(Instant::now() < deadline, "an event was lost");
            std::thread::sleep(Duration::from_millis(1));
        }
        queue.close();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    }

    #[test]
    fn what_is_claimed_is_not_visited_and_no_event_is_lost() {
        let queue: Arc<Queue<u32>> = Arc::new(Queue::new());
        queue.push(1);
        queue.push(2);
        assert_eq!(queue.take(), Some(1));
        let claiming = queue.clone();
        let claimed = std::thread::spawn(move || claiming.claim(&[1, 2]));
        std::thread::sleep(SOON);
        assert!(!claimed.is_finished(), "a key is still being visited");
        queue.done(&1, None);
        assert!(claimed.join().unwrap());
        queue.push(1);
        queue.push(3);
        assert_eq!(queue.take(), Some(3), "nothing else may be visited");
        queue.free(&[1, 2]);
        let mut freed = [queue.take(), queue.take()];
        freed.sort_unstable();
        assert_eq!(freed, [Some(1), Some(2)]);
    }

    #[test]
    fn a_timer_waits_and_an_event_overtakes_it() {
        let queue = Queue::new();
        queue.push(1);
        assert_eq!(queue.take(), Some(1));
        let begin = Instant::now();
        queue.done(&1, Some(SOON));
        assert_eq!(queue.take(), Some(1));
        assert!(begin.elapsed() >= SOON);
        queue.done(&1, Some(Duration::from_secs(3600)));
        queue.push(1);
        assert_eq!(queue.take(), Some(1));
    }

    #[test]
    fn an_event_during_a_failing_visit_is_not_put_off() {
        let queue = Queue::new();
        queue.push(1);
        assert_eq!(queue.take(), Some(1));
        for _ in 0..20 {
            queue.push(1);
            queue.failed(&1);
            let begin = Instant::now();
            assert_eq!(queue.take(), Some(1));
            assert!(begin.elapsed() < Duration::from_secs(1));
        }
    }

    #[test]
    fn a_reminder_shortens_no_pause_of_a_failure_and_is_not_lost() {
        let queue = Queue::new();
        queue.remind(1);
        for failures in 1..=12 {
            assert_eq!(queue.take(), Some(1));
            queue.remind(1);
            queue.failed(&1);
            queue.remind(1);
            let (at, _) = *queue.lock().due.first_key_value().unwrap().0;
            assert!(at > Instant::now() + backoff::delay(failures) / 2, "{failures}");
            queue.push(1);
        }
        assert_eq!(queue.take(), Some(1));
        queue.remind(1);
        queue.done(&1, None);
        assert_eq!(queue.take(), Some(1), "what was seen may be old");
    }

    #[test]
    fn waiting_forgives_no_failure() {
        let queue = Queue::new();
        queue.push(1);
        for failures in 1..4 {
            assert_eq!(queue.take(), Some(1));
            queue.failed(&1);
            assert_eq!(queue.take(), Some(1));
            queue.wait(&1, Duration::ZERO);
            assert_eq!(queue.failures(&1), failures);
        }
    }

    #[test]
    fn failures_are_counted_until_a_visit_succeeds() {
        let queue = Queue::new();
        queue.push(1);
        for failures in 1..3 {
            assert_eq!(queue.take(), Some(1));
            queue.failed(&1);
            assert_eq!(queue.failures(&1), failures);
        }
        assert_eq!(queue.take(), Some(1));
        queue.done(&1, None);
        assert_eq!(queue.failures(&1), 0);
    }
}
