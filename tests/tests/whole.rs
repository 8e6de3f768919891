//! The whole life of a Vm: snapshots, suspend, changes, members that come and go, policies, kept images, a lost store,
//! strays.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod whole {
    mod external;
    mod imports;
    mod kept;
    mod members;
    mod merges;
    mod policies;
    mod publish;
    mod recipes;
    mod recovery;
    mod registry;
    mod snapshots;
    mod suspend;
    mod times;
    mod updates;
}
