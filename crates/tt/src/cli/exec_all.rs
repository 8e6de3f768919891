//! `tt exec --all`: one program on every member of an Env at once.

use super::Context;
use super::error::{CliError, Exit};
use super::exec::exit_of;
use super::output::{Output, print, print_error};
use super::terminal::{Caught, Signals};
use super::text::one_line;
use tokio::sync::broadcast;
use tokio::task::{JoinSet, block_in_place};
use tt_api::Client;
use tt_guest::session::{FromGuest, Open, Program, ToGuest};

/// Longest line that is held back until its end; a longer one is printed in pieces.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Signals that a member may be behind.
const SIGNAL_QUEUE: usize = 8;

/// Runs `program` on every member. Fails if it fails on one.
///
/// # Errors
/// If the Env can not be looked at, or the output is not read.
pub async fn run(context: &Context, env: &str, program: Program) -> Result<Exit, CliError> {
    let view = context.client.env(env).await?;
    let mut names: Vec<String> = view.vms.into_iter().map(|vm| vm.vm.name).collect();
    names.sort();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let (signal, _) = broadcast::channel(SIGNAL_QUEUE);
    let mut members = JoinSet::new();
    for name in &names {
        let member = Member {
            client: context.client.clone(),
            env: env.to_owned(),
            name: name.clone(),
            prefix: format!("{name:width$} | "),
        };
        members.spawn(member.run(program.clone(), signal.subscribe()));
    }
    let mut signals = Signals::catch()?;
    let mut is_interrupted = false;
    let mut failed = 0;
    loop {
        tokio::select! {
            ended = members.join_next() => match ended {
                None => break,
                Some(Ok((name, outcome))) => failed += usize::from(!outcome_is_good(context.output, &name, outcome)?),
                Some(Err(_)) => failed += 1,
            },
            caught = signals.next() => match caught {
                Caught::Resized => {}
                Caught::Forward(number) if !is_interrupted => {
                    is_interrupted = true;
                    // Members that have ended do not listen.
                    let _ = signal.send(number);
                }
                // Dropping the streams cancels what runs on them.
                Caught::Forward(number) | Caught::End(number) => return Ok(Exit::of_signal(number)),
            },
        }
    }
    Ok(if failed == 0 { Exit::DONE } else { Exit::FAILED })
}

/// Says how a member failed, if it did.
fn outcome_is_good(
    output: Output,
    name: &str,
    outcome: Result<Exit, CliError>,
) -> Result<bool, CliError> {
    match outcome {
        Ok(Exit::DONE) => return Ok(true),
        Ok(Exit(code)) => output.complain(&format!("{name}: exit code {code}")),
        Err(error @ CliError::Write { .. }) => return Err(error),
        Err(error) => output.complain(&format!("{name}: {}", one_line(&error.to_string()))),
    }
    Ok(false)
}

struct Member {
    client: Client,
    env: String,
    name: String,
    prefix: String,
}

impl Member {
    async fn run(
        self,
        program: Program,
        signals: broadcast::Receiver<i32>,
    ) -> (String, Result<Exit, CliError>) {
        let outcome = self.exec(program, signals).await;
        (self.name, outcome)
    }

    async fn exec(
        &self,
        program: Program,
        mut signals: broadcast::Receiver<i32>,
    ) -> Result<Exit, CliError> {
        let mut stream = self.client.open(&self.env, &self.name, &Open::Exec(program)).await?;
        // A program may end before it hears anything; then, and after a loss, the receiver tells.
        let _ = stream.send(ToGuest::Eof).await;
        let mut stdout = Lines::new(&self.prefix, print);
        let mut stderr = Lines::new(&self.prefix, print_error);
        let end = loop {
            tokio::select! {
                message = stream.receive() => match message? {
                    Some(FromGuest::Stdout(bytes)) => stdout.push(&bytes)?,
                    Some(FromGuest::Stderr(bytes)) => stderr.push(&bytes)?,
                    Some(FromGuest::Exited { code, signal }) => break exit_of(code, signal),
                    Some(FromGuest::Failed { code, why }) => return Err(CliError::Guest { code, why }),
                    Some(FromGuest::Started { .. }) => {}
                    None => break Exit::NO_EXEC,
                },
                Ok(number) = signals.recv() => drop(stream.send(ToGuest::Signal(number)).await),
            }
        };
        stdout.end()?;
        stderr.end()?;
        Ok(end)
    }
}

/// Bytes that become whole lines with a prefix, each written at once so that members do not mix within a line.
struct Lines<'a, W> {
    prefix: &'a str,
    write: W,
    pending: Vec<u8>,
}

impl<'a, W: Fn(&[u8]) -> Result<(), CliError>> Lines<'a, W> {
    fn new(prefix: &'a str, write: W) -> Self {
        Self { prefix, write, pending: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= LINE_BYTES_MAX {
                self.end()?;
            }
        }
        Ok(())
    }

    /// Writes what has come of a line without its end.
    fn end(&mut self) -> Result<(), CliError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut line = self.prefix.as_bytes().to_vec();
        line.append(&mut self.pending);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        block_in_place(|| (self.write)(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn lines_get_their_prefix_and_pieces_are_joined() {
        let written = RefCell::new(Vec::new());
        let mut lines = Lines::new("web | ", |line: &[u8]| {
            written.borrow_mut().push(String::from_utf8(line.to_vec()).unwrap());
            Ok(())
        });
        for piece in ["a\nb", "", "c\n\nd", "e"] {
            lines.push(piece.as_bytes()).unwrap();
        }
        lines.end().unwrap();
        lines.end().unwrap();
        assert_eq!(*written.borrow(), ["web | a\n", "web | bc\n", "web | \n", "web | de\n"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_endless_line_is_printed_in_bounded_pieces() {
        let longest = RefCell::new(0);
        let mut lines = Lines::new("web | ", |line: &[u8]| {
            let length = line.len().max(*longest.borrow());
            *longest.borrow_mut() = length;
            Ok(())
        });
        for _ in 0..100 {
            lines.push(&[b'x'; 4096]).unwrap();
        }
        assert!((LINE_BYTES_MAX..LINE_BYTES_MAX + 8192).contains(&*longest.borrow()));
    }
}
