//! Wrong requests over the command line and the API: each is refused with a clear error and a stable code, and nothing is
//! changed.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod wrong {
    mod api;
    mod bytes;
    mod command_line;
    mod later;
    mod records;
    mod state;
    mod twice;
}
