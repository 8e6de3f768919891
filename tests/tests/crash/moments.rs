//! Deaths at moments that nobody chose.

use super::bystander::Bystander;
use super::requests::Ask;
use std::time::Duration;
use testkit::Lab;

/// How often the daemon is killed.
const ROUNDS: usize = 10;
/// Of the moments: the same in each run.
const SEED: u64 = 0x5eed_0f17_0000_0001;
/// Longest time from a request to the death: most of what an operation takes.
const LATEST_MS: u64 = 1500;
const OPERATIONS: [Ask; 4] = [Ask::Create(1), Ask::Stop, Ask::Start, Ask::Destroy];

#[test]
fn the_daemon_may_die_at_any_moment() {
    let Some(mut lab) = Lab::new("the_daemon_may_die_at_any_moment") else { return };
    let mut bystander = Bystander::new(&lab);
    let mut random = SEED;
    for round in 0..ROUNDS {
        let ask = OPERATIONS[round % OPERATIONS.len()];
        let key = format!("round-{round}");
        assert!(ask.send(&lab, &key));
        // Twice: the second daemon dies over what the first one left.
        for _ in 0..2 {
            // Xorshift, by Marsaglia.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::thread::sleep(Duration::from_millis(random % LATEST_MS));
            lab.kill9();
            bystander.is_connected();
            lab.restart();
        }
        ask.converges(&lab);
        bystander.runs_on(&lab);
    }
    lab.tt(&["env", "destroy", "x", "by"]).good();
    lab.finish();
}
