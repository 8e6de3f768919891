//! What comes or goes as a stream: images as archives, and what happens to containers.

use crate::error::bounded;
use crate::http::{Answer, Wire, ask, query};
use crate::{Docker, DockerError, Event, JSON, LINE_BYTES_MAX, PAUSE, QUICK, checked};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

const TAR: &str = "application/x-tar";

impl Docker {
    /// Takes in the image of an archive as `docker save` writes it; answers its name or id.
    ///
    /// # Errors
    /// An archive that it can not read, or with other than one image; no room.
    pub fn load(&self, archive: &Path) -> Result<String, DockerError> {
        const ACTION: &str = "load an image";
        let used =
            |source| DockerError::UseFile { action: ACTION, path: archive.to_owned(), source };
        let mut file = File::open(archive).map_err(used)?;
        let bytes = file.metadata().map_err(used)?.len();
        // Not quietly: a daemon that works on large layers says so, and is not taken for one that hangs.
        let path = self.path(&format!("/images/load{}", query(&[("quiet", "0")])))?;
        let wire = Wire::open(&self.socket, PAUSE, false).map_err(|e| self.away(ACTION, e))?;
        let answer = ask(wire, "POST", &path, TAR, &mut file, bytes);
        let answer = checked(ACTION, answer.map_err(|e| self.away(ACTION, e))?)?;
        loaded(ACTION, BufReader::new(answer))
    }

    /// Writes an image into `to`, as `docker save` does. `goes_on` is asked now and then.
    ///
    /// # Errors
    /// [`DockerError::is_absent`]; what the file system refuses.
    pub fn save(
        &self,
        image: &str,
        to: &mut dyn Write,
        goes_on: &dyn Fn(u64) -> bool,
    ) -> Result<(), DockerError> {
        const ACTION: &str = "save an image";
        let path = self.path(&format!("/images/{image}/get"))?;
        let wire = Wire::open(&self.socket, PAUSE, false).map_err(|e| self.away(ACTION, e))?;
        let answer = ask(wire, "GET", &path, JSON, &mut io::empty(), 0);
        let mut answer = checked(ACTION, answer.map_err(|e| self.away(ACTION, e))?)?;
        let written = |source| DockerError::UseFile { action: ACTION, path: image.into(), source };
        let mut buffer = vec![0; 256 << 10];
        let mut done = 0;
        loop {
            let len = answer.read(&mut buffer).map_err(|e| self.away(ACTION, e))?;
            if len == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..len]).map_err(written)?;
            done += len as u64;
            if !goes_on(done) {
                return Err(written(io::ErrorKind::Interrupted.into()));
            }
        }
    }

    /// What has happened since then, and happens from now on, to containers with this label: of these kinds.
    ///
    /// # Errors
    /// It does not answer.
    pub fn events(
        &self,
        label: &str,
        kinds: &[&str],
        since: SystemTime,
    ) -> Result<Events, DockerError> {
        const ACTION: &str = "follow what happens";
        // It may be another one since it was followed last.
        self.known().info = None;
        let filters =
            json!({ "type": ["container"], "label": [label], "event": kinds }).to_string();
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
        let query = query(&[("filters", &filters), ("since", &since)]);
        let path = self.path(&format!("/events{query}"))?;
        let wire = Wire::open(&self.socket, QUICK, true).map_err(|e| self.away(ACTION, e))?;
        let end = wire.end().map_err(|e| self.away(ACTION, e))?;
        let answer = ask(wire, "GET", &path, JSON, &mut io::empty(), 0);
        let mut answer = checked(ACTION, answer.map_err(|e| self.away(ACTION, e))?)?;
        // Nothing may happen for days; whoever wants an end uses `Ender`.
        answer.wait_at_most(Duration::from_secs(u64::from(u32::MAX)));
        Ok(Events { answer: BufReader::new(answer), end })
    }
}

/// What happens, as it happens.
#[derive(Debug)]
pub struct Events {
    answer: BufReader<Answer>,
    end: UnixStream,
}

/// Ends [`Events`] from another thread.
#[derive(Debug)]
pub struct Ender(UnixStream);

impl Events {
    /// What ends it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn ender(&self) -> io::Result<Ender> {
        self.end.try_clone().map(Ender)
    }
}

impl Ender {
    /// From now on there are no more events.
    pub fn end(&self) {
        // One that the daemon has closed has ended.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next one; none once the daemon is away, or says what is no event.
    fn next(&mut self) -> Option<Event> {
        let line = next_line(&mut self.answer).ok()??;
        serde_json::from_slice(&line).ok()
    }
}

/// The next line of a stream of documents.
fn next_line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if read as u64 == LINE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
    }
    Ok((read > 0).then_some(line))
}

/// One line of the answer to a load.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadLine {
    stream: Option<String>,
    error: Option<String>,
}

/// The name or id of the one image that was loaded.
fn loaded(action: &'static str, mut lines: impl BufRead) -> Result<String, DockerError> {
    let answer = |problem: String| DockerError::Answer { action, problem };
    let mut images = Vec::new();
    while let Some(line) = next_line(&mut lines).map_err(|e| answer(e.to_string()))? {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line: LoadLine = serde_json::from_slice(&line).map_err(|e| answer(e.to_string()))?;
        if let Some(problem) = line.error {
            return Err(DockerError::Refuse { action, status: 400, problem: bounded(&problem) });
        }
        let said = line.stream.unwrap_or_default();
        let name =
            ["Loaded image ID: ", "Loaded image: "].iter().find_map(|p| said.strip_prefix(p));
        images.extend(name.map(|name| name.trim().to_owned()));
    }
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(image),
        (Some(_), false) => Err(answer("the archive has several images".into())),
        (None, _) => Err(answer("it does not say what it loaded".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_is_said() {
        let of = |text: &str| loaded("x", text.as_bytes());
        let line = "{\"stream\":\"Loaded image ID: sha256:12ab\\n\"}\n";
        assert_eq!(of(line).unwrap(), "sha256:12ab");
        assert_eq!(of("{\"stream\":\"Loaded image: a:b\\n\"}").unwrap(), "a:b");
        let refused = of("{\"errorDetail\":{},\"error\":\"no space\\u0007 left\"}\n").unwrap_err();
        assert_eq!(refused.to_string(), "x: Docker refuses: no space  left");
        for wrong in ["", "{}\n", "no json\n", &format!("{line}{line}")] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
