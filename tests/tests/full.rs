//! A full disk at each thing that is asked for: who asked is told what to do, nothing is lost, guests run on, and once there
//! is room all goes on.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod full {
    mod actions;
    mod filler;
}
