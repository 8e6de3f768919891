//! Programs by their argv, as values: shown, run, bounded. It never starts a shell.

use crate::failure::{Failure, Outcome};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where programs for administrators lie; an ordinary user's `PATH` lacks them.
const ADMIN_PATH: &str = ":/usr/local/sbin:/usr/sbin:/sbin";
/// How long a program may still live after it was asked to end.
const KILL_AFTER: &str = "--kill-after=10";

/// A program with its arguments and surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argv {
    words: Vec<OsString>,
    env: Vec<(String, OsString)>,
    dir: Option<PathBuf>,
    needs_root: bool,
    limit: Option<Duration>,
}

/// What a program did.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on the streams that were caught, bytes that are no UTF-8 replaced.
    pub text: String,
}

impl Argv {
    /// A program, by path or by name.
    pub fn new(program: impl Into<OsString>) -> Self {
        let words = vec![program.into()];
        Self { words, env: Vec::new(), dir: None, needs_root: false, limit: None }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.words.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.words.extend(args.into_iter().map(Into::into));
        self
    }

    /// With this variable, too.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// In this directory.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// As root: through `sudo` where this program is not root.
    pub fn root(mut self) -> Self {
        self.needs_root = true;
        self
    }

    /// Ended by coreutils' `timeout` after so long, counted in whole seconds.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The command as the system gets it, its environment aside.
    fn full(&self) -> Vec<OsString> {
        let mut full: Vec<OsString> = Vec::new();
        if self.needs_root && !is_root() {
            // Without a terminal nobody could type a password: better refused than hanging.
            full.push("sudo".into());
            full.extend((!std::io::stdin().is_terminal()).then(|| "-n".into()));
            if !self.env.is_empty() {
                full.push("env".into());
                full.extend(self.env.iter().map(|(name, value)| {
                    let mut pair = OsString::from(format!("{name}="));
                    pair.push(value);
                    pair
                }));
            }
        }
        if let Some(limit) = self.limit {
            // In the foreground Ctrl-C reaches the program, too.
            full.extend(["timeout", "--foreground", KILL_AFTER].map(OsString::from));
            full.push(limit.as_secs().to_string().into());
        }
        full.extend(self.words.iter().cloned());
        full
    }

    /// Ready to be started, for callers that keep the process.
    pub fn command(&self) -> Command {
        let full = self.full();
        let mut command = Command::new(&full[0]);
        command.args(&full[1..]);
        let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        path.push(ADMIN_PATH);
        command.env("PATH", path);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Runs to its end with this program's streams.
    ///
    /// # Errors
    /// If it can not be started, or does not succeed.
    pub fn run(&self) -> Outcome {
        let mut command = self.command();
        let status = command.stdin(Stdio::null()).status().map_err(Failure::to("run", self))?;
        self.check(status)
    }

    /// Runs to its end, and catches both of its streams, which end up one after the other.
    ///
    /// # Errors
    /// Only if it can not be started: its end is the caller's to judge.
    pub fn look(&self) -> Outcome<Done> {
        let mut command = self.command();
        let output = command.stdin(Stdio::null()).output().map_err(Failure::to("run", self))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(Done { status: output.status, text })
    }

    /// Runs to its end, and returns what it prints on its standard output.
    ///
    /// # Errors
    /// If it can not be started, or does not succeed; with what it said.
    pub fn text(&self) -> Outcome<String> {
        let mut command = self.command();
        let output = command.stdin(Stdio::null()).output().map_err(Failure::to("run", self))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("`{self}`: {}: {}", output.status, said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs to its end; each line of both of its streams is given to `each` and printed.
    ///
    /// # Errors
    /// If it can not be started or read, or does not succeed.
    pub fn watch(&self, mut each: impl FnMut(&str)) -> Outcome {
        let (reader, writer) = std::io::pipe().map_err(Failure::to("make a pipe for", self))?;
        let twin = writer.try_clone().map_err(Failure::to("make a pipe for", self))?;
        let mut child = {
            // The command keeps the writing ends; it goes, so that the reader sees the end.
            let mut command = self.command();
            command.stdin(Stdio::null()).stdout(writer).stderr(twin);
            command.spawn().map_err(Failure::to("run", self))?
        };
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(Failure::to("read from", self))? > 0 {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            crate::say::line(text);
            each(text);
            line.clear();
        }
        self.check(child.wait().map_err(Failure::to("wait for", self))?)
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it can not be started.
    pub fn start(&self, prepare: impl FnOnce(&mut Command)) -> Outcome<Child> {
        let mut command = self.command();
        prepare(&mut command);
        command.spawn().map_err(Failure::to("start", self))
    }

    fn check(&self, status: ExitStatus) -> Outcome {
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("`{self}`: {status}")))
    }
}

/// As a person would type it: quoted where a shell needs it, without directories before the program's name.
impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.needs_root && !is_root() {
            f.write_str("sudo ")?;
        }
        let program = std::path::Path::new(&self.words[0]).file_name().unwrap_or(&self.words[0]);
        write!(f, "{}", quoted(program))?;
        self.words[1..].iter().try_for_each(|word| write!(f, " {}", quoted(word)))
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:,=+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.into_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, changes nothing and can not fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether there is a program of this name to run.
pub fn has_program(name: &str) -> bool {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(ADMIN_PATH);
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_person_would_type_it() {
        let argv = Argv::new("/somewhere/tt").args(["exec", "shop/web", "--", "echo", "it's", ""]);
        assert_eq!(argv.to_string(), r"tt exec shop/web -- echo 'it'\''s' ''");
    }

    #[test]
    fn a_limit_stands_before_the_program() {
        let argv = Argv::new("tt").arg("verify").limit(Duration::from_secs(60));
        assert_eq!(
            argv.full(),
            ["timeout", "--foreground", "--kill-after=10", "60", "tt", "verify"]
        );
    }

    #[test]
    fn both_streams_are_watched_and_a_bad_end_is_told() {
        let mut seen = Vec::new();
        let argv = Argv::new("ls").args(["/dev/null", "/nowhere"]);
        let failure = argv.watch(|line| seen.push(line.to_owned())).unwrap_err();
        assert!(seen.iter().any(|line| line == "/dev/null"), "{seen:?}");
        assert!(seen.iter().any(|line| line.contains("/nowhere")), "{seen:?}");
        assert!(failure.to_string().contains("exit status: 2"), "{failure}");
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(has_program("ls"));
        assert!(!has_program("tt-no-such-program"));
    }
}
