//! Follows the store: every commit names the Vms, Envs, templates, kept images and hosts that are to
//! be looked at.
//! Only ids are taken from it; what they say is read again by whoever looks.

use crate::expire::Expirer;
use crate::{HostError, Queue, layers};
use std::sync::Arc;
use std::time::Duration;
use tt_model::{HostId, VmId};
use tt_store::tables::{Key, Table, Tables};

/// Pause before the store is followed again after it could not be.
const RETRY: Duration = Duration::from_secs(1);

/// Whom a commit's keys are told to.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) tables: Tables,
    pub(crate) vms: Arc<Queue<VmId>>,
    pub(crate) templates: Arc<Queue<String>>,
    pub(crate) images: Arc<Queue<VmId>>,
    /// Told of this host alone, whichever host's record changes.
    pub(crate) hosts: Arc<Queue<HostId>>,
    pub(crate) host: HostId,
    pub(crate) expirer: Arc<Expirer>,
}

impl Follower {
    /// Follows the store for as long as `goes_on` says so.
    pub(crate) fn run(&self, goes_on: impl Fn() -> bool) {
        while goes_on() {
            if let Err(error) = self.follow(&goes_on) {
                tracing::error!(error = layers::chain(&error), "store not followed");
            }
            // A watch ends by itself too, when a commit failed: looking at everything again and
            // again would not help a full disk.
            std::thread::sleep(RETRY);
        }
    }

    fn follow(&self, goes_on: impl Fn() -> bool) -> Result<(), HostError> {
        // The watch begins before everything is read, so nothing falls between the two.
        let mut watch = self.tables.watch(self.tables.revision()?)?;
        self.tell_all()?;
        while let Some(batch) = watch.blocking_next() {
            if !goes_on() {
                break;
            }
            for change in &batch.changes {
                if let Some(key) = Key::parse(&change.key) {
                    self.tell(key);
                }
            }
        }
        Ok(())
    }

    /// One record that can not be read stops no other.
    fn tell(&self, key: Key) {
        let place = key.path();
        if let Err(error) = self.try_tell(key) {
            tracing::error!(key = place, error = layers::chain(&error), "record left out");
        }
    }

    fn try_tell(&self, key: Key) -> Result<(), HostError> {
        match key {
            Key::Vm(id) => {
                self.vms.push(id);
                self.expirer.vm_changed(id)?;
            }
            Key::Env(id) => {
                self.expirer.changed(id)?;
                // One member is enough to tell the network who is who.
                let env = self.tables.env(id)?;
                if let Some(first) = env.and_then(|env| env.value.vm_set.first().copied()) {
                    self.vms.push(first);
                }
            }
            Key::Template(name) => self.templates.push(name),
            Key::Image(id) => self.images.push(id),
            Key::Host(_) => self.hosts.push(self.host),
            _ => {}
        }
        Ok(())
    }

    fn tell_all(&self) -> Result<(), HostError> {
        self.hosts.push(self.host);
        for table in [Table::Vms, Table::Envs, Table::Templates, Table::Images] {
            self.tables.keys(table)?.into_iter().for_each(|key| self.tell(key));
        }
        Ok(())
    }
}
