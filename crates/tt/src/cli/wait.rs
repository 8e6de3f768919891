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
pub enum Until<'a> {
    /// Every member is where it should be, and a new Env is complete.
    Settled,
    /// These members are.
    Members(&'a [VmId]),
    /// None of these members waits for a snapshot of that name any more.
    Taken(&'a [VmId], &'a str),
    /// That member's record is gone.
    MemberGone(VmId),
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
pub async fn wait(context: &Context, first: EnvView, until: Until<'_>) -> Result<Seen, CliError> {
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

async fn follow(context: &Context, first: EnvView, until: Until<'_>) -> Result<Seen, CliError> {
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
    until: Until<'_>,
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
fn verdict(until: Until<'_>, view: &EnvView) -> Option<Result<(), CliError>> {
    let env = &view.env;
    match until {
        Until::Gone => None,
        _ if env.is_ending => None,
        // That a new Env is complete is recorded after its last member has settled: until then it could be undone.
        Until::Settled if view.is_settled() && env.is_created => Some(Ok(())),
        Until::Settled => view.vms.iter().find_map(|vm| hopeless(env.is_created, vm)),
        Until::Members(ids) => {
            let members = ids.iter().map(|id| view.vms.iter().find(|vm| vm.vm.id == *id));
            let Some(members) = members.collect::<Option<Vec<_>>>() else {
                return Some(Err(CliError::Follow { what: "the vm".into() }));
            };
            if members.iter().all(|vm| vm.is_settled) {
                return Some(Ok(()));
            }
            members.into_iter().find_map(|vm| hopeless(env.is_created, vm))
        }
        Until::Taken(ids, name) => {
            let mut members = view.vms.iter().filter(|vm| ids.contains(&vm.vm.id));
            let waits = |vm: &VmView| vm.vm.wanted_snapshots().any(|wanted| wanted.name == name);
            (!members.any(waits)).then_some(Ok(()))
        }
        Until::MemberGone(id) => match view.vms.iter().find(|vm| vm.vm.id == id) {
            Some(vm) => hopeless(env.is_created, vm),
            None => Some(Ok(())),
        },
    }
}

/// The trouble of a member that does not pass by itself. While an Env is created the daemon undoes it because of one.
fn hopeless(is_created: bool, view: &VmView) -> Option<Result<(), CliError>> {
    let trouble = view.trouble().filter(|trouble| is_created && !trouble.retry)?.clone();
    Some(Err(CliError::Settle { vm: view.vm.full_name(), trouble }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{Env, Phase, Snapshot, StorageKind, Vm, VmStatus, sample};

    fn view(vms: Vec<VmView>) -> EnvView {
        let env: Env = serde_json::from_value(serde_json::json!({
            "id": 1, "name": "shop", "start_timestamp": 1, "end_timestamp": 2, "vm_set": [],
            "state": {"is_stopped": false, "deny_outgoing": false, "last_mgmt_timestamp": 0},
            "at_end": "destroy", "request_key": "k", "is_created": true, "is_ending": false
        }))
        .unwrap();
        EnvView::new(env, vms)
    }

    fn vm(id: u64, phase: Phase, wanted: &[&str]) -> VmView {
        let snapshots = wanted.iter().map(|name| {
            ((*name).to_owned(), Snapshot::new((*name).to_owned(), "meta/1/1.json".into()))
        });
        let vm =
            Vm { snapshots: snapshots.collect(), ..sample::vm(id, "qemu", StorageKind::Qcow2) };
        let status = VmStatus { phase, generation: 1, since_ms: 0, ready_ms: None, trouble: None };
        VmView::new(vm, Some(status))
    }

    fn ends(until: Until<'_>, view: &EnvView) -> bool {
        verdict(until, view).is_some_and(|verdict| verdict.is_ok())
    }

    #[test]
    fn each_wait_looks_at_its_own_members() {
        let (one, two, three) = (VmId(1), VmId(2), VmId(3));
        let view = view(vec![vm(1, Phase::Ready, &[]), vm(2, Phase::Guest, &["s"])]);
        assert!(!ends(Until::Settled, &view));
        assert!(ends(Until::Members(&[one]), &view) && !ends(Until::Members(&[one, two]), &view));
        assert!(verdict(Until::Members(&[three]), &view).is_some_and(|verdict| verdict.is_err()));
        assert!(ends(Until::Taken(&[one], "s"), &view) && ends(Until::Taken(&[two], "t"), &view));
        assert!(!ends(Until::Taken(&[one, two], "s"), &view));
        assert!(ends(Until::MemberGone(three), &view) && !ends(Until::MemberGone(one), &view));
    }
}
