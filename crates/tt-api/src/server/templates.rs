//! Routes of templates. Building and removing is the host's work: here it is only asked for.

use super::edit::committed;
use super::extract::{JsonBody, TemplateName};
use super::problem::Refusals;
use super::work::{Answer, attempt, in_use};
use super::{Api, ApiConfig};
use crate::error::ApiError;
use crate::views::{BuildRequest, TemplateList, TemplatePhase, TemplateView};
use axum::extract::State;
use axum::http::StatusCode;
use tt_model::check::{check_template_name, quoted};
use tt_model::{ErrorCode, Refusal};
use tt_store::tables::{Change, Row, Tables, TemplateRecord};

/// The one recipe there is, and the name of what it makes.
const RECIPE_MICRO: &str = "micro";

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
    post, path = "/v1/templates", tag = "templates", operation_id = "build_template",
    request_body = BuildRequest,
    responses(
        (status = 202, description = "It is being made", body = TemplateView),
        (status = 200, description = "It is ready", body = TemplateView),
        Refusals
    )
)]
pub(super) async fn build(
    State(api): State<Api>,
    JsonBody(request): JsonBody<BuildRequest>,
) -> Result<Answer, ApiError> {
    check_build(&request)?;
    api.call(move |config| {
        let view = TemplateView::from(attempt(|| want(config, &request))?);
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
    api.call(move |config| {
        let record = attempt(|| unwant(&config.tables, &name))?;
        Answer::new(StatusCode::ACCEPTED, &TemplateView::from(record))
    })
    .await
}

fn check_build(request: &BuildRequest) -> Result<(), Refusal> {
    check_template_name(&request.name)?;
    let what = if request.recipe != RECIPE_MICRO {
        format!("recipe {}", quoted(&request.recipe))
    } else if request.name != RECIPE_MICRO {
        format!("template {}", quoted(&request.name))
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        ErrorCode::Unsupported,
        what,
        "it can not be built",
        "build the recipe `micro` under the name `micro`",
    ))
}

/// Makes the record of a wanted template, or takes the one there is.
fn want(config: &ApiConfig, request: &BuildRequest) -> Result<Option<TemplateRecord>, ApiError> {
    let tables = &config.tables;
    let (record, change) = match tables.template(&request.name)? {
        None => {
            let record = TemplateRecord {
                name: request.name.clone(),
                recipe: request.recipe.clone(),
                host: config.host,
                is_wanted: true,
                template: None,
                step: None,
                trouble: None,
            };
            let change = Change::new().new_template(&record)?;
            (record, change)
        }
        Some(row) if !row.value.is_wanted => {
            return Err(Refusal::new(
                ErrorCode::State,
                format!("template {}", quoted(&request.name)),
                "it is being removed",
                "build it when it is gone",
            )
            .into());
        }
        // One that could not be made is tried again; all others are as they should be.
        Some(mut row) if row.value.template.is_none() && row.value.trouble.is_some() => {
            row.value.trouble = None;
            row.value.step = None;
            let change = Change::new().template(&row)?;
            (row.value, change)
        }
        Some(row) => return Ok(Some(row.value)),
    };
    committed(tables, &change, record)
}

fn unwant(tables: &Tables, name: &str) -> Result<Option<TemplateRecord>, ApiError> {
    let mut row = row(tables, name)?;
    if !row.value.is_wanted {
        return Ok(Some(row.value));
    }
    // Read after the template: a Vm that is planned later writes the template's record too. A Vm that
    // goes meanwhile may leave an image, so images are read last.
    let vms = tables.vms()?.into_iter().map(|row| row.value);
    let mut users: Vec<String> =
        vms.filter(|vm| vm.template.name == name).map(|vm| vm.full_name()).collect();
    let images = tables.images()?.into_iter().map(|row| row.value);
    users.extend(images.filter(|i| i.template.name == name).map(|i| format!("image {}", i.id)));
    if !users.is_empty() {
        let what = format!("template {}", quoted(name));
        return Err(in_use(what, &users, "destroy their Envs and remove the images first").into());
    }
    row.value.is_wanted = false;
    let change = Change::new().template(&row)?;
    committed(tables, &change, row.value)
}

fn row(tables: &Tables, name: &str) -> Result<Row<TemplateRecord>, ApiError> {
    tables.template(name)?.ok_or_else(|| {
        let what = format!("template {}", quoted(name));
        let problem = "there is no such template";
        Refusal::new(ErrorCode::NotFound, what, problem, "see `tt template ls`").into()
    })
}
