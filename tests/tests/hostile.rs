//! A guest is hostile and root: what it sends arrives nowhere, whatever routes and addresses it takes it gets nowhere, and
//! what it floods disturbs nobody else. `docs/hostile-guests.md` has all of it.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod hostile {
    mod list;
    mod play;
    mod scene;
    mod tricks;
}
