//! `tt env`: Envs as a whole.

use super::env_create::{self, CreateArgs};
use super::error::{CliError, Exit};
use super::output::{Output, print};
use super::patience::{patiently, through_losses};
use super::progress::Changes;
use super::target::parse_env_name;
use super::text::{format_left, parse_life_time};
use super::wait::{Seen, Until, wait};
use super::{Context, lines, now_unix_secs};
use clap::{Subcommand, ValueEnum};
use std::collections::BTreeSet;
use tt_api::client::EnvEvent;
use tt_api::views::EnvView;
use tt_model::StopMode;

/// `tt env ..`.
#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// Create an Env and wait until all of it is ready; all or nothing
    Create(Box<CreateArgs>),
    /// List all Envs
    Ls,
    /// Show an Env and its members
    Show {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
    },
    /// Bring all members to rest; disks, addresses and ports are kept
    Stop {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
        /// How [default: suspend where the engine can, else shutdown]
        #[arg(long, value_enum)]
        mode: Option<Mode>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Let all members run, and wait until they are ready
    Start {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Move the end of an Env's lifetime away
    Extend {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
        /// By how much, e.g. 2h
        #[arg(value_name = "DURATION", value_parser = parse_life_time)]
        life_time: u64,
    },
    /// Destroy Envs with all that belongs to them, and wait until nothing is left
    Destroy {
        /// Which Envs
        #[arg(required = true, value_name = "ENV", value_parser = parse_env_name)]
        envs: Vec<String>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Let no member open connections to the outside, later ones neither
    DenyOutgoing {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Let all members open connections to the outside, later ones too
    AllowOutgoing {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Print each change of an Env until it is gone; with --json one state a line
    Events {
        /// Which Env
        #[arg(value_parser = parse_env_name)]
        env: String,
    },
}

/// How running machines are brought to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Write memory to disk and free the host's memory; it goes on where it was
    Suspend,
    /// Let it stand still; memory stays in the host's memory
    Pause,
    /// Ask the guest to shut down, and kill it when its grace time is over
    Shutdown,
    /// Kill it at once, as when the power fails
    Kill,
}

impl From<Mode> for StopMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Shutdown => Self::Shutdown,
            Mode::Pause => Self::Pause,
            Mode::Kill => Self::Kill,
            Mode::Suspend => Self::Suspend,
        }
    }
}

/// Runs `tt env ..`.
///
/// # Errors
/// What the daemon refused, or why it could not be asked.
pub async fn run(context: &Context, command: EnvCommand) -> Result<Exit, CliError> {
    let Context { client, output } = context;
    match command {
        EnvCommand::Create(args) => env_create::run(context, *args).await?,
        EnvCommand::Ls => {
            let list = client.envs().await?;
            output.result(&list, || lines::env_list(&list.envs, now_unix_secs()))?;
        }
        EnvCommand::Show { env } => {
            let view = client.env(&env).await?;
            output.result(&view, || lines::env(&view, now_unix_secs()))?;
        }
        EnvCommand::Stop { env, mode, no_wait } => {
            let mode = mode.map(StopMode::from);
            let view = patiently(*output, async || client.stop_env(&env, mode).await).await?;
            settle(context, view, no_wait).await?;
        }
        EnvCommand::Start { env, no_wait } => {
            let view = patiently(*output, async || client.start_env(&env).await).await?;
            settle(context, view, no_wait).await?;
        }
        EnvCommand::Extend { env, life_time } => {
            // Not sent twice: a repetition would move the end twice.
            let view =
                patiently(*output, async || client.extend_env(&env, life_time).await).await?;
            let left = format_left(view.env.end_timestamp, now_unix_secs());
            output.result(&view, || format!("{env}  {left}\n"))?;
        }
        EnvCommand::DenyOutgoing { env, no_wait } => outgoing(context, &env, true, no_wait).await?,
        EnvCommand::AllowOutgoing { env, no_wait } => {
            outgoing(context, &env, false, no_wait).await?;
        }
        EnvCommand::Destroy { envs, no_wait } => destroy(context, envs, no_wait).await?,
        EnvCommand::Events { env } => events(context, &env).await?,
    }
    Ok(Exit::DONE)
}

/// Waits until every member of `view` is where it should be, and prints them.
async fn settle(context: &Context, view: EnvView, no_wait: bool) -> Result<(), CliError> {
    let view = match no_wait {
        true => Box::new(view),
        false => match wait(context, view, Until::Settled).await? {
            Seen::Settled(view) => view,
            Seen::Gone(last) => {
                return Err(CliError::Follow { what: format!("env {}", last.env.name) });
            }
        },
    };
    context.output.result(&view, || lines::members(&view))
}

/// Denies or allows, and waits until it is so for every member.
async fn outgoing(context: &Context, env: &str, deny: bool, no_wait: bool) -> Result<(), CliError> {
    let Context { client, output } = context;
    let ask = async || client.set_env_outgoing(env, deny).await;
    let view = through_losses(*output, ask).await?;
    settle(context, view, no_wait).await
}

/// Asks for the end of all Envs first, so that they go side by side.
async fn destroy(context: &Context, names: Vec<String>, no_wait: bool) -> Result<(), CliError> {
    let Context { client, output } = context;
    let names: BTreeSet<String> = names.into_iter().collect();
    let all = names.len();
    let mut failures = Failures { output: *output, all, errors: Vec::new() };
    let mut going = Vec::new();
    for name in &names {
        let asked = through_losses(*output, async || client.destroy_env(name).await).await;
        failures.sort(asked, &mut going);
    }
    let mut gone = Vec::new();
    if !no_wait {
        for view in going.drain(..) {
            let name = view.env.name.clone();
            let waited = wait(context, view, Until::Gone).await;
            if let Err(error @ CliError::Interrupt { .. }) = waited {
                return Err(error);
            }
            failures.sort(waited.map(|_| name), &mut gone);
        }
    }
    let result = serde_json::json!({ "destroyed": gone, "destroying": going });
    output.result(&result, || {
        let going = going.iter().map(|view| format!("{} is being destroyed\n", view.env.name));
        gone.iter().map(|name| format!("{name} destroyed\n")).chain(going).collect()
    })?;
    failures.end()
}

/// What went wrong with some of several things.
struct Failures {
    output: Output,
    all: usize,
    errors: Vec<CliError>,
}

impl Failures {
    fn sort<T>(&mut self, outcome: Result<T, CliError>, good: &mut Vec<T>) {
        match outcome {
            Ok(value) => good.push(value),
            Err(error) => self.errors.push(error),
        }
    }

    /// The only error as it is; of several all but a summary are said here.
    fn end(mut self) -> Result<(), CliError> {
        match (self.errors.len(), self.errors.pop()) {
            (_, None) => Ok(()),
            (1, Some(error)) => Err(error),
            (failed, Some(last)) => {
                self.errors.iter().chain([&last]).for_each(|error| error.report(self.output));
                Err(CliError::Some { failed, all: self.all })
            }
        }
    }
}

async fn events(context: &Context, env: &str) -> Result<(), CliError> {
    let mut changes = Changes::default();
    let mut losses = super::patience::Losses::default();
    loop {
        let mut events = match context.client.events(env).await {
            Ok(events) => events,
            Err(error) => {
                losses.bear(context.output, error).await?;
                continue;
            }
        };
        losses.contact();
        loop {
            match events.next().await {
                Ok(Some(EnvEvent::Env(view))) => {
                    let lines = || {
                        changes.since_last(&view).iter().map(|line| format!("{line}\n")).collect()
                    };
                    context.output.result(&view, lines)?;
                }
                Ok(Some(EnvEvent::Gone)) if context.output.json => return Ok(()),
                Ok(Some(EnvEvent::Gone)) => return print(format!("{env} gone\n").as_bytes()),
                Ok(None) => break,
                Err(error) => {
                    losses.bear(context.output, error).await?;
                    break;
                }
            }
        }
    }
}
