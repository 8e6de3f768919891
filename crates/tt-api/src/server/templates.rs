//! Routes of templates. Building and removing is the host's work: here it is only asked for.

use super::disks::Readers;
use super::edit::{Which, committed, members};
use super::extract::{JsonBody, TemplateName};
use super::problem::Refusals;
use super::work::{Answer, attempt, env_row, host, in_use};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{TemplateList, TemplatePhase, TemplateView};
use axum::extract::State;
use axum::http::StatusCode;
use tt_model::check::quoted;
use tt_model::plan::{plan_publish, plan_publish_image};
use tt_model::recipe::BUILT_IN;
use tt_model::template::Origin;
use tt_model::{ErrorCode, Refusal, TemplateSource, TemplateSpec, template};
use tt_store::tables::{Change, Row, Tables, TemplateRecord};

/// All templates, by name.
#[utoipa::path(
    get, path = "/v1/templates", tag = "templates", operation_id = "list_templates",
    responses((status = 200, body = TemplateList), Refusals)
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| {
        let rows = config.tables.templates()?.into_iter();
        let templates = rows.map(|row| row.value.into()).collect();
        Answer::ok(&TemplateList { templates })
    })
    .await
}

/// Asks for a template.
#[utoipa::path(
    post, path = "/v1/templates", tag = "templates", operation_id = "make_template",
    request_body = TemplateSpec,
    responses(
        (status = 202, description = "It is being made", body = TemplateView),
        (status = 200, description = "It is ready", body = TemplateView),
        Refusals
    )
)]
pub(super) async fn make(
    State(api): State<Api>,
    JsonBody(spec): JsonBody<TemplateSpec>,
) -> Result<Answer, ApiError> {
    check(&spec)?;
    api.call(move |config| {
        let view = TemplateView::from(attempt(|| want(config, &spec))?);
        let status = match view.phase {
            TemplatePhase::Ready => StatusCode::OK,
            _ => StatusCode::ACCEPTED,
        };
        Answer::new(status, &view)
    })
    .await
}

/// A template by its name.
#[utoipa::path(
    get, path = "/v1/templates/{*name}", tag = "templates", operation_id = "show_template",
    params(("name" = String, Path, description = "Its name, with its slashes as they are")),
    responses((status = 200, body = TemplateView), Refusals)
)]
pub(super) async fn show(
    State(api): State<Api>,
    TemplateName(name): TemplateName,
) -> Result<Answer, ApiError> {
    api.call(move |config| Answer::ok(&TemplateView::from(row(&config.tables, &name)?.value))).await
}

/// Removes a template that no Vm and no kept image was made from.
#[utoipa::path(
    delete, path = "/v1/templates/{*name}", tag = "templates", operation_id = "remove_template",
    params(("name" = String, Path, description = "Its name, with its slashes as they are")),
    responses((status = 202, description = "It is going", body = TemplateView), Refusals)
)]
pub(super) async fn remove(
    State(api): State<Api>,
    TemplateName(name): TemplateName,
) -> Result<Answer, ApiError> {
    let readers = api.0.readers.clone();
    api.call(move |config| {
        let record = attempt(|| unwant(&config.tables, &readers, &name))?;
        Answer::new(StatusCode::ACCEPTED, &TemplateView::from(record))
    })
    .await
}

fn check(spec: &TemplateSpec) -> Result<(), Refusal> {
    template::check_spec(spec)?;
    let TemplateSource::Build { recipe } = &spec.source else { return Ok(()) };
    let what = if !BUILT_IN.contains(&recipe.as_str()) {
        format!("recipe {}", quoted(recipe))
    } else if spec.name != *recipe {
        format!("template {}", quoted(&spec.name))
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        ErrorCode::Unsupported,
        what,
        "it can not be built",
        format!("build one of {} under its own name, or a file of yours", BUILT_IN.join(", ")),
    ))
}

/// Makes the record of a wanted template, or takes the one there is.
fn want(config: &ApiConfig, spec: &TemplateSpec) -> Result<Option<TemplateRecord>, ApiError> {
    let tables = &config.tables;
    let what = || format!("template {}", quoted(&spec.name));
    let there = tables.template(&spec.name)?;
    if let Some(row) = &there {
        let record = &row.value;
        if !record.is_wanted {
            let (problem, remedy) = ("it is being removed", "make it when it is gone");
            return Err(Refusal::new(ErrorCode::State, what(), problem, remedy).into());
        }
        let has_failed = record.template.is_none() && record.trouble.is_some();
        let is_same = record.source.as_ref().is_none_or(|source| *source == spec.source);
        // What is published once more is another moment.
        let is_over = record.template.is_some() && is_published(&spec.source);
        if !has_failed && is_same && !is_over {
            return Ok(Some(row.value.clone()));
        }
        if !has_failed {
            let source = record.source.as_ref().map(TemplateSource::describe);
            let problem = format!("it is there, made from {}", source.unwrap_or_default());
            let remedy = "choose another name, or remove it first";
            return Err(Refusal::new(ErrorCode::Exists, what(), problem, remedy).into());
        }
    }
    // One that could not be made is tried again, from the beginning.
    let (origin, change) = plan_origin(config, &spec.source)?;
    let record = TemplateRecord {
        name: spec.name.clone(),
        source: Some(spec.source.clone()),
        origin,
        memo: spec.memo.clone(),
        host: config.host,
        is_wanted: true,
        template: None,
        step: None,
        progress: None,
        trouble: None,
        push: None,
    };
    let change = match &there {
        None => change.new_template(&record)?,
        Some(row) => change.template(&Row { value: record.clone(), revision: row.revision })?,
    };
    committed(tables, &change, record)
}

fn is_published(source: &TemplateSource) -> bool {
    matches!(source, TemplateSource::Publish { .. } | TemplateSource::PublishImage { .. })
}

/// The moment that is published, and the change that keeps it.
fn plan_origin(
    config: &ApiConfig,
    source: &TemplateSource,
) -> Result<(Option<Origin>, Change), ApiError> {
    let tables = &config.tables;
    match source {
        TemplateSource::Publish { vm, snapshot } => {
            let (env, name) = vm.split_once('/').unwrap_or((vm, ""));
            let mut env = env_row(tables, env)?;
            let (mut rows, _) = members(tables, &env.value, Which::One(name))?;
            let mut row = rows.remove(0);
            let now = config.access.now_unix_secs();
            let snapshot = snapshot.as_deref();
            let host = host(config)?;
            let planned =
                plan_publish(&mut env.value, &mut row.value, snapshot, &host, now, &config.policy)?;
            // Both are written in any case: whoever removes the snapshot meanwhile has to look again.
            Ok((Some(planned), Change::new().env(&env)?.vm(&row)?))
        }
        TemplateSource::PublishImage { image } => {
            let row = tables.image(*image)?.ok_or_else(|| {
                let what = format!("image {image}");
                let problem = "there is no such kept image";
                Refusal::new(ErrorCode::NotFound, what, problem, "see `tt image ls`")
            })?;
            Ok((Some(plan_publish_image(&row.value)?), Change::new().image(&row)?))
        }
        TemplateSource::Build { .. }
        | TemplateSource::Recipe { .. }
        | TemplateSource::Import { .. }
        | TemplateSource::Pull(_) => Ok((None, Change::new())),
    }
}

/// The templates that are being published from what `is_meant`, as those who use it are named.
pub(super) fn publications(
    tables: &Tables,
    is_meant: impl Fn(&Origin) -> bool,
) -> Result<Vec<String>, ApiError> {
    let rows = tables.templates()?.into_iter();
    let meant = rows.filter(|row| row.value.origin.as_ref().is_some_and(&is_meant));
    Ok(meant.map(|row| format!("template {}", row.value.name)).collect())
}

fn unwant(
    tables: &Tables,
    readers: &Readers,
    name: &str,
) -> Result<Option<TemplateRecord>, ApiError> {
    let mut row = row(tables, name)?;
    if !row.value.is_wanted {
        return Ok(Some(row.value));
    }
    // Read after the template: a Vm that is planned later writes the template's record too. A Vm that
    // goes meanwhile may leave an image, so images are read last.
    let vms = tables.vms()?.into_iter().map(|row| row.value);
    let mut users: Vec<String> =
        vms.filter(|vm| vm.template.name == row.value.name).map(|vm| vm.full_name()).collect();
    let images = tables.images()?.into_iter().map(|row| row.value);
    users.extend(
        images.filter(|i| i.template.name == row.value.name).map(|i| format!("image {}", i.id)),
    );
    let name = &row.value.name;
    users.extend(publications(tables, |origin| origin.template() == name)?);
    let push = row.value.push.as_ref().filter(|push| push.is_wanted());
    users.extend(push.map(|push| format!("its push to {}", push.to.reference)));
    if !users.is_empty() {
        let what = format!("template {}", quoted(name));
        let remedy = "destroy their Envs, remove the images, wait until it is pushed or published";
        return Err(in_use(what, &users, remedy).into());
    }
    // Why it could not be made is no reason for it not to go.
    (row.value.is_wanted, row.value.trouble) = (false, None);
    let change = Change::new().template(&row)?;
    readers.unless_read(&row.value.name.clone(), || committed(tables, &change, row.value))
}

/// The template of that name, or the only one whose name ends in it.
pub(super) fn find(tables: &Tables, name: &str) -> Result<Option<Row<TemplateRecord>>, ApiError> {
    if let Some(row) = tables.template(name)? {
        return Ok(Some(row));
    }
    let mut rows = tables.templates()?;
    let meant = template::resolve(name, rows.iter().map(|row| row.value.name.as_str()))?;
    let meant = meant.map(str::to_owned);
    Ok(meant.and_then(|name| rows.drain(..).find(|row| row.value.name == name)))
}

pub(super) fn row(tables: &Tables, name: &str) -> Result<Row<TemplateRecord>, ApiError> {
    find(tables, name)?.ok_or_else(|| {
        let what = format!("template {}", quoted(name));
        let problem = "there is no such template";
        Refusal::new(ErrorCode::NotFound, what, problem, "see `tt template ls`").into()
    })
}
