//! tt
fn main() {}
