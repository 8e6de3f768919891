//! Changing an Env and its members: reads them, lets a plan change the values, commits once. What
//! is to change is decided by the plan.

use super::ApiConfig;
use super::work::{attempt, env_row, env_view, host, no_member};
use crate::error::ApiError;
use crate::views::{EnvView, StopRequest};
use tt_model::plan::{plan_outgoing, plan_start, plan_stop};
use tt_model::{Env, ErrorCode, Goal, Refusal, Vm};
use tt_store::tables::{Change, Committed, Row, Tables};

/// Which members a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// All of them, those on their way out too.
    All,
    /// Those that are not on their way out: one that goes must not be called back.
    Staying,
    /// The one of that name.
    One(&'a str),
}

impl<'a> Which<'a> {
    /// The one of that name, or without a name all that stay.
    pub(super) fn of(name: Option<&'a str>) -> Self {
        name.map_or(Self::Staying, Self::One)
    }
}

/// Changes an Env and its members as `plan` says, in one commit, and answers it as it is then.
///
/// `plan` is also told whether it got all members that stay.
pub(super) fn edit<E: Into<ApiError>>(
    config: &ApiConfig,
    name: &str,
    which: Which<'_>,
    plan: impl Fn(&mut Env, &mut [Vm], bool) -> Result<(), E>,
) -> Result<EnvView, ApiError> {
    let tables = &config.tables;
    let env = attempt(|| {
        let mut env = env_row(tables, name)?;
        let (rows, is_whole) = members(tables, &env.value, which)?;
        let before = env.value.clone();
        let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
        plan(&mut env.value, &mut vms, is_whole).map_err(Into::into)?;
        let changed = changed(rows, vms);
        if changed.is_empty() && env.value == before {
            return Ok(Some(env.value));
        }
        // The Env is written in any case: two changes of different members may depend on each other.
        let change = Change::new().env(&env)?.vms(&changed)?;
        committed(tables, &change, env.value)
    })?;
    env_view(tables, env)
}

/// The members that a change is about, and whether they are all that stay.
pub(super) fn members(
    tables: &Tables,
    env: &Env,
    which: Which<'_>,
) -> Result<(Vec<Row<Vm>>, bool), ApiError> {
    let mut rows = tables.vms_of(env)?;
    let stays = |row: &Row<Vm>| row.value.goal != Goal::Gone;
    let staying = rows.iter().filter(|row| stays(row)).count();
    match which {
        Which::All => {}
        Which::Staying => rows.retain(stays),
        Which::One(name) => {
            rows.retain(|row| row.value.name == name);
            match rows.first() {
                None => return Err(no_member(env, name).into()),
                // That an Env goes is said by the plan.
                Some(row) if !stays(row) && !env.is_ending => {
                    let (what, problem) = (row.value.full_name(), "it is being removed");
                    return Err(
                        Refusal::new(ErrorCode::State, what, problem, "leave it alone").into()
                    );
                }
                Some(_) => {}
            }
        }
    }
    let is_whole = rows.len() >= staying;
    Ok((rows, is_whole))
}

/// Commits; `done`, unless somebody else came between.
pub(super) fn committed<T>(
    tables: &Tables,
    change: &Change,
    done: T,
) -> Result<Option<T>, ApiError> {
    Ok(match tables.commit(change)? {
        Committed::Done(_) => Some(done),
        Committed::Conflict => None,
    })
}

/// Stops all members, or the one named `only`.
pub(super) fn stop_members(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
    request: StopRequest,
) -> Result<EnvView, ApiError> {
    let host = host(config)?;
    edit(config, name, Which::of(only), |env, vms, is_whole| {
        let now = config.access.now_unix_secs();
        plan_stop(env, vms, is_whole, request.mode, &host, now, &config.policy)
    })
}

/// Starts all members, or the one named `only`.
pub(super) fn start_members(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
) -> Result<EnvView, ApiError> {
    edit(config, name, Which::of(only), |env, vms, _| {
        plan_start(env, vms, config.access.now_unix_secs(), &config.policy)
    })
}

/// Lets all members, also later ones, or the one named `only` open connections to the outside, or
/// denies it.
pub(super) fn set_outgoing(
    config: &ApiConfig,
    name: &str,
    only: Option<&str>,
    deny: bool,
) -> Result<EnvView, ApiError> {
    edit(config, name, Which::of(only), |env, vms, _| plan_outgoing(env, vms, only.is_none(), deny))
}

/// The rows whose Vm is another one now.
fn changed(rows: Vec<Row<Vm>>, vms: Vec<Vm>) -> Vec<Row<Vm>> {
    let pairs = rows.into_iter().zip(vms).filter(|(row, vm)| row.value != *vm);
    pairs.map(|(row, value)| Row { value, revision: row.revision }).collect()
}
