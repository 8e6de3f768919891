//! What is kept of templates, against the records: by back ends, in the catalogue, in the cache. It never touches an image,
//! nor a template that has a name.

use crate::{Drivers, HostError};
use std::collections::BTreeSet;
use tt_image::{Catalogue, ImageError};
use tt_store::tables::Tables;

/// Lets every back end remove what it keeps of templates that neither a record of a template nor a Vm nor a kept image
/// names. One that fails keeps no other one from it; the next call tries again.
pub(crate) fn collect(tables: &Tables, drivers: &Drivers) -> Result<(), HostError> {
    collect_unless(&in_use(tables)?, drivers)
}

/// As [`collect`], and removes templates that lost their name and that nothing names by their digest, drafts that no
/// record knows, and what is too much in the cache. What fails keeps nothing else from it. With stray images such templates
/// stay: a disk that no record knows yet, because the records were lost, may lie on one.
pub(crate) fn tidy(
    tables: &Tables,
    drivers: &Drivers,
    catalogue: &Catalogue,
    has_stray_image: bool,
) -> Result<(), HostError> {
    let in_use = in_use(tables)?;
    let collected = collect_unless(&in_use, drivers);
    let failed = |e: ImageError| HostError::Look { what: "templates", source: Box::new(e) };
    let unnamed = match has_stray_image {
        true => Ok(Vec::new()),
        false => catalogue.collect(&in_use).map_err(failed),
    };
    // What can not be read may be known.
    let is_known = |name: &str| tables.template(name).map_or(true, |row| row.is_some());
    let drafts = catalogue.discard_orphans(is_known).map_err(failed);
    let cached = catalogue.bound_cache().map_err(failed);
    for (what, gone) in [("template without a name", &unnamed), ("draft without a record", &drafts)]
    {
        for name in gone.iter().flatten() {
            tracing::info!(name, "{what} removed");
        }
    }
    for path in cached.iter().flatten() {
        tracing::info!(path = %path.display(), "removed from the cache");
    }
    collected.and(unnamed.map(drop)).and(drafts.map(drop)).and(cached.map(drop))
}

/// Digests of the templates that are named by records.
fn in_use(tables: &Tables) -> Result<BTreeSet<String>, HostError> {
    let mut in_use: BTreeSet<String> = BTreeSet::new();
    let templates = tables.templates()?.into_iter().filter_map(|row| row.value.template);
    in_use.extend(templates.map(|template| template.digest));
    in_use.extend(tables.vms()?.into_iter().map(|row| row.value.template.digest));
    in_use.extend(tables.images()?.into_iter().map(|row| row.value.template.digest));
    Ok(in_use)
}

fn collect_unless(in_use: &BTreeSet<String>, drivers: &Drivers) -> Result<(), HostError> {
    let mut result = Ok(());
    for storage in &drivers.storages {
        let collected = storage.collect_templates(&|digest| in_use.contains(digest));
        let failed =
            |source| HostError::Look { what: "templates' volumes", source: Box::new(source) };
        result = result.and(collected.map_err(failed));
    }
    result
}
