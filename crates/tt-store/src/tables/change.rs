//! Changes of records: each is one commit, guarded by what it was planned from.

use super::{Key, Row, Tables, TablesError, TemplateRecord, encode};
use crate::{Outcome, Revision, Txn};
use serde::Serialize;
use std::collections::BTreeSet;
use tt_model::plan::{AddPlan, EnvPlan};
use tt_model::{Env, Host, HostId, KeptImage, Usage, Vm, VmId, VmStatus};

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is done.
    Done(Revision),
    /// A record it was planned from has changed: read again and plan again.
    Conflict,
}

/// Records that are changed together.
#[derive(Debug, Default)]
pub struct Change {
    txn: Txn,
}

impl Change {
    /// An empty change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the Env over the one that was read.
    pub fn env(self, row: &Row<Env>) -> Result<Self, TablesError> {
        self.update(&Key::Env(row.value.id), row)
    }

    /// Writes the Vm over the one that was read.
    pub fn vm(self, row: &Row<Vm>) -> Result<Self, TablesError> {
        self.update(&Key::Vm(row.value.id), row)
    }

    /// Writes Vms over those that were read.
    pub fn vms(self, rows: &[Row<Vm>]) -> Result<Self, TablesError> {
        rows.iter().try_fold(self, Self::vm)
    }

    /// Writes what the host saw of a Vm, as long as the Vm is recorded.
    pub fn status(mut self, id: VmId, status: &VmStatus) -> Result<Self, TablesError> {
        self.txn = self.txn.present(Key::Vm(id).path());
        self.put(&Key::Status(id), status)
    }

    /// Writes a host.
    pub fn host(self, host: &Host) -> Result<Self, TablesError> {
        self.put(&Key::Host(host.id), host)
    }

    /// Writes a template that no other record has the name of.
    pub fn new_template(mut self, record: &TemplateRecord) -> Result<Self, TablesError> {
        let key = Key::Template(record.name.clone());
        self.txn = self.txn.absent(key.path());
        self.put(&key, record)
    }

    /// Writes a template over the one that was read.
    pub fn template(self, row: &Row<TemplateRecord>) -> Result<Self, TablesError> {
        self.update(&Key::Template(row.value.name.clone()), row)
    }

    /// Removes a template as it was read.
    pub fn remove_template(self, row: &Row<TemplateRecord>) -> Self {
        self.remove(&Key::Template(row.value.name.clone()), row.revision)
    }

    /// Writes a planned Env, its members and everything that they take.
    pub fn create_env(
        mut self,
        plan: &EnvPlan,
        usage: Option<&Row<Usage>>,
        next_id: Option<&Row<u64>>,
    ) -> Result<Self, TablesError> {
        let name = Key::EnvName(plan.env.name.clone());
        self.txn = self.txn.absent(name.path());
        self.put(&name, &plan.env.id)?
            .put(&Key::Env(plan.env.id), &plan.env)?
            .members(&plan.vms, &plan.usage, usage)?
            .next_id(plan.next_id, next_id)
    }

    /// Writes planned members and everything that they take, and their Env, which holds them
    /// already, over the one that was read.
    pub fn add_vms(
        self,
        plan: &AddPlan,
        env: &Row<Env>,
        usage: Option<&Row<Usage>>,
        next_id: Option<&Row<u64>>,
    ) -> Result<Self, TablesError> {
        self.env(env)?.members(&plan.vms, &plan.usage, usage)?.next_id(plan.next_id, next_id)
    }

    /// Writes a Vm over the one that was read. It takes the public ports that are new, which no
    /// other Vm may have, and frees those that are gone. Its address stays.
    pub fn replace_vm(mut self, read: &Row<Vm>, new: &Vm) -> Result<Self, TablesError> {
        let ports = |vm: &Vm| vm.resource.port_map.values().copied().collect::<BTreeSet<_>>();
        let (old, wanted) = (ports(&read.value), ports(new));
        for public in old.difference(&wanted) {
            self.txn = self.txn.delete(Key::Port(read.value.host, *public).path());
        }
        for public in wanted.difference(&old) {
            self = self.take(&Key::Port(new.host, *public), new.id)?;
        }
        self.vm(&Row { value: new.clone(), revision: read.revision })
    }

    /// Writes a host's usage over the one that was read.
    pub fn usage(self, host: HostId, row: &Row<Usage>) -> Result<Self, TablesError> {
        self.update(&Key::Usage(host), row)
    }

    /// Writes a kept image that has no record yet.
    pub fn new_image(mut self, image: &KeptImage) -> Result<Self, TablesError> {
        let key = Key::Image(image.id);
        self.txn = self.txn.absent(key.path());
        self.put(&key, image)
    }

    /// Writes a kept image over the one that was read.
    pub fn image(self, row: &Row<KeptImage>) -> Result<Self, TablesError> {
        self.update(&Key::Image(row.value.id), row)
    }

    /// Changes nothing of a kept image and happens only while it is as it was read: what is planned
    /// from it is not committed after somebody gave it up.
    pub fn from_image(mut self, row: &Row<KeptImage>) -> Self {
        self.txn = self.txn.revision(Key::Image(row.value.id).path(), row.revision);
        self
    }

    /// Removes a kept image as it was read.
    pub fn remove_image(self, row: &Row<KeptImage>) -> Self {
        self.remove(&Key::Image(row.value.id), row.revision)
    }

    /// Removes a Vm with everything it takes, and its Env with the last member of an ending one.
    /// `kept`: what is kept of it, recorded in the same moment.
    ///
    /// `env` must have the Vm out of its `vm_set` already, `usage` must no longer count it.
    pub fn erase_vm(
        mut self,
        vm: &Row<Vm>,
        env: &Row<Env>,
        usage: &Row<Usage>,
        kept: Option<&KeptImage>,
    ) -> Result<Self, TablesError> {
        let gone = &vm.value;
        self = self.remove(&Key::Vm(gone.id), vm.revision);
        self.txn = self.txn.delete(Key::Status(gone.id).path());
        self.txn = self.txn.delete(Key::Address(gone.host, gone.resource.ip_addr).path());
        for public in gone.resource.port_map.values() {
            self.txn = self.txn.delete(Key::Port(gone.host, *public).path());
        }
        if let Some(image) = kept {
            self = self.put(&Key::Image(image.id), image)?;
        }
        self = self.usage(gone.host, usage)?;
        if !env.value.is_ending || !env.value.vm_set.is_empty() {
            return self.env(env);
        }
        self = self.remove(&Key::Env(env.value.id), env.revision);
        self.txn = self.txn.delete(Key::EnvName(env.value.name.clone()).path());
        Ok(self)
    }

    /// Hands out an id: guarded by the one that was read.
    pub fn next_id(mut self, next_id: u64, read: Option<&Row<u64>>) -> Result<Self, TablesError> {
        self.txn = guard(self.txn, &Key::NextId, read.map(|row| row.revision));
        self.put(&Key::NextId, &next_id)
    }

    /// Writes new members of one host, takes their addresses and ports, and counts them.
    fn members(
        mut self,
        vms: &[Vm],
        counted: &Usage,
        usage: Option<&Row<Usage>>,
    ) -> Result<Self, TablesError> {
        for vm in vms {
            self = self.take(&Key::Address(vm.host, vm.resource.ip_addr), vm.id)?;
            self = self.put(&Key::Vm(vm.id), vm)?;
            for public in vm.resource.port_map.values() {
                self = self.take(&Key::Port(vm.host, *public), vm.id)?;
            }
        }
        let Some(vm) = vms.first() else { return Ok(self) };
        let key = Key::Usage(vm.host);
        self.txn = guard(self.txn, &key, usage.map(|row| row.revision));
        self.put(&key, counted)
    }

    /// Gives `id` what nobody may have yet.
    fn take(mut self, key: &Key, id: VmId) -> Result<Self, TablesError> {
        self.txn = self.txn.absent(key.path());
        self.put(key, &id)
    }

    fn remove(mut self, key: &Key, read: Revision) -> Self {
        let key = key.path();
        self.txn = self.txn.revision(key.clone(), read).delete(key);
        self
    }

    fn update<T: Serialize>(mut self, key: &Key, row: &Row<T>) -> Result<Self, TablesError> {
        self.txn = self.txn.revision(key.path(), row.revision);
        self.put(key, &row.value)
    }

    fn put<T: Serialize>(mut self, key: &Key, record: &T) -> Result<Self, TablesError> {
        let path = key.path();
        let value = encode(&path, record)?;
        self.txn = self.txn.put(path, value);
        Ok(self)
    }
}

impl Tables {
    /// Commits a change, all of it or nothing.
    pub fn commit(&self, change: &Change) -> Result<Committed, TablesError> {
        Ok(match self.kv.commit(&change.txn)? {
            Outcome::Done(revision) => Committed::Done(revision),
            Outcome::Conflict { .. } => Committed::Conflict,
        })
    }
}

fn guard(txn: Txn, key: &Key, read: Option<Revision>) -> Txn {
    match read {
        Some(revision) => txn.revision(key.path(), revision),
        None => txn.absent(key.path()),
    }
}
