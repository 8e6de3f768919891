//! Creating an Env: reads what the plan depends on, plans, commits. It makes nothing itself.

use super::ApiConfig;
use super::work::{attempt, env_view, host};
use crate::error::ApiError;
use crate::views::{EnvView, VmView};
use axum::http::StatusCode;
use std::collections::{BTreeMap, BTreeSet};
use tt_model::check::{check_env, check_name, check_request_key, quoted};
use tt_model::plan::{World, needs, plan_env};
use tt_model::{EnvSpec, ErrorCode, Host, Protocol, Refusal};
use tt_store::tables::{Change, Committed, Row, TemplateRecord};

/// Creates the Env, or finds the one that the same request created before.
pub(super) fn create_env(
    config: &ApiConfig,
    name: &str,
    key: &str,
    spec: &EnvSpec,
) -> Result<(StatusCode, EnvView), ApiError> {
    check_name("env", name)?;
    check_request_key(key)?;
    check_env(spec)?;
    attempt(|| try_create(config, name, key, spec))
}

fn try_create(
    config: &ApiConfig,
    name: &str,
    key: &str,
    spec: &EnvSpec,
) -> Result<Option<(StatusCode, EnvView)>, ApiError> {
    let tables = &config.tables;
    if let Some(row) = tables.env_by_name(name)? {
        if row.value.request_key == key {
            return Ok(Some((StatusCode::OK, env_view(tables, row.value)?)));
        }
        return Err(Refusal::new(
            ErrorCode::Exists,
            format!("env {}", quoted(name)),
            "there is one of this name",
            "choose another name, or destroy that one first",
        )
        .into());
    }
    let host = host(config)?;
    let needs = needs(spec);
    let usage = tables.usage(host.id)?;
    let next_id = tables.next_id()?;
    let used = usage.clone().map(|row| row.value).unwrap_or_default();
    let records = template_rows(config, spec)?;
    let templates: BTreeMap<_, _> = records
        .iter()
        .filter_map(|row| Some((row.value.name.clone(), row.value.template.clone()?)))
        .collect();
    let free_addresses = tables.free_addresses(&host, used.addr_cursor, needs.addresses)?;
    let world = World {
        now: config.access.now_unix_secs(),
        policy: &config.policy,
        host: &host,
        usage: &used,
        next_id: next_id.as_ref().map_or(1, |row| row.value),
        templates: &templates,
        free_addresses: &free_addresses,
        free_ports: &free_ports(config, &host, used.port_cursor, needs.ports)?,
        random: &config.access.random(needs.random_bytes),
    };
    let plan = plan_env(name, key, spec, &world)?;
    let change = Change::new().create_env(&plan, usage.as_ref(), next_id.as_ref())?;
    // Written as they are: so the commit fails if one is removed meanwhile, and a removal that saw
    // no Vm of it fails after this one.
    let change = records.iter().try_fold(change, Change::template)?;
    match tables.commit(&change)? {
        Committed::Conflict => Ok(None),
        Committed::Done(_) => {
            let vms = plan.vms.into_iter().map(|vm| VmView::new(vm, None)).collect();
            Ok(Some((StatusCode::CREATED, EnvView::new(plan.env, vms))))
        }
    }
}

/// The records of the templates that the request names, as far as they exist.
fn template_rows(config: &ApiConfig, spec: &EnvSpec) -> Result<Vec<Row<TemplateRecord>>, ApiError> {
    let names: BTreeSet<&str> = spec.vms.iter().map(|vm| vm.template.as_str()).collect();
    let mut rows = Vec::new();
    for name in names {
        let Some(row) = config.tables.template(name)? else { continue };
        let problem = match (row.value.is_wanted, &row.value.template) {
            (false, _) => "it is being removed",
            (true, None) if row.value.trouble.is_some() => "it could not be built",
            (true, None) => "it is not built yet",
            (true, Some(_)) => {
                rows.push(row);
                continue;
            }
        };
        let remedy = format!("see `tt template show {name}`");
        return Err(Refusal::new(
            ErrorCode::State,
            format!("template {}", quoted(name)),
            problem,
            remedy,
        )
        .into());
    }
    Ok(rows)
}

/// Public ports that no Vm has and nothing on the host listens on.
fn free_ports(
    config: &ApiConfig,
    host: &Host,
    cursor: u16,
    number: usize,
) -> Result<Vec<u16>, ApiError> {
    if number == 0 {
        return Ok(Vec::new());
    }
    let listening = config.access.listening_ports();
    let usable = |port| {
        [Protocol::Tcp, Protocol::Udp]
            .iter()
            .all(|protocol| !listening.contains(&(*protocol, port)))
    };
    Ok(config.tables.free_ports(host, cursor, number, usable)?)
}
