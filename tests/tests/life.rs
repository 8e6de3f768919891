//! The life of an Env as its owner and its guests see it: what guests are told, who reaches whom, rest and return,
//! commands, copies, lifetimes, and the end.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod life {
    mod commands;
    mod debian;
    mod inside;
    mod lifetimes;
    mod login;
    mod reach;
    mod rest;
}
