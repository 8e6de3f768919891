//! What must not be reachable, with a hostile guest.
