//! Programs that are run to their end, and never for longer than a limit.

use crate::Must;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take: two guests boot within it even where all others boot theirs.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often a program's end is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What a run of a program left.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Run {
    /// Its standard output, if it ended well; fails the test otherwise.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}\nstdout: {}\nstderr: {}", self.line, self.out, self.err);
        self.out
    }

    /// Fails the test unless it ended with that code and said that on standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, said: &str) {
        assert_eq!(
            self.code,
            Some(code),
            "{}\nstdout: {}\nstderr: {}",
            self.line,
            self.out,
            self.err
        );
        assert!(self.err.contains(said), "{}: {said:?} is not in: {}", self.line, self.err);
    }
}

/// Runs `command` with `input`; kills it, and fails the test, when it takes longer than [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Run {
    let line = format!("{command:?}");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().must(&line);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = input.to_vec();
    let feeder = thread::spawn(move || {
        // A program need not read its input.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
    });
    let out = thread::spawn(move || read(stdout));
    let err = thread::spawn(move || read(stderr));
    let code = wait(&mut child, PATIENCE);
    let killed = code.is_none();
    if killed {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    let status = child.wait().must(&line);
    // A killed program's children may hold the pipes open for ever.
    let (out, err) = match killed {
        true => Default::default(),
        false => (out.join().must(&line), err.join().must(&line)),
    };
    assert!(!killed, "{line} took longer than {PATIENCE:?}");
    feeder.join().must(&line);
    Run { line, code: status.code(), out, err }
}

/// Waits for a child's end, but no longer than `patience`; answers whether it has ended.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<()> {
    let end = Instant::now() + patience;
    loop {
        if child.try_wait().must("look at a child").is_some() {
            return Some(());
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(LOOK);
    }
}

fn read(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error is shown.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
