//! Routes of pushes: templates on their way into registries. Pushing is the host's work: here it is only asked for.

use super::Api;
use super::edit::committed;
use super::extract::{JsonBody, TemplateName};
use super::problem::Refusals;
use super::templates::row;
use super::work::{Answer, attempt};
use crate::error::ApiError;
use crate::views::TemplateView;
use axum::extract::State;
use axum::http::StatusCode;
use tt_model::check::quoted;
use tt_model::{ErrorCode, Push, PushSpec, Refusal, remote};
use tt_store::tables::{Change, Tables, TemplateRecord};

/// Asks for a template to be pushed to a registry. One at a time; the same one again, as long as it is under way, is one.
#[utoipa::path(
    post, path = "/v1/pushes", tag = "templates", operation_id = "push_template",
    request_body = PushSpec,
    responses((status = 202, description = "It is being pushed", body = TemplateView), Refusals)
)]
pub(super) async fn begin(
    State(api): State<Api>,
    JsonBody(spec): JsonBody<PushSpec>,
) -> Result<Answer, ApiError> {
    remote::check_push(&spec)?;
    api.call(move |config| {
        let record = attempt(|| want(&config.tables, &spec))?;
        Answer::new(StatusCode::ACCEPTED, &TemplateView::from(record))
    })
    .await
}

/// Ends the push of a template, if it is under way, and forgets what became of it. What lies in the registry stays there.
#[utoipa::path(
    delete, path = "/v1/pushes/{*name}", tag = "templates", operation_id = "stop_push",
    params(("name" = String, Path, description = "The template's name, with its slashes as they are")),
    responses((status = 200, description = "It ends", body = TemplateView), Refusals)
)]
pub(super) async fn stop(
    State(api): State<Api>,
    TemplateName(name): TemplateName,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let record = attempt(|| unwant(&config.tables, &name))?;
        Answer::ok(&TemplateView::from(record))
    })
    .await
}

fn want(tables: &Tables, spec: &PushSpec) -> Result<Option<TemplateRecord>, ApiError> {
    let mut row = row(tables, &spec.template)?;
    let record = &row.value;
    let refused = |code, problem: String, remedy: &str| {
        let what = format!("template {}", quoted(&record.name));
        Err(Refusal::new(code, what, problem, remedy).into())
    };
    if record.template.is_none() || !record.is_wanted {
        let problem = "it is not ready".to_owned();
        return refused(ErrorCode::State, problem, "see `tt template show`");
    }
    if let Some(push) = record.push.as_ref().filter(|push| push.is_wanted()) {
        if push.to == spec.to {
            return Ok(Some(row.value));
        }
        let problem = format!("it is being pushed to {}", push.to.reference);
        return refused(ErrorCode::Busy, problem, "wait until that is done, or stop it");
    }
    let done = record.push.as_ref().filter(|push| push.digest.is_some());
    let before = done.map(|push| push.to.reference.clone());
    row.value.push = Some(Push { to: spec.to.clone(), digest: None, trouble: None, before });
    committed(tables, &Change::new().template(&row)?, row.value)
}

fn unwant(tables: &Tables, name: &str) -> Result<Option<TemplateRecord>, ApiError> {
    let mut row = row(tables, name)?;
    let record = &mut row.value;
    let Some(push) = record.push.take() else { return Ok(Some(row.value)) };
    if push.is_wanted() {
        (record.step, record.progress) = (None, None);
    }
    committed(tables, &Change::new().template(&row)?, row.value)
}
