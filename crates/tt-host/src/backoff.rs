//! How long to wait before the next try: 0.1 s, doubled each time, at most a minute.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(60);

/// The pause after `failures` failures in a row.
pub(crate) fn delay(failures: u32) -> Duration {
    // 2^10 times the first pause is above the last one already.
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_and_ends() {
        let delays: Vec<u128> =
            [1, 2, 3, 10, 11, 12, u32::MAX].map(|n| delay(n).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 51_200, 60_000, 60_000, 60_000]);
    }
}
