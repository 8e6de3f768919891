//! Routes that add, change and remove members of an Env.

use super::create::add_vms;
use super::edit::{Which, committed, edit, members, set_outgoing};
use super::extract::{EnvName, JsonBody, OptionalKey, VmName};
use super::ground::free_ports;
use super::problem::Refusals;
use super::vms::of;
use super::work::{Answer, attempt, check_ports, env_row, env_view, host, no_member, usage_row};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{EnvView, VmList, VmView};
use axum::extract::State;
use axum::http::StatusCode;
use tt_model::check::check_update;
use tt_model::plan::{UpdateWorld, plan_rm, plan_update};
use tt_model::{Env, Vm, VmSpec, VmUpdate};
use tt_store::tables::Change;

/// Adds a member, or several alike, to an Env that lives; its events tell when they are ready.
///
/// The same request with the same key may be repeated: it answers the members that it added. Without a
/// key each request adds more.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms", tag = "vms", operation_id = "add_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("Idempotency-Key" = Option<String>, Header,
         description = "1 to 64 letters, digits and hyphens, new for each new request")
    ),
    request_body = VmSpec,
    responses(
        (status = 202, description = "They are planned: the new members", body = VmList),
        (status = 200, description = "The same request has added them before", body = VmList),
        Refusals
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    EnvName(name): EnvName,
    OptionalKey(key): OptionalKey,
    JsonBody(spec): JsonBody<VmSpec>,
) -> Result<Answer, ApiError> {
    let _turn = api.0.creating.lock().await;
    api.call(move |config| {
        let (status, list) = add_vms(config, &name, key.as_deref(), &spec)?;
        Answer::new(status, &list)
    })
    .await
}

/// Changes a member. Its name, ports, policies and the growth of its disk reach a running guest;
/// CPUs and memory change once it is shut down and started, and `needs_restart` says so.
#[utoipa::path(
    patch, path = "/v1/envs/{env}/vms/{vm}", tag = "vms", operation_id = "update_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    request_body = VmUpdate,
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn update(
    State(api): State<Api>,
    name: VmName,
    JsonBody(update): JsonBody<VmUpdate>,
) -> Result<Answer, ApiError> {
    let _turn = api.0.creating.lock().await;
    api.call(move |config| {
        check_update(&update)?;
        let env = attempt(|| try_update(config, &name, &update))?;
        let now_called = VmName { vm: update.name.unwrap_or(name.vm), env: name.env };
        Answer::ok(&of(env_view(&config.tables, env)?, &now_called)?)
    })
    .await
}

/// Sends a member on its way out. Again while it goes changes nothing.
#[utoipa::path(
    delete, path = "/v1/envs/{env}/vms/{vm}", tag = "vms", operation_id = "remove_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 202, description = "It is going", body = VmView), Refusals)
)]
pub(super) async fn remove(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = edit(config, &name.env, Which::All, |env, vms, _| {
            if !vms.iter().any(|vm| vm.name == name.vm) {
                return Err(no_member(env, &name.vm));
            }
            plan_rm(env, vms, &name.vm)
        })?;
        Answer::new(StatusCode::ACCEPTED, &of(env, &name)?)
    })
    .await
}

/// Lets no member open connections to the outside, later ones neither.
#[utoipa::path(
    post, path = "/v1/envs/{env}/deny-outgoing", tag = "envs", operation_id = "deny_outgoing_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn deny_all(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| Answer::ok(&set_outgoing(config, &name, None, true)?)).await
}

/// Lets all members open connections to the outside, later ones too.
#[utoipa::path(
    post, path = "/v1/envs/{env}/allow-outgoing", tag = "envs",
    operation_id = "allow_outgoing_env",
    params(("env" = String, Path, description = "Name of the Env")),
    responses((status = 200, body = EnvView), Refusals)
)]
pub(super) async fn allow_all(
    State(api): State<Api>,
    EnvName(name): EnvName,
) -> Result<Answer, ApiError> {
    api.call(move |config| Answer::ok(&set_outgoing(config, &name, None, false)?)).await
}

/// Lets one member open no connections to the outside.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/deny-outgoing", tag = "vms",
    operation_id = "deny_outgoing_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn deny_one(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    outgoing_of_one(api, name, true).await
}

/// Lets one member open connections to the outside.
#[utoipa::path(
    post, path = "/v1/envs/{env}/vms/{vm}/allow-outgoing", tag = "vms",
    operation_id = "allow_outgoing_vm",
    params(
        ("env" = String, Path, description = "Name of the Env"),
        ("vm" = String, Path, description = "Name of the Vm")
    ),
    responses((status = 200, body = VmView), Refusals)
)]
pub(super) async fn allow_one(State(api): State<Api>, name: VmName) -> Result<Answer, ApiError> {
    outgoing_of_one(api, name, false).await
}

async fn outgoing_of_one(api: Api, name: VmName, deny: bool) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let env = set_outgoing(config, &name.env, Some(&name.vm), deny)?;
        Answer::ok(&of(env, &name)?)
    })
    .await
}

fn try_update(
    config: &ApiConfig,
    name: &VmName,
    update: &VmUpdate,
) -> Result<Option<Env>, ApiError> {
    let tables = &config.tables;
    let mut env = env_row(tables, &name.env)?;
    let (rows, _) = members(tables, &env.value, Which::All)?;
    let found = rows.iter().enumerate().find(|(_, row)| row.value.name == name.vm);
    let (at, row) = found.ok_or_else(|| no_member(&env.value, &name.vm))?;
    let host = host(config)?;
    let mut usage = usage_row(config)?;
    let ports = update.ports.as_ref().map_or(0, Vec::len);
    let free_ports = free_ports(config, &host, usage.value.port_cursor, ports)?;
    let world = UpdateWorld {
        now: config.access.now_unix_secs(),
        policy: &config.policy,
        host: &host,
        free_ports: &free_ports,
    };
    let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
    plan_update(&mut env.value, &mut vms, at, update, &mut usage.value, &world)?;
    check_ports(&env.value, vms.iter())?;
    // The Env is written too: its names are told to its network when it changes.
    let change = Change::new().env(&env)?.usage(host.id, &usage)?.replace_vm(row, &vms[at])?;
    committed(tables, &change, env.value)
}
