//! `tt exec`: runs a program in a guest as if it ran here: its input, output, signals and exit code.

use super::error::{CliError, Exit};
use super::output::{print, print_error};
use super::target::{VmTarget, parse_env_name};
use super::terminal::{Caught, RawMode, Signals, read_stdin, window_size};
use super::{Context, exec_all};
use clap::Args;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tt_api::ClientError;
use tt_api::client::{StreamReceiver, StreamSender};
use tt_guest::message::{FailureCode, Tty};
use tt_guest::session::{FromGuest, Open, Program, ToGuest};

/// How long a signal may wait behind input that the guest does not take before the program is given up instead.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Arguments of `tt exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Send standard input to the program
    #[arg(short, long)]
    interactive: bool,
    /// Run the program on a terminal; with -i each key goes to it as it is
    #[arg(short, long)]
    tty: bool,
    /// Run it on every member of an Env at once, each line with its member's name before it; fails if one fails
    #[arg(long, conflicts_with_all = ["interactive", "tty"])]
    all: bool,
    /// Name or number of a user in the guest [default: root]
    #[arg(long)]
    user: Option<String>,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// A variable for the program's environment
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    variables: Vec<(String, String)>,
    /// Which Vm; with --all which Env
    #[arg(value_name = "ENV/VM")]
    target: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{} sets nothing; write NAME=VALUE", tt_model::check::quoted(text))),
    }
}

/// Runs a program in one guest or in all of an Env.
///
/// # Errors
/// If the daemon or the guest's agent refuses, or is lost.
pub async fn run(context: &Context, args: ExecArgs) -> Result<Exit, CliError> {
    let bad_target = |problem| CliError::Use {
        problem,
        remedy: "name a member as ENV/VM, or an Env with --all".into(),
    };
    let (rows, cols) = window_size();
    let tty = || Tty { rows, cols, term: crate::config::terminal_type() };
    let program = Program {
        argv: args.command,
        env: args.variables,
        cwd: args.cwd,
        user: args.user,
        tty: args.tty.then(tty),
    };
    if args.all {
        let env = parse_env_name(&args.target).map_err(bad_target)?;
        return exec_all::run(context, &env, program).await;
    }
    let target: VmTarget = args.target.parse().map_err(bad_target)?;
    let stream = context.client.open(&target.env, &target.vm, &Open::Exec(program)).await?;
    let mut signals = Signals::catch()?;
    // Without input nobody would hear Ctrl-C in raw mode: then it stays a signal, and is forwarded.
    let raw = if args.tty && args.interactive { RawMode::enter()? } else { None };
    let input = args.interactive.then(read_stdin);
    let (sender, receiver) = stream.split();
    let is_raw = raw.is_some();
    let feeder = tokio::spawn(async move { feed(sender, input, &mut signals, is_raw).await });
    let end = tokio::select! {
        end = pump(receiver) => end,
        given_up = feeder => Ok(match given_up {
            Ok(signal) => Exit::of_signal(signal),
            Err(_) => Exit::NO_EXEC,
        }),
    };
    drop(raw);
    end
}

/// Prints what comes until the program has ended.
async fn pump(mut receiver: StreamReceiver) -> Result<Exit, CliError> {
    while let Some(message) = receiver.receive().await? {
        match message {
            FromGuest::Started { .. } => {}
            FromGuest::Stdout(bytes) => block_in_place(|| print(&bytes))?,
            FromGuest::Stderr(bytes) => block_in_place(|| print_error(&bytes))?,
            FromGuest::Exited { code, signal } => return Ok(exit_of(code, signal)),
            FromGuest::Failed { code, why } => return Err(CliError::Guest { code, why }),
        }
    }
    let why = "the stream ended without an end".into();
    Err(ClientError::Protocol { action: "the stream".into(), what: why }.into())
}

/// How a program's end is passed on.
pub fn exit_of(code: Option<i32>, signal: Option<i32>) -> Exit {
    match (code, signal) {
        (_, Some(signal)) => Exit::of_signal(signal),
        // The kernel keeps the low byte of a code (exit(3)).
        (Some(code), None) => Exit((code & 0xff) as u8),
        (None, None) => Exit::NO_EXEC,
    }
}

/// How the program ends if the guest's program did not even start, or was lost: as env(1) does.
pub fn exit_of_error(error: &CliError) -> Exit {
    match error {
        CliError::Guest { code: FailureCode::NotFound, .. } => Exit::NOT_FOUND,
        CliError::Guest { code: FailureCode::Permission, .. } => Exit::NOT_EXECUTABLE,
        error if error.exit() == Exit::FAILED => Exit::NO_EXEC,
        error => error.exit(),
    }
}

/// Sends input, signals and sizes to the guest. Ends only when the program is to be given up, with the number of the
/// signal that demands it.
async fn feed(
    mut sender: StreamSender,
    input: Option<mpsc::Receiver<Vec<u8>>>,
    signals: &mut Signals,
    is_raw: bool,
) -> i32 {
    let mut input = match input {
        Some(input) => Some(input),
        None => {
            // If it is lost, the receiver tells.
            let _ = sender.send(ToGuest::Eof).await;
            None
        }
    };
    loop {
        let message = tokio::select! {
            caught = signals.next() => match caught {
                Caught::End(number) => return number,
                Caught::Forward(number) if is_raw => return number,
                Caught::Forward(number) => ToGuest::Signal(number),
                Caught::Resized => resized(),
            },
            chunk = next_chunk(&mut input) => match chunk {
                Some(bytes) => ToGuest::Data(bytes),
                None => {
                    input = None;
                    ToGuest::Eof
                }
            },
        };
        if let Some(number) = deliver(&mut sender, message, signals, is_raw).await {
            return number;
        }
    }
}

/// The next bytes of the input; never, where there is no input or no more of it.
async fn next_chunk(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Sends one message and, after it, the signals that came meanwhile. A signal that can not be sent because the guest
/// takes nothing is answered.
async fn deliver(
    sender: &mut StreamSender,
    message: ToGuest,
    signals: &mut Signals,
    is_raw: bool,
) -> Option<i32> {
    let mut message = message;
    loop {
        let (mut waiting, mut resize) = (None, false);
        let mut deadline = std::pin::pin!(tokio::time::sleep(Duration::MAX));
        {
            // A loss is told by the receiver.
            let mut sending = std::pin::pin!(sender.send(message));
            loop {
                tokio::select! {
                    _ = &mut sending => break,
                    () = &mut deadline, if waiting.is_some() => return waiting,
                    caught = signals.next() => match caught {
                        Caught::End(number) => return Some(number),
                        Caught::Forward(number) if is_raw => return Some(number),
                        Caught::Forward(number) if waiting.is_none() => {
                            waiting = Some(number);
                            deadline.set(tokio::time::sleep(SIGNAL_TIMEOUT));
                        }
                        Caught::Forward(number) => return Some(number),
                        Caught::Resized => resize = true,
                    },
                }
            }
        }
        message = match (waiting, resize) {
            (Some(number), _) => ToGuest::Signal(number),
            (None, true) => resized(),
            (None, false) => return None,
        };
    }
}

fn resized() -> ToGuest {
    let (rows, cols) = window_size();
    ToGuest::Resize { rows, cols }
}
