//! Routes of kept images. Removing one is the host's work: here it is only asked for.

use super::Api;
use super::edit::committed;
use super::extract::ImageId;
use super::problem::Refusals;
use super::templates::publications;
use super::work::{Answer, attempt, in_use};
use crate::error::ApiError;
use crate::views::ImageList;
use axum::extract::State;
use axum::http::StatusCode;
use tt_model::template::Origin;
use tt_model::{ErrorCode, KeptImage, Refusal, VmId};
use tt_store::tables::{Change, Tables};

/// All kept images.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", operation_id = "list_images",
    responses((status = 200, body = ImageList), Refusals)
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer, ApiError> {
    api.call(|config| {
        let images = config.tables.images()?.into_iter().map(|row| row.value).collect();
        Answer::ok(&ImageList { images })
    })
    .await
}

/// Removes a kept image that nothing lies on. Again while it goes changes nothing.
#[utoipa::path(
    delete, path = "/v1/images/{id}", tag = "images", operation_id = "remove_image",
    params(("id" = u64, Path, description = "Id of the Vm that it was the disk of")),
    responses((status = 202, description = "It is going", body = KeptImage), Refusals)
)]
pub(super) async fn remove(
    State(api): State<Api>,
    ImageId(id): ImageId,
) -> Result<Answer, ApiError> {
    api.call(move |config| {
        let image = attempt(|| unwant(&config.tables, id))?;
        Answer::new(StatusCode::ACCEPTED, &image)
    })
    .await
}

fn unwant(tables: &Tables, id: VmId) -> Result<Option<KeptImage>, ApiError> {
    let mut row = tables.image(id)?.ok_or_else(|| {
        let what = format!("image {id}");
        Refusal::new(ErrorCode::NotFound, what, "there is no such kept image", "see `tt image ls`")
    })?;
    if !row.value.is_wanted {
        return Ok(Some(row.value));
    }
    // Read after the image: a Vm that is planned later writes the image's record too. A Vm that goes
    // meanwhile may leave an image, so images are read last.
    let is_base = |base: &Option<String>| base.as_ref() == Some(&row.value.runtime_image);
    let vms = tables.vms()?.into_iter().map(|row| row.value);
    let mut users: Vec<String> =
        vms.filter(|vm| is_base(&vm.base)).map(|vm| vm.full_name()).collect();
    let images = tables.images()?.into_iter().map(|row| row.value);
    users.extend(images.filter(|i| is_base(&i.base)).map(|i| format!("image {}", i.id)));
    users.extend(publications(
        tables,
        |origin| matches!(origin, Origin::Image { image, .. } if *image == id),
    )?);
    if !users.is_empty() {
        return Err(in_use(format!("image {id}"), &users, "remove these first").into());
    }
    row.value.is_wanted = false;
    let change = Change::new().image(&row)?;
    committed(tables, &change, row.value)
}
