//! A machine's serial console: a bounded log, and whoever is attached.

use super::door::{Both, Door};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;
use tt_model::{ErrorCode, Layout, Refusal, VmId};

/// A log that is larger becomes the older one; an older one before it is dropped.
const LOG_BYTES_MAX: u64 = 512 * 1024;
/// Chunks that an attached client may be behind before it misses some.
const CHUNKS_MAX: usize = 256;
/// Messages that wait between a client and its console.
const MESSAGES_MAX: usize = 8;
/// Most clients of one console.
const CLIENTS_MAX: usize = 16;
/// Pause before the next try to connect to a machine that is going or coming.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after each read: bounds what a flooding guest costs to 4 KiB a millisecond.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// A client's end of a console: raw bytes both ways.
#[derive(Debug)]
pub struct ConsoleStream {
    /// What is typed.
    pub to: mpsc::Sender<Vec<u8>>,
    /// What is shown.
    pub from: mpsc::Receiver<Vec<u8>>,
}

/// Keeps a console's log. Dropping it lets the console go.
#[derive(Debug)]
pub(super) struct Console {
    runtime: Handle,
    shown: broadcast::Sender<Vec<u8>>,
    typed: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Console {
    pub(super) fn start(runtime: &Handle, door: Door, log: PathBuf) -> Self {
        let (shown, _) = broadcast::channel(CHUNKS_MAX);
        let (typed, receiver) = mpsc::channel(MESSAGES_MAX);
        let task = runtime.spawn(run(door, log, shown.clone(), receiver)).abort_handle();
        Self { runtime: runtime.clone(), shown, typed, task }
    }

    pub(super) fn attach(&self) -> Result<ConsoleStream, Refusal> {
        if self.shown.receiver_count() >= CLIENTS_MAX {
            return Err(Refusal::new(
                ErrorCode::Busy,
                "console",
                format!("{CLIENTS_MAX} clients are attached to it"),
                "detach one",
            ));
        }
        let mut shown = self.shown.subscribe();
        let (sender, from) = mpsc::channel(MESSAGES_MAX);
        self.runtime.spawn(async move {
            loop {
                let received = tokio::select! {
                    // A silent guest must not keep the place of a client that has left.
                    () = sender.closed() => return,
                    received = shown.recv() => received,
                };
                let chunk = match received {
                    Ok(chunk) => chunk,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        b"\r\n[tt: output was skipped]\r\n".to_vec()
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Ok(ConsoleStream { to: self.typed.clone(), from })
    }
}

/// Where the log goes that has become too large.
pub(super) fn older(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The last `tail_bytes` bytes of a log and the older one before it; nothing if there is none.
pub(super) fn read_log(log: &Path, tail_bytes: u64) -> io::Result<Vec<u8>> {
    let newer = read_tail(log, tail_bytes)?;
    let left = tail_bytes.saturating_sub(newer.len() as u64);
    let mut text = read_tail(&older(log), left)?;
    text.extend(newer);
    Ok(text)
}

/// Ids that have a log; found by looking.
pub(super) fn list_logs(layout: &Layout) -> io::Result<Vec<VmId>> {
    let sample = layout.console_log(VmId(0));
    let Some(dir) = sample.parent() else { return Ok(Vec::new()) };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let id: Option<u64> = name.to_str().and_then(|name| name.split('.').next()?.parse().ok());
        ids.extend(id.map(VmId));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn read_tail(path: &Path, tail_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(tail_bytes)))?;
    let mut text = Vec::new();
    file.take(tail_bytes).read_to_end(&mut text)?;
    Ok(text)
}

async fn run(
    door: Door,
    log: PathBuf,
    shown: broadcast::Sender<Vec<u8>>,
    mut typed: mpsc::Receiver<Vec<u8>>,
) {
    let mut log = Log::new(log);
    loop {
        if let Ok(both) = door.console().await {
            serve(both, &mut log, &shown, &mut typed).await;
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

async fn serve(
    (mut reader, mut writer): Both,
    log: &mut Log,
    shown: &broadcast::Sender<Vec<u8>>,
    typed: &mut mpsc::Receiver<Vec<u8>>,
) {
    let mut buffer = [0; 4096];
    let mut pending: Vec<u8> = Vec::new();
    loop {
        tokio::select! {
            // Cancel-safe: `read`, `write` and `recv` have done nothing when another branch wins.
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    log.write(&buffer[..length]);
                    // Nobody may be attached.
                    let _ = shown.send(buffer[..length].to_vec());
                    tokio::time::sleep(READ_PAUSE).await;
                }
            },
            // Beside the reading: a guest that echoes stops taking input until its output is read.
            written = writer.write(&pending), if !pending.is_empty() => match written {
                Ok(length) => drop(pending.drain(..length)),
                Err(_) => return,
            },
            Some(bytes) = typed.recv(), if pending.is_empty() => pending = bytes,
        }
    }
}

/// A log file that starts anew when it is full.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: Option<File>,
    has_failed: bool,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, has_failed: false }
    }

    /// A full disk must not end the console; it is said once.
    fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_write(bytes) {
            self.file = None;
            if !std::mem::replace(&mut self.has_failed, true) {
                tracing::warn!(path = %self.path.display(), %error, "console log not written");
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                if let Some(dir) = self.path.parent() {
                    std::fs::create_dir_all(dir)?;
                }
                OpenOptions::new().create(true).append(true).open(&self.path)?
            }
        };
        file.write_all(bytes)?;
        if file.metadata()?.len() < LOG_BYTES_MAX {
            self.file = Some(file);
        } else {
            std::fs::rename(&self.path, older(&self.path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.console");
        let mut log = Log::new(path.clone());
        let line = [b'x'; 1000];
        for _ in 0..3000 {
            log.write(&line);
        }
        log.write(b"the end");
        let size: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 2 * LOG_BYTES_MAX + 1000, "{size}");
        assert!(read_log(&path, 9).unwrap().ends_with(b"the end"));
        assert_eq!(read_log(&path, 9).unwrap().len(), 9);
        assert!(read_log(&path, u64::MAX).unwrap().len() as u64 >= LOG_BYTES_MAX);
        assert_eq!(read_log(&dir.path().join("none"), 9).unwrap(), b"");
    }
}
