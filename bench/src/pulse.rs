//! A guest's pulse, taken from outside: a datagram each millisecond through a published port to a
//! program in the guest that sends it back. The longest silence between two answers is how long the
//! guest stood still, as everybody who talks to it feels it. No clock in the guest takes part: it
//! stands still with the guest, and would show nothing.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testkit::{Must, Space, within};

/// How far apart datagrams are sent. Answers can not tell a shorter silence.
const BEAT: Duration = Duration::from_millis(1);
/// How often the listener looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// How long a guest may be silent before and after.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest time without an answer from the echo server at `to` that begins or ends while
/// `action` runs.
pub fn longest_silence(
    space: &Space,
    to: impl Into<SocketAddr>,
    action: impl FnOnce(),
) -> Duration {
    let socket = space.run(|| UdpSocket::bind("0.0.0.0:0")).must("bind a socket");
    socket.connect(to.into()).must("choose the guest");
    socket.set_read_timeout(Some(LOOK)).must("set a timeout");
    let (is_alive, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        // Also where the action fails.
        let over = Over(&is_over);
        scope.spawn(|| beat(&socket, &is_over));
        let answers = scope.spawn(|| listen(&socket, &is_alive, &is_over));
        let answered = || is_alive.swap(false, Ordering::Relaxed);
        assert!(within(PATIENCE, answered), "the guest does not answer");
        let begin = Instant::now();
        action();
        let end = Instant::now();
        answered();
        assert!(within(PATIENCE, answered), "the guest answers no more");
        drop(over);
        let answers = answers.join().must("the listener");
        longest(&answers, begin, end)
    })
}

/// Ends both threads when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn beat(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut next = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        // One that gets lost is one beat.
        let _ = socket.send(b"beat");
        next += BEAT;
        let now = Instant::now();
        match next.checked_duration_since(now) {
            Some(rest) => thread::sleep(rest),
            // What this machine has slept through is not made up for by a flood.
            None => next = now,
        }
    }
}

fn listen(socket: &UdpSocket, is_alive: &AtomicBool, is_over: &AtomicBool) -> Vec<Instant> {
    let mut answers = Vec::new();
    let mut data = [0; 16];
    while !is_over.load(Ordering::Relaxed) {
        if socket.recv(&mut data).is_ok() {
            answers.push(Instant::now());
            is_alive.store(true, Ordering::Relaxed);
        }
    }
    answers
}

/// The longest time between two neighbours that reaches into the time from `begin` to `end`.
fn longest(answers: &[Instant], begin: Instant, end: Instant) -> Duration {
    let pairs = answers.windows(2).filter(|pair| pair[1] >= begin && pair[0] <= end);
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_outside_of_the_action_do_not_count() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let answers = [at(0), at(50), at(51), at(58), at(60), at(99)];
        assert_eq!(longest(&answers, at(51), at(59)), Duration::from_millis(7));
        assert_eq!(longest(&answers, at(20), at(59)), Duration::from_millis(50));
        assert_eq!(longest(&answers, at(52), at(60)), Duration::from_millis(39));
        assert_eq!(longest(&[], at(0), at(1)), Duration::ZERO);
    }

    #[test]
    fn an_action_that_fails_ends_the_pulse() {
        let space = Space::new().must("a space");
        let echo = testkit::Echo::new(&space, 7);
        let failing = || longest_silence(&space, ([127, 0, 0, 1], 7), || panic!("as it must"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(failing)).is_err());
        drop(echo);
    }
}
