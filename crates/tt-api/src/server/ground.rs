//! What a plan of new Vms depends on, as it was read. It decides and changes nothing.

use super::work::host;
use super::{ApiConfig, templates};
use crate::error::ApiError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use tt_model::check::quoted;
use tt_model::plan::{World, needs};
use tt_model::{ErrorCode, Host, KeptImage, Protocol, Refusal, Usage, VmId, VmSpec, VmTemplate};
use tt_store::tables::{Change, Row, TablesError, TemplateRecord};

/// The records and free numbers that new Vms are planned from.
pub(super) struct Ground {
    /// The host's usage as it was read.
    pub usage: Option<Row<Usage>>,
    /// The next unused id as it was read.
    pub next_id: Option<Row<u64>>,
    host: Host,
    used: Usage,
    /// By the name that the request has for it.
    template_rows: BTreeMap<String, Row<TemplateRecord>>,
    templates: BTreeMap<String, VmTemplate>,
    image_rows: Vec<Row<KeptImage>>,
    images: BTreeMap<VmId, KeptImage>,
    free_addresses: Vec<Ipv4Addr>,
    free_ports: Vec<u16>,
    random: Vec<u8>,
}

impl Ground {
    /// Reads what Vms of `specs` depend on. Their numbers must have been checked.
    ///
    /// # Errors
    /// A template or kept image that is there but can not be used.
    pub(super) fn read(config: &ApiConfig, specs: &[VmSpec]) -> Result<Self, ApiError> {
        let tables = &config.tables;
        let host = host(config)?;
        let needs = needs(specs);
        let usage = tables.usage(host.id)?;
        let next_id = tables.next_id()?;
        let used = usage.clone().map(|row| row.value).unwrap_or_default();
        let template_rows = template_rows(config, specs)?;
        let templates = template_rows
            .iter()
            .filter_map(|(name, row)| Some((name.clone(), row.value.template.clone()?)))
            .collect();
        let image_rows = image_rows(config, specs)?;
        let images = image_rows.iter().map(|row| (row.value.id, row.value.clone())).collect();
        Ok(Self {
            free_addresses: tables.free_addresses(&host, used.addr_cursor, needs.addresses)?,
            free_ports: free_ports(config, &host, used.port_cursor, needs.ports)?,
            random: config.access.random(needs.random_bytes),
            usage,
            next_id,
            host,
            used,
            template_rows,
            templates,
            image_rows,
            images,
        })
    }

    /// As the plan takes it.
    pub(super) fn world<'a>(&'a self, config: &'a ApiConfig) -> World<'a> {
        World {
            now: config.access.now_unix_secs(),
            policy: &config.policy,
            host: &self.host,
            usage: &self.used,
            next_id: self.next_id.as_ref().map_or(1, |row| row.value),
            templates: &self.templates,
            images: &self.images,
            free_addresses: &self.free_addresses,
            free_ports: &self.free_ports,
            random: &self.random,
        }
    }

    /// Writes templates and kept images as they are: so the commit fails if one is removed
    /// meanwhile, and a removal that saw no Vm of it fails after this one.
    pub(super) fn hold(&self, change: Change) -> Result<Change, TablesError> {
        let rows: BTreeMap<&str, &Row<TemplateRecord>> =
            self.template_rows.values().map(|row| (row.value.name.as_str(), row)).collect();
        let change = rows.into_values().try_fold(change, Change::template)?;
        self.image_rows.iter().try_fold(change, Change::image)
    }
}

/// Public ports that no Vm has and nothing on the host listens on.
pub(super) fn free_ports(
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

/// The records of the templates that the request names, as far as they exist.
fn template_rows(
    config: &ApiConfig,
    specs: &[VmSpec],
) -> Result<BTreeMap<String, Row<TemplateRecord>>, ApiError> {
    let names: BTreeSet<&str> = specs.iter().map(|vm| vm.template.as_str()).collect();
    let mut rows = BTreeMap::new();
    for name in names {
        let Some(row) = templates::find(&config.tables, name)? else { continue };
        let problem = match (row.value.is_wanted, &row.value.template) {
            (false, _) => "it is being removed",
            (true, None) if row.value.trouble.is_some() => "it could not be built",
            (true, None) => "it is not built yet",
            (true, Some(_)) => {
                rows.insert(name.to_owned(), row);
                continue;
            }
        };
        let remedy = format!("see `tt template show {name}`");
        let what = format!("template {}", quoted(name));
        return Err(Refusal::new(ErrorCode::State, what, problem, remedy).into());
    }
    Ok(rows)
}

/// The records of the kept images that the request names, as far as they exist.
fn image_rows(config: &ApiConfig, specs: &[VmSpec]) -> Result<Vec<Row<KeptImage>>, ApiError> {
    let ids: BTreeSet<VmId> = specs.iter().filter_map(|vm| vm.image).collect();
    let mut rows = Vec::new();
    for id in ids {
        let Some(row) = config.tables.image(id)? else { continue };
        if !row.value.is_wanted {
            let what = format!("image {id}");
            let remedy = "see `tt image ls` for the others";
            return Err(Refusal::new(ErrorCode::State, what, "it is being removed", remedy).into());
        }
        rows.push(row);
    }
    Ok(rows)
}
