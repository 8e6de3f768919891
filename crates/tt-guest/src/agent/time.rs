//! Clock and entropy: what a guest must not carry over from the moment at which it was saved.

use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A clock that is off by no more than this is left alone, for setting it would make time jump.
const TOLERANCE_NS: u64 = 1_000_000_000;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bytes that the host sends.
const ENTROPY_LEN: usize = 32;

/// The kernel's `struct rand_pool_info` with room for our bytes.
#[repr(C)]
struct RandomPool {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; ENTROPY_LEN],
}

/// `RNDADDENTROPY`, declared by the kernel as `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);

/// `RNDRESEEDCRNG`, declared by the kernel as `_IO('R', 0x07)`.
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

/// When this guest's life began, if that was after its kernel's.
static BIRTH_MS: OnceLock<u64> = OnceLock::new();

/// Lets time count from now on.
pub fn note_birth() {
    // It is born once.
    let _ = BIRTH_MS.set(uptime_ms());
}

/// Milliseconds since the guest began to boot, including time that it was suspended.
pub fn uptime_ms() -> u64 {
    boot_time_ms().saturating_sub(BIRTH_MS.get().copied().unwrap_or_default())
}

fn boot_time_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

/// Sets the clock unless it is right to a second.
pub fn set_clock(unix_ns: u64) -> io::Result<()> {
    if now_ns().abs_diff(unix_ns) <= TOLERANCE_NS { Ok(()) } else { set(unix_ns) }
}

/// Sets the clock if it is more than a second behind; never back.
pub fn advance_clock(unix_ns: u64) -> io::Result<()> {
    if unix_ns.saturating_sub(now_ns()) <= TOLERANCE_NS { Ok(()) } else { set(unix_ns) }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn set(unix_ns: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: (unix_ns / NS_PER_SECOND).cast_signed(),
        tv_nsec: (unix_ns % NS_PER_SECOND).cast_signed(),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Adds 32 random bytes, as hexadecimal digits, to the kernel's pool; what is drawn from now on follows from them.
pub fn add_entropy(hex: &str) -> io::Result<()> {
    let data =
        parse_hex(hex).ok_or_else(|| io::Error::other("it must be 64 hexadecimal digits"))?;
    let pool = RandomPool { entropy_bits: 8 * ENTROPY_LEN as i32, bytes: ENTROPY_LEN as i32, data };
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the opcode takes a pointer to a `rand_pool_info`, whose length field matches the data behind it.
    unsafe { ioctl(&device, Setter::<ADD_ENTROPY, RandomPool>::new(pool)) }?;
    // By itself the kernel turns to the pool only each minute (`CRNG_RESEED_INTERVAL` of drivers/char/random.c).
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl(&device, NoArg::<RESEED>::new()) }?;
    Ok(())
}

fn parse_hex(hex: &str) -> Option<[u8; ENTROPY_LEN]> {
    let digits = hex.as_bytes();
    let mut data = [0; ENTROPY_LEN];
    if digits.len() != 2 * ENTROPY_LEN {
        return None;
    }
    for (byte, pair) in data.iter_mut().zip(digits.chunks(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_hexadecimal_digits_are_entropy() {
        let parsed = parse_hex(&format!("0aF9{}", "00".repeat(30))).unwrap();
        assert_eq!(parsed[..3], [0x0a, 0xf9, 0]);
        for wrong in [String::new(), "0".repeat(63), "0".repeat(66), "g".repeat(64), "é".repeat(32)]
        {
            assert!(parse_hex(&wrong).is_none(), "{wrong}");
        }
    }
}
