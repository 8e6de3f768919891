//! Deaths on the real host: of the daemon at every layer and at random moments, of machines, and by guests' own will.
//! After each one all converges, the host is what the records say, and who had nothing to do with it noticed nothing.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod crash {
    mod bystander;
    mod daemons;
    mod failpoints;
    mod lives;
    mod machines;
    mod moments;
    mod power;
    mod requests;
}
