//! Changes of records: each is one commit, guarded by what it was planned from.

use super::{Key, Row, Tables, TablesError, TemplateRecord, encode};
use crate::{Outcome, Revision, Txn};
use serde::Serialize;
use tt_model::plan::EnvPlan;
use tt_model::{Env, Host, Usage, Vm, VmId, VmStatus};

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
    pub fn remove_template(mut self, row: &Row<TemplateRecord>) -> Self {
        let key = Key::Template(row.value.name.clone()).path();
        self.txn = self.txn.revision(key.clone(), row.revision).delete(key);
        self
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
        self = self.put(&name, &plan.env.id)?.put(&Key::Env(plan.env.id), &plan.env)?;
        for vm in &plan.vms {
            let address = Key::Address(vm.host, vm.resource.ip_addr);
            self.txn = self.txn.absent(address.path());
            self = self.put(&address, &vm.id)?.put(&Key::Vm(vm.id), vm)?;
            for public in vm.resource.port_map.values() {
                let port = Key::Port(vm.host, *public);
                self.txn = self.txn.absent(port.path());
                self = self.put(&port, &vm.id)?;
            }
        }
        if let Some(host) = plan.vms.first().map(|vm| vm.host) {
            let key = Key::Usage(host);
            self.txn = guard(self.txn, &key, usage.map(|row| row.revision));
            self = self.put(&key, &plan.usage)?;
        }
        self.txn = guard(self.txn, &Key::NextId, next_id.map(|row| row.revision));
        self.put(&Key::NextId, &plan.next_id)
    }

    /// Removes a Vm with everything it takes, and its Env with the last member of an ending one.
    ///
    /// `env` must have the Vm out of its `vm_set` already, `usage` must no longer count it.
    pub fn erase_vm(
        mut self,
        vm: &Row<Vm>,
        env: &Row<Env>,
        usage: &Row<Usage>,
    ) -> Result<Self, TablesError> {
        let key = Key::Vm(vm.value.id).path();
        self.txn = self.txn.revision(key.clone(), vm.revision).delete(key);
        self.txn = self.txn.delete(Key::Status(vm.value.id).path());
        self.txn = self.txn.delete(Key::Address(vm.value.host, vm.value.resource.ip_addr).path());
        for public in vm.value.resource.port_map.values() {
            self.txn = self.txn.delete(Key::Port(vm.value.host, *public).path());
        }
        self = self.update(&Key::Usage(vm.value.host), usage)?;
        if !env.value.is_ending || !env.value.vm_set.is_empty() {
            return self.env(env);
        }
        let key = Key::Env(env.value.id).path();
        self.txn = self.txn.revision(key.clone(), env.revision).delete(key);
        self.txn = self.txn.delete(Key::EnvName(env.value.name.clone()).path());
        Ok(self)
    }

    /// Hands out an id: guarded by the one that was read.
    pub fn next_id(mut self, next_id: u64, read: Option<&Row<u64>>) -> Result<Self, TablesError> {
        self.txn = guard(self.txn, &Key::NextId, read.map(|row| row.revision));
        self.put(&Key::NextId, &next_id)
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
