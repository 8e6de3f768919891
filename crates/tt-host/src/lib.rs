//! tt-host
