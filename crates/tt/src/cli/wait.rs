//! Waiting until an Env, or a member of it, is where it should be. It follows the daemon's events, survives the daemon's
//! replacement, and changes nothing: who stops waiting stops nothing else.

use super::Context;
use super::error::CliError;
use super::patience::Losses;
use super::progress::Progress;
use tt_api::ClientError;
use tt_api::client::{EnvEvent, EnvEvents};
use tt_api::views::{EnvView, VmView};
use tt_model::{ErrorCode, VmId};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Every member is where it should be, and a new Env is complete.
    Settled,
    /// One member is.
    MemberSettled(VmId),
    /// The Env's record is gone.
    Gone,
}

/// How the waiting ended.
#[derive(Clone, Debug)]
pub enum Seen {
    /// What was waited for is so.
    Settled(Box<EnvView>),
    /// The Env is gone; the last that was seen of it.
    Gone(Box<EnvView>),
}

/// Waits from the state `first` on, and shows how it goes.
///
/// # Errors
/// [`CliError::Interrupt`] on Ctrl-C, [`CliError::Settle`] if a member is in a trouble that does not pass by itself,
/// [`CliError::Ask`] if the daemon can not be asked.
pub async fn wait(context: &Context, first: EnvView, until: Until) -> Result<Seen, CliError> {
    let look = format!("tt env show {}", first.env.name);
    let interrupt = async { tokio::signal::ctrl_c().await };
    tokio::select! {
        seen = follow(context, first, until) => seen,
        interrupted = interrupt => match interrupted {
            Ok(()) => Err(CliError::Interrupt { look }),
            Err(source) => Err(CliError::System { action: "watch for Ctrl-C", source }),
        },
    }
}

async fn follow(context: &Context, first: EnvView, until: Until) -> Result<Seen, CliError> {
    let mut progress = Progress::new(context.output);
    progress.update(&first);
    let mut last = Box::new(first);
    let mut losses = Losses::default();
    losses.contact();
    loop {
        if let Some(verdict) = verdict(until, &last) {
            return verdict.map(|()| Seen::Settled(last));
        }
        let error = match context.client.events(&last.env.name).await {
            Ok(events) => {
                losses.contact();
                match drain(events, until, &mut last, &mut progress).await? {
                    End::Gone => return Ok(Seen::Gone(last)),
                    End::Settled => continue,
                    End::Lost(error) => error,
                }
            }
            Err(ClientError::Problem(problem)) if problem.code == ErrorCode::NotFound => {
                return Ok(Seen::Gone(last));
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            losses.bear(context.output, error).await?;
        }
    }
}

/// Why no more is read from one connection.
enum End {
    /// The Env is gone.
    Gone,
    /// The state that was waited for, or that never comes, has been seen.
    Settled,
    /// The connection ended; without an error where the daemon closed it in order.
    Lost(Option<ClientError>),
}

async fn drain(
    mut events: EnvEvents,
    until: Until,
    last: &mut Box<EnvView>,
    progress: &mut Progress,
) -> Result<End, CliError> {
    loop {
        match events.next().await {
            Ok(Some(EnvEvent::Env(view))) if view.env.id == last.env.id => {
                progress.update(&view);
                *last = view;
                if verdict(until, last).is_some() {
                    return Ok(End::Settled);
                }
            }
            // Another Env took the name of the one that is gone.
            Ok(Some(EnvEvent::Env(_) | EnvEvent::Gone)) => return Ok(End::Gone),
            Ok(None) => return Ok(End::Lost(None)),
            Err(error @ ClientError::Protocol { .. }) => return Err(error.into()),
            Err(error) => return Ok(End::Lost(Some(error))),
        }
    }
}

/// Whether `view` ends the waiting, and how.
fn verdict(until: Until, view: &EnvView) -> Option<Result<(), CliError>> {
    let env = &view.env;
    match until {
        Until::Gone => None,
        _ if env.is_ending => None,
        // That a new Env is complete is recorded after its last member has settled: until then it could be undone.
        Until::Settled if view.is_settled() && env.is_created => Some(Ok(())),
        Until::Settled => view.vms.iter().find_map(|vm| hopeless(env.is_created, vm)),
        Until::MemberSettled(id) => match view.vms.iter().find(|vm| vm.vm.id == id) {
            Some(vm) if vm.is_settled => Some(Ok(())),
            Some(vm) => hopeless(env.is_created, vm),
            None => Some(Err(CliError::Follow { what: "the vm".into() })),
        },
    }
}

/// The trouble of a member that does not pass by itself. While an Env is created the daemon undoes it because of one.
fn hopeless(is_created: bool, view: &VmView) -> Option<Result<(), CliError>> {
    let trouble = view.trouble().filter(|trouble| is_created && !trouble.retry)?.clone();
    Some(Err(CliError::Settle { vm: view.vm.full_name(), trouble }))
}
