//! The process that outlives a test which is killed: it waits for the end of its pipe, and then takes the lab down.

use crate::remains;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a lab that has cleaned up itself sends last. Paths have no zero byte.
const DONE: u8 = 0;

/// The program `lab-guard`: reads a directory from standard input until its end, then clears that lab, unless told that
/// it is done.
///
/// # Errors
/// If standard input can not be read.
pub fn guard() -> io::Result<()> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    if text.last() != Some(&DONE)
        && let Ok(dir) = String::from_utf8(text)
        && dir.starts_with('/')
    {
        remains::clear(&PathBuf::from(dir));
    }
    Ok(())
}

/// A guard at work.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Lets `program` watch over the lab in `dir`.
    pub fn start(program: &Path, dir: &Path) -> io::Result<Self> {
        // Not in the test's process group: what ends that one must not end the guard.
        let mut child = Command::new(program).process_group(0).stdin(Stdio::piped()).spawn()?;
        if let Some(stdin) = &mut child.stdin {
            stdin.write_all(dir.as_os_str().as_encoded_bytes())?;
        }
        Ok(Self(child))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // Clearing twice does no harm.
            let _ = stdin.write_all(&[DONE]);
        }
        let _ = self.0.wait();
    }
}
