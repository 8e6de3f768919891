//! What back ends keep of templates, against the records. It never touches an image.

use crate::{Drivers, HostError};
use std::collections::BTreeSet;
use tt_store::tables::Tables;

/// Lets every back end remove what it keeps of templates that neither a record of a template nor a Vm nor a kept image
/// names. One that fails keeps no other one from it; the next call tries again.
pub(crate) fn collect(tables: &Tables, drivers: &Drivers) -> Result<(), HostError> {
    let mut in_use: BTreeSet<String> = BTreeSet::new();
    let templates = tables.templates()?.into_iter().filter_map(|row| row.value.template);
    in_use.extend(templates.map(|template| template.digest));
    in_use.extend(tables.vms()?.into_iter().map(|row| row.value.template.digest));
    in_use.extend(tables.images()?.into_iter().map(|row| row.value.template.digest));
    let mut result = Ok(());
    for storage in &drivers.storages {
        let collected = storage.collect_templates(&|digest| in_use.contains(digest));
        let failed =
            |source| HostError::Look { what: "templates' volumes", source: Box::new(source) };
        result = result.and(collected.map_err(failed));
    }
    result
}
