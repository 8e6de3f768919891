//! Random sequences of what can happen to a host, on real guests, against the model that the fakes are compared with
//! (`testkit::sequence`): after each step records, host and guests, seen from the inside, are as the model says.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod sequences {
    mod act;
    mod compare;
    mod inside;
    mod play;
}
