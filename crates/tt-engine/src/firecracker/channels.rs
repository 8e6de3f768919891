//! What a machine is reached by: pipes for its console, and names in its directory under which it finds disks and is found.
//! Firecracker makes its own sockets; whoever connects checks who answers.

use super::request::{DISK, SEED};
use super::view::inside;
use crate::EngineError;
use crate::remains::{Remains, gone};
use rustix::fs::{FileType, Mode, mknodat};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};
use tt_model::VmId;

use super::Host;
use super::api::Api;

/// The API's socket, in the program's working directory.
pub(super) const API: &str = "api";
/// How long a program may take to answer that has just been started; some ms are usual.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(1);

/// Makes the pipes of the console; answers the program's standard input and output. It holds both ends of each, so that
/// neither ends when a reader or the daemon does; what nobody reads is lost once 64 KiB wait.
pub(super) fn console(remains: &Remains<'_>) -> Result<[File; 2], EngineError> {
    let [typed, shown] = remains.layout.console_pipes(remains.id);
    Ok([pipe(&typed)?, pipe(&shown)?])
}

fn pipe(path: &Path) -> Result<File, EngineError> {
    gone(fs::remove_file(path), path)?;
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).map_err(|e| make(path, e.into()))?;
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|e| make(path, e))
}

/// Lets the machine find its disks under names that are the same for its whole life and in all that goes on from its memory.
pub(super) fn link_disks(remains: &Remains<'_>, has_seed: bool) -> Result<(), EngineError> {
    for (name, is_there) in [(DISK, true), (SEED, has_seed)] {
        let link = remains.own(name);
        gone(fs::remove_file(&link), &link)?;
        if is_there {
            symlink(inside(name), &link).map_err(|e| make(&link, e))?;
        }
    }
    Ok(())
}

fn make(path: &Path, source: io::Error) -> EngineError {
    EngineError::Make { what: "channel", path: path.to_owned(), source }
}

impl Host {
    /// A conversation with the machine's program.
    pub fn api(&self, id: VmId) -> Result<Api, EngineError> {
        Api::connect(&self.remains(id).own(API), self.config.layout.uid(id))
    }

    /// As [`Host::api`], of a program that has just been started: waits for it as long as it lives.
    pub fn first_api(&self, id: VmId) -> Result<Api, EngineError> {
        let until = Instant::now() + ANSWER_MAX;
        loop {
            match self.api(id) {
                Err(error) if Instant::now() > until || !self.life(id).lives()? => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(POLL),
                connected => return connected,
            }
        }
    }
}
