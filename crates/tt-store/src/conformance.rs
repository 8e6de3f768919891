//! The suite that every store runs. It judges by the contract in `lib.rs` alone.
