//! Waits beside a test and, if that one is killed, takes its lab down. Does nothing otherwise.

fn main() -> std::io::Result<()> {
    testkit::guard()
}
