//! The records of TT as typed tables over a [`Kv`]. Every record carries a schema version; every
//! change is one guarded commit. It decides nothing: what to write comes from `tt-model`'s plans.

mod change;
mod free;
mod key;

pub use change::{Change, Committed};
pub use key::{Key, Table};

use crate::{Entry, Kv, PAGE_ENTRIES_MAX, Revision, StoreError, Watch};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;
use tt_model::Push;
use tt_model::status::Trouble;
use tt_model::template::{Origin, Progress};
use tt_model::{
    Env, EnvId, Host, HostId, KeptImage, TemplateSource, Usage, Vm, VmId, VmStatus, VmTemplate,
};

/// Version of the records' form. A reader refuses records of a newer one.
pub const RECORD_VERSION: u32 = 1;

/// Why a table could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The store refused or failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A record is not what it should be.
    #[error("record {key} can not be read")]
    Decode {
        /// Where it lies.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record could not be written as JSON.
    #[error("record {key} can not be encoded")]
    Encode {
        /// Where it was to lie.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record was written by a newer version of TT.
    #[error("record {key} has version {version}; this program reads up to {RECORD_VERSION}")]
    Newer {
        /// Where it lies.
        key: String,
        /// Its version.
        version: u32,
    },
}

impl TablesError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(source) => source.is_retryable(),
            Self::Decode { .. } | Self::Encode { .. } | Self::Newer { .. } => false,
        }
    }
}

/// A record with the revision that guards its next change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<T> {
    /// The record.
    pub value: T,
    /// When it was last written.
    pub revision: Revision,
}

/// A template that was asked for, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Its globally unique name.
    pub name: String,
    /// What it is made from; not known any more of one that a recovery found.
    pub source: Option<TemplateSource>,
    /// The moment that it is published from, as long as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Description for people, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<String>,
    /// The host that has it or makes it.
    pub host: HostId,
    /// Whether it should exist.
    pub is_wanted: bool,
    /// What it is, once it is made.
    pub template: Option<VmTemplate>,
    /// What is being done, while it is made.
    pub step: Option<String>,
    /// How much of that step is done, where it can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What went wrong, if it could not be made.
    pub trouble: Option<Trouble>,
    /// Its last push to a registry, which its step and progress are of as long as it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
}

/// The typed tables of a store.
#[derive(Clone, Debug)]
pub struct Tables {
    kv: Arc<dyn Kv>,
}

#[derive(Serialize, Deserialize)]
struct Record<T> {
    v: u32,
    record: T,
}

impl Tables {
    /// The tables of `kv`.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv }
    }

    /// An Env by its id.
    pub fn env(&self, id: EnvId) -> Result<Option<Row<Env>>, TablesError> {
        self.read(&Key::Env(id).path())
    }

    /// A living Env by its name.
    pub fn env_by_name(&self, name: &str) -> Result<Option<Row<Env>>, TablesError> {
        let id: Option<Row<EnvId>> = self.read(&Key::EnvName(name.to_owned()).path())?;
        id.map_or(Ok(None), |id| self.env(id.value))
    }

    /// All Envs, oldest first.
    pub fn envs(&self) -> Result<Vec<Row<Env>>, TablesError> {
        self.read_all("env/")
    }

    /// A Vm by its id.
    pub fn vm(&self, id: VmId) -> Result<Option<Row<Vm>>, TablesError> {
        self.read(&Key::Vm(id).path())
    }

    /// The members of an Env, oldest first.
    pub fn vms_of(&self, env: &Env) -> Result<Vec<Row<Vm>>, TablesError> {
        let rows = env.vm_set.iter().map(|id| self.vm(*id));
        rows.filter_map(Result::transpose).collect()
    }

    /// All Vms, oldest first.
    pub fn vms(&self) -> Result<Vec<Row<Vm>>, TablesError> {
        self.read_all("vm/")
    }

    /// What the host last saw of a Vm.
    pub fn status(&self, id: VmId) -> Result<Option<Row<VmStatus>>, TablesError> {
        self.read(&Key::Status(id).path())
    }

    /// What the hosts last saw of all Vms.
    pub fn statuses(&self) -> Result<Vec<(VmId, VmStatus)>, TablesError> {
        let mut all = Vec::new();
        self.each("status/", |key, value| {
            match (Key::parse(key), decode(key, value)) {
                (Some(Key::Status(id)), Ok(status)) => all.push((id, status)),
                (_, Err(error)) => tracing::error!(key, %error, "record left out"),
                _ => {}
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// A host by its id.
    pub fn host(&self, id: HostId) -> Result<Option<Row<Host>>, TablesError> {
        self.read(&Key::Host(id).path())
    }

    /// All hosts.
    pub fn hosts(&self) -> Result<Vec<Row<Host>>, TablesError> {
        self.read_all("host/")
    }

    /// How much of a host is handed out; nothing, as long as nobody wrote it.
    pub fn usage(&self, id: HostId) -> Result<Option<Row<Usage>>, TablesError> {
        self.read(&Key::Usage(id).path())
    }

    /// The next unused id.
    pub fn next_id(&self) -> Result<Option<Row<u64>>, TablesError> {
        self.read(&Key::NextId.path())
    }

    /// A template by its name.
    pub fn template(&self, name: &str) -> Result<Option<Row<TemplateRecord>>, TablesError> {
        self.read(&Key::Template(name.to_owned()).path())
    }

    /// All templates, by name.
    pub fn templates(&self) -> Result<Vec<Row<TemplateRecord>>, TablesError> {
        self.read_all("template/")
    }

    /// A kept image by the id of the Vm that it was the runtime image of.
    pub fn image(&self, id: VmId) -> Result<Option<Row<KeptImage>>, TablesError> {
        self.read(&Key::Image(id).path())
    }

    /// All kept images, those of the oldest Vms first.
    pub fn images(&self) -> Result<Vec<Row<KeptImage>>, TablesError> {
        self.read_all("image/")
    }

    /// The places of all records of a table, whether or not they can be read.
    pub fn keys(&self, table: Table) -> Result<Vec<Key>, TablesError> {
        let mut keys = Vec::new();
        self.each(table.prefix(), |key, _| {
            keys.extend(Key::parse(key));
            Ok(())
        })?;
        Ok(keys)
    }

    /// The revision of the newest commit.
    pub fn revision(&self) -> Result<Revision, TablesError> {
        Ok(self.kv.range(&Key::NextId.path(), None, 1)?.revision)
    }

    /// Follows all records: every commit after `after`.
    pub fn watch(&self, after: Revision) -> Result<Watch, TablesError> {
        Ok(self.kv.watch("", after)?)
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Row<T>>, TablesError> {
        let entry = self.kv.get(key)?;
        entry
            .map(|entry| {
                Ok(Row { value: decode(key, &entry.value)?, revision: entry.mod_revision })
            })
            .transpose()
    }

    /// A record that can not be read is named in the log and left out: it hides no other.
    fn read_all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<Row<T>>, TablesError> {
        let mut rows = Vec::new();
        self.each_entry(prefix, |entry| {
            match decode(&entry.key, &entry.value) {
                Ok(value) => rows.push(Row { value, revision: entry.mod_revision }),
                Err(error) => tracing::error!(key = entry.key, %error, "record left out"),
            }
            Ok(())
        })?;
        Ok(rows)
    }

    fn each(
        &self,
        prefix: &str,
        mut visit: impl FnMut(&str, &[u8]) -> Result<(), TablesError>,
    ) -> Result<(), TablesError> {
        self.each_entry(prefix, |entry| visit(&entry.key, &entry.value))
    }

    fn each_entry(
        &self,
        prefix: &str,
        mut visit: impl FnMut(&Entry) -> Result<(), TablesError>,
    ) -> Result<(), TablesError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.kv.range(prefix, after.as_deref(), PAGE_ENTRIES_MAX)?;
            for entry in &page.entries {
                visit(entry)?;
            }
            match page.entries.last() {
                Some(last) if page.more => after = Some(last.key.clone()),
                _ => return Ok(()),
            }
        }
    }
}

fn encode<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, TablesError> {
    serde_json::to_vec(&Record { v: RECORD_VERSION, record })
        .map_err(|source| TablesError::Encode { key: key.to_owned(), source })
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, TablesError> {
    // The version is read first: a newer record's fields may not fit today's types.
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let fail = |source| TablesError::Decode { key: key.to_owned(), source };
    let record: Record<T> = match serde_json::from_slice(value) {
        Ok(record) => record,
        Err(source) => match serde_json::from_slice::<Version>(value) {
            Ok(Version { v }) if v > RECORD_VERSION => {
                return Err(TablesError::Newer { key: key.to_owned(), version: v });
            }
            _ => return Err(fail(source)),
        },
    };
    if record.v > RECORD_VERSION {
        return Err(TablesError::Newer { key: key.to_owned(), version: record.v });
    }
    Ok(record.record)
}

#[cfg(test)]
mod tests;
