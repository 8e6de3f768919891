//! Joins what the API asks of the host to the host's channels.

use std::collections::BTreeSet;
use std::sync::Arc;
use tt_api::access::{BoxFuture, ByteStream, Disk, DiskForm, GuestStream, HostAccess};
use tt_api::views::{Checked, Finding, VerifyReport};
use tt_guest::session::Open;
use tt_host::{Clock, Guests, HostService, Metas};
use tt_image::{Catalogue, ExportForm};
use tt_model::check::quoted;
use tt_model::{ErrorCode, Protocol, Refusal, Snapshot, Traffic, Vm, VmId, VmTemplate};
use tt_network::{Network, NetworkError};

/// This host, as the API sees it.
#[derive(Debug)]
pub(super) struct LocalHost {
    pub(super) guests: Arc<Guests>,
    pub(super) service: Arc<HostService>,
    pub(super) network: Arc<dyn Network>,
    pub(super) metas: Metas,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) catalogue: Arc<Catalogue>,
}

impl HostAccess for LocalHost {
    fn listening_ports(&self) -> BTreeSet<(Protocol, u16)> {
        tt_network::listening_ports().unwrap_or_else(|error| {
            // The network refuses a port that is taken after all; planning goes on.
            tracing::warn!(%error, "listening ports not read");
            BTreeSet::new()
        })
    }

    fn now_unix_secs(&self) -> u64 {
        self.clock.now()
    }

    fn random(&self, bytes: usize) -> Vec<u8> {
        let mut random = vec![0; bytes];
        match getrandom::fill(&mut random) {
            Ok(()) => random,
            // The planner refuses what it gets too few random bytes for.
            Err(error) => {
                tracing::error!(%error, "no random bytes");
                Vec::new()
            }
        }
    }

    fn open(&self, vm: VmId, open: Open) -> BoxFuture<Result<GuestStream, Refusal>> {
        let guests = self.guests.clone();
        Box::pin(async move {
            let stream = guests.open(vm, open).await?;
            Ok(GuestStream { to: stream.to, from: stream.from })
        })
    }

    fn console(&self, vm: VmId) -> BoxFuture<Result<ByteStream, Refusal>> {
        let console = self.guests.console(vm);
        Box::pin(async move {
            let console = console?;
            Ok(ByteStream { to: console.to, from: console.from })
        })
    }

    fn connect(&self, vm: &Vm, port: u16) -> BoxFuture<Result<ByteStream, Refusal>> {
        let (guests, vm) = (self.guests.clone(), vm.clone());
        Box::pin(async move {
            let connection = guests.connect(&vm, port).await?;
            Ok(ByteStream { to: connection.to, from: connection.from })
        })
    }

    fn console_log(&self, vm: VmId, tail_bytes: u64) -> Result<Vec<u8>, Refusal> {
        self.guests.console_log(vm, tail_bytes).map_err(|error| {
            Refusal::new(
                ErrorCode::Host,
                format!("log of vm {vm}"),
                format!("it can not be read: {error}"),
                "look at the daemon's log",
            )
        })
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, Refusal> {
        self.network.traffic(vm).map_err(|error| {
            let what = format!("traffic of vm {}", vm.full_name());
            match error {
                NetworkError::NotSet { .. } => {
                    let problem = "it has no network now";
                    Refusal::new(ErrorCode::State, what, problem, "start it first")
                }
                error => {
                    let problem = super::chain(&error);
                    Refusal::new(ErrorCode::Host, what, problem, "look at the daemon's log")
                }
            }
        })
    }

    fn frozen(&self, vm: &Vm, snapshot: &Snapshot) -> Result<Vm, Refusal> {
        let refuse = |problem| {
            Refusal::new(
                ErrorCode::MetaRestore,
                format!("snapshot {} of {}", quoted(&snapshot.name), vm.full_name()),
                problem,
                "choose another snapshot",
            )
        };
        let frozen: Vm =
            self.metas.read(&snapshot.meta_path).map_err(|error| refuse(super::chain(&error)))?;
        if frozen.id != vm.id {
            return Err(refuse(format!("its meta is of vm {}", frozen.id)));
        }
        Ok(frozen)
    }

    fn disk(&self, template: &VmTemplate, form: DiskForm) -> Result<Disk, Refusal> {
        let form = match form {
            DiskForm::Raw => ExportForm::Raw,
            DiskForm::Qcow2 => ExportForm::Qcow2,
            DiskForm::Sparse => ExportForm::Sparse,
        };
        let export = self.catalogue.export(template, form).map_err(|error| {
            let what = format!("template {}", quoted(&template.name));
            let problem = super::chain(&error);
            Refusal::new(error.code(), what, problem, "choose another template")
        })?;
        Ok(Disk { bytes: export.bytes, content: Box::new(export) })
    }

    fn verify(&self, repair: bool) -> Result<VerifyReport, Refusal> {
        let looked = match repair {
            true => self.service.repair(),
            false => self.service.verify().map(|report| (tt_host::Report::default(), report)),
        };
        let (before, after) = looked.map_err(|error| {
            Refusal::new(
                ErrorCode::Host,
                "verify",
                super::chain(&error),
                "look at the daemon's log",
            )
        })?;
        let checked = Checked { envs: after.env_num, vms: after.vm_num };
        let mended = before.findings.into_iter().filter(|found| !after.findings.contains(found));
        let repaired = mended.map(finding).collect();
        let findings = after.findings.iter().cloned().map(finding).collect();
        Ok(VerifyReport { findings, repaired, checked })
    }
}

fn finding(found: tt_host::Finding) -> Finding {
    Finding {
        kind: found.kind.name().to_owned(),
        name: if found.is_stray { "stray" } else { "wrong" }.to_owned(),
        what: found.what,
        id: Some(found.id),
    }
}
