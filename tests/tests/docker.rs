//! Containers beside machines, in one Env, by a real Docker of the test's own.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod docker {
    mod away;
    mod engines;
    mod life;
}
