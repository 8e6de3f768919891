//! How often each member may ask. It knows of no time but what it is told.

use crate::MEMBERS_MAX;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

/// How often something may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) burst: f64,
}

/// A bucket of tokens for each member: who floods is not answered, and its neighbours are.
#[derive(Debug)]
pub(crate) struct Buckets {
    rate: Rate,
    of: BTreeMap<Ipv4Addr, Tokens>,
}

#[derive(Debug)]
struct Tokens {
    left: f64,
    filled: Instant,
}

impl Buckets {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, of: BTreeMap::new() }
    }

    /// Takes one of a member's, if it has one. The rules let nobody ask under another one's address,
    /// so there are no more buckets than an Env ever had members.
    pub(crate) fn take(&mut self, member: Ipv4Addr, now: Instant) -> bool {
        let Rate { per_second, burst } = self.rate;
        if self.of.len() >= MEMBERS_MAX && !self.of.contains_key(&member) {
            // Full again by now, or nearly: they are as good as new ones.
            self.of.clear();
        }
        let tokens = self.of.entry(member).or_insert(Tokens { left: burst, filled: now });
        let passed = now.saturating_duration_since(tokens.filled).as_secs_f64();
        tokens.filled = now;
        tokens.left = (tokens.left + passed * per_second).min(burst);
        let has_one = tokens.left >= 1.0;
        if has_one {
            tokens.left -= 1.0;
        }
        has_one
    }
}
