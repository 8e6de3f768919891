//! What the commands print, and the times of their steps. The only file that writes to the terminal.

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

/// Prints one line. A terminal that went away changes nothing of what is to be done and cleaned up.
pub fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints what comes next.
pub fn title(text: impl Display) {
    line(format_args!("\n== {text}"));
}

/// Prints a command line as a shell session shows it.
pub fn prompt(command: impl Display) {
    line(format_args!("\n$ {command}"));
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Good,
    /// Not as it should; with the reason.
    Bad(String),
    /// It was not run; with the reason.
    Skipped(String),
}

/// What was done, how long it took, and how it ended.
#[derive(Debug, Default)]
pub struct Steps(Vec<(String, Duration, End)>);

impl Steps {
    /// Runs a step under a title, and remembers its end. Its failure is printed at once.
    pub fn run<T>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> crate::failure::Outcome<T>,
    ) -> Option<T> {
        title(name);
        let start = Instant::now();
        let outcome = step();
        let took = start.elapsed();
        match outcome {
            Ok(value) => {
                self.0.push((name.into(), took, End::Good));
                Some(value)
            }
            Err(failure) => {
                line(format_args!("FAILED {name}: {failure}"));
                self.0.push((name.into(), took, End::Bad(failure.to_string())));
                None
            }
        }
    }

    /// Remembers that a step was not run.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.0.push((name.into(), Duration::ZERO, End::Skipped(reason.into())));
    }

    /// Whether no step failed.
    pub fn are_good(&self) -> bool {
        !self.0.iter().any(|(_, _, end)| matches!(end, End::Bad(_)))
    }

    /// A line for each step.
    pub fn table(&self) -> String {
        let width = self.0.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let row = |(name, took, end): &(String, Duration, End)| {
            let secs = took.as_secs_f64();
            match end {
                End::Good => format!("{name:width$}  {secs:7.1} s  done\n"),
                End::Bad(why) => {
                    // The rest of it was printed when it happened.
                    let why = why.lines().next().unwrap_or_default();
                    format!("{name:width$}  {secs:7.1} s  FAILED: {why}\n")
                }
                End::Skipped(why) => format!("{name:width$}          -  skipped: {why}\n"),
            }
        };
        self.0.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    #[test]
    fn steps_are_told_with_their_ends() {
        let mut steps = Steps::default();
        assert_eq!(steps.run("one", || Ok(1)), Some(1));
        steps.skip("second", "no tool");
        assert!(steps.are_good());
        assert_eq!(steps.run("three", || Err::<(), _>(Failure::new("broken"))), None);
        assert!(!steps.are_good());
        assert_eq!(
            steps.table(),
            "one         0.0 s  done\nsecond          -  skipped: no tool\n\
             three       0.0 s  FAILED: broken\n"
        );
    }
}
