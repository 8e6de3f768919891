//! Host against records: what is there that no record knows, and what a record says that is not
//! there. Strays are cleared after a grace time; what is missing is settled by the next visit.

use crate::guest::Guests;
use crate::settle::has_arrived;
use crate::{
    Clock, Drivers, GuestControl, HostConfig, HostError, Metas, Unmerged, layers, volumes,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tt_image::Catalogue;
use tt_model::{EnvId, Goal, HostId, Vm, VmId};
use tt_network::Found;
use tt_store::tables::{Key, Table, Tables};

/// Something about which host and records disagree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// Id of the Vm or, for a network, of the Env.
    pub id: u64,
    /// Whether a record knows it.
    pub is_stray: bool,
    /// One sentence for people.
    pub what: String,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A process or its remains.
    Machine,
    /// A namespace, an edge, a port.
    Network,
    /// A disk.
    Image,
    /// Memory on disk.
    Memory,
    /// A meta.
    Meta,
    /// A console log.
    Log,
    /// A Vm that can not reach its goal, or layers that can not be merged.
    Trouble,
}

impl FindingKind {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Network => "network",
            Self::Image => "image",
            Self::Memory => "memory",
            Self::Meta => "meta",
            Self::Log => "log",
            Self::Trouble => "trouble",
        }
    }
}

/// The result of comparing host and records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where they disagree; empty if nowhere.
    pub findings: Vec<Finding>,
    /// Envs that have a record.
    pub env_num: usize,
    /// Vms of this host that have a record.
    pub vm_num: usize,
}

impl Report {
    /// Whether there is a disk that no record knows. What it lies on is not known then either.
    fn has_stray_image(&self) -> bool {
        self.findings.iter().any(|found| found.is_stray && found.kind == FindingKind::Image)
    }
}

/// Compares this host with its records.
#[derive(Debug)]
pub(crate) struct Sweeper {
    tables: Tables,
    drivers: Drivers,
    guests: Arc<Guests>,
    metas: Metas,
    catalogue: Arc<Catalogue>,
    clock: Arc<dyn Clock>,
    host: HostId,
    unmerged: Arc<Unmerged>,
    grace_ms: u64,
    /// When each stray was first seen.
    first_seen_ms: Mutex<HashMap<Finding, u64>>,
}

/// What is on the host.
#[derive(Debug)]
struct Seen {
    machines: BTreeSet<VmId>,
    images: BTreeSet<VmId>,
    memories: BTreeSet<VmId>,
    metas: BTreeSet<VmId>,
    logs: BTreeSet<VmId>,
    networks: Found,
}

/// What has a record.
#[derive(Debug, Default)]
struct Known {
    envs: BTreeSet<EnvId>,
    vms: BTreeSet<VmId>,
    images: BTreeSet<VmId>,
}

impl Sweeper {
    pub(crate) fn new(config: &HostConfig, unmerged: Arc<Unmerged>) -> Self {
        Self {
            tables: config.tables.clone(),
            drivers: config.drivers.clone(),
            guests: config.guests.clone(),
            metas: config.metas.clone(),
            catalogue: config.catalogue.clone(),
            clock: config.clock.clone(),
            host: config.host,
            unmerged,
            grace_ms: config.sweep_grace_ms,
            first_seen_ms: Mutex::default(),
        }
    }

    /// Compares host and records.
    pub(crate) fn verify(&self) -> Result<Report, HostError> {
        let (mut findings, known) = self.compare()?;
        if !findings.is_empty() {
            // What was changed between the looks at host and records is nothing to report.
            let (again, _) = self.compare()?;
            findings.retain(|finding| again.contains(finding));
        }
        findings.sort();
        Ok(Report { findings, env_num: known.envs.len(), vm_num: known.vms.len() })
    }

    fn compare(&self) -> Result<(Vec<Finding>, Known), HostError> {
        let seen = self.look()?;
        let known = self.known()?;
        let mut findings = strays(&seen, &known);
        findings.extend(self.missing(&seen)?);
        Ok((findings, known))
    }

    /// Clears the strays whose grace time is over.
    pub(crate) fn sweep(&self) -> Result<(), HostError> {
        let report = self.verify()?;
        let strays = report.findings.iter().filter(|finding| finding.is_stray).cloned();
        self.clear_all(self.overdue(strays.collect()));
        volumes::tidy(&self.tables, &self.drivers, &self.catalogue, report.has_stray_image())
    }

    /// Compares host and records, and clears every stray at once. Answers what was found.
    pub(crate) fn repair(&self) -> Result<Report, HostError> {
        let report = self.verify()?;
        self.clear_all(report.findings.iter().filter(|f| f.is_stray).cloned().collect());
        volumes::tidy(&self.tables, &self.drivers, &self.catalogue, report.has_stray_image())?;
        Ok(report)
    }

    /// Ids of all Vms that have a record.
    pub(crate) fn vms(&self) -> Result<BTreeSet<VmId>, HostError> {
        Ok(self.known()?.vms)
    }

    fn clear_all(&self, strays: Vec<Finding>) {
        for finding in strays {
            tracing::warn!(kind = finding.kind.name(), id = finding.id, "clearing a stray");
            if let Err(error) = self.clear(&finding) {
                tracing::warn!(
                    kind = finding.kind.name(),
                    id = finding.id,
                    error = layers::chain(&error),
                    "stray not cleared"
                );
            }
        }
    }

    fn overdue(&self, strays: Vec<Finding>) -> Vec<Finding> {
        let now_ms = self.clock.now_ms();
        let mut first_seen = self.first_seen_ms.lock().unwrap_or_else(PoisonError::into_inner);
        first_seen.retain(|finding, _| strays.contains(finding));
        for stray in &strays {
            if !first_seen.contains_key(stray) {
                tracing::warn!(
                    kind = stray.kind.name(),
                    id = stray.id,
                    "found a stray: {}",
                    stray.what
                );
            }
        }
        let is_overdue = |finding: &Finding, seen: &mut HashMap<Finding, u64>| {
            let since = *seen.entry(finding.clone()).or_insert(now_ms);
            now_ms.saturating_sub(since) >= self.grace_ms
        };
        strays.into_iter().filter(|finding| is_overdue(finding, &mut first_seen)).collect()
    }

    fn clear(&self, finding: &Finding) -> Result<(), HostError> {
        let vm = VmId(finding.id);
        match finding.kind {
            FindingKind::Machine => {
                for engine in &self.drivers.engines {
                    engine.clear(vm).map_err(|e| look_error("machines", e))?;
                }
            }
            FindingKind::Network => {
                let env = EnvId(finding.id);
                self.drivers.network.remove_stray(env).map_err(|e| look_error("networks", e))?;
            }
            FindingKind::Image => {
                for storage in &self.drivers.storages {
                    storage.remove_stray(vm).map_err(|e| look_error("images", e))?;
                }
            }
            FindingKind::Memory => {
                for engine in &self.drivers.engines {
                    engine.remove_stray_memory(vm).map_err(|e| look_error("memory", e))?;
                }
            }
            FindingKind::Meta => self.metas.remove_all(vm)?,
            FindingKind::Log => self.guests.erase(vm),
            FindingKind::Trouble => {}
        }
        Ok(())
    }

    fn look(&self) -> Result<Seen, HostError> {
        let (mut machines, mut memories) = (BTreeSet::new(), BTreeSet::new());
        for engine in &self.drivers.engines {
            machines.extend(engine.machines().map_err(|e| look_error("machines", e))?);
            memories.extend(engine.memories().map_err(|e| look_error("memory", e))?);
        }
        let mut images = BTreeSet::new();
        for storage in &self.drivers.storages {
            images.extend(storage.images().map_err(|e| look_error("images", e))?);
        }
        let networks = self.drivers.network.found().map_err(|e| look_error("networks", e))?;
        let logs = self.guests.logs().map_err(|e| look_error("logs", e))?;
        let metas = self.metas.vms()?.into_iter().collect();
        let logs = logs.into_iter().collect();
        Ok(Seen { machines, images, memories, metas, logs, networks })
    }

    /// Ids by their keys: what a record that can not be read is about is known all the same.
    fn known(&self) -> Result<Known, HostError> {
        let mut known = Known::default();
        for table in [Table::Vms, Table::Envs, Table::Images] {
            for key in self.tables.keys(table)? {
                match key {
                    Key::Vm(id) => known.vms.insert(id),
                    Key::Env(id) => known.envs.insert(id),
                    Key::Image(id) => known.images.insert(id),
                    _ => false,
                };
            }
        }
        Ok(known)
    }

    /// What settled Vms should have and do not, and those that can not settle.
    fn missing(&self, seen: &Seen) -> Result<Vec<Finding>, HostError> {
        let mut findings = Vec::new();
        let statuses: HashMap<_, _> = self.tables.statuses()?.into_iter().collect();
        let vms = self.tables.vms()?.into_iter().map(|row| row.value);
        let unmerged = self.unmerged.all();
        for vm in vms.filter(|vm| vm.host == self.host) {
            let Some(status) = statuses.get(&vm.id) else { continue };
            let stuck = status.trouble.as_ref().map(|trouble| &trouble.why);
            findings.extend(stuck.into_iter().chain(unmerged.get(&vm.id)).map(|why| Finding {
                kind: FindingKind::Trouble,
                id: vm.id.0,
                is_stray: false,
                what: format!("{}: {why}", vm.full_name()),
            }));
            if has_arrived(status, &vm) {
                findings.extend(difference(&vm, seen));
            }
        }
        Ok(findings)
    }
}

/// What of a settled Vm is not as its goal says.
fn difference(vm: &Vm, seen: &Seen) -> Vec<Finding> {
    let height = vm.goal.height();
    let has_net = seen.networks.envs.get(&vm.env_id).is_some_and(|vms| vms.contains(&vm.id));
    let parts = [
        (FindingKind::Image, height >= 1, seen.images.contains(&vm.id), vm.id.0),
        (FindingKind::Network, height >= 2, has_net, vm.env_id.0),
        (
            FindingKind::Machine,
            height >= Goal::Paused.height(),
            seen.machines.contains(&vm.id),
            vm.id.0,
        ),
    ];
    let wrong = parts.into_iter().filter(|(_, wanted, there, _)| wanted != there);
    wrong
        .map(|(kind, wanted, _, id)| Finding {
            kind,
            id,
            is_stray: false,
            what: match wanted {
                true => format!("{} lacks its {}", vm.full_name(), kind.name()),
                false => format!("{} still has its {}", vm.full_name(), kind.name()),
            },
        })
        .collect()
}

fn strays(seen: &Seen, known: &Known) -> Vec<Finding> {
    let stray = |kind: FindingKind, id: u64| Finding {
        kind,
        id,
        is_stray: true,
        what: format!("no record knows this {}", kind.name()),
    };
    let unknown = |ids: &BTreeSet<VmId>, kind| -> Vec<Finding> {
        ids.iter().filter(|id| !known.vms.contains(id)).map(|id| stray(kind, id.0)).collect()
    };
    let mut all = unknown(&seen.machines, FindingKind::Machine);
    let networks = seen.networks.envs.keys().chain(&seen.networks.leftovers);
    let networks = networks.filter(|env| !known.envs.contains(env));
    all.extend(networks.map(|env| stray(FindingKind::Network, env.0)));
    let images = seen.images.difference(&known.images).copied().collect();
    all.extend(unknown(&images, FindingKind::Image));
    all.extend(unknown(&seen.memories, FindingKind::Memory));
    all.extend(unknown(&seen.metas, FindingKind::Meta));
    all.extend(unknown(&seen.logs, FindingKind::Log));
    all
}

fn look_error(
    what: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> HostError {
    HostError::Look { what, source: Box::new(source) }
}
