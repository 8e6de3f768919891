//! Keeps the metas of Vms and Envs true: each record that a visit reads is written down before
//! anything is done because of it.

use crate::meta::{MetaError, Metas};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tt_model::{Env, EnvId, KeptImage, Vm, VmId, names};
use tt_store::Revision;
use tt_store::tables::Row;

/// What was written, and as of which revision.
#[derive(Debug)]
pub(crate) struct MetaCache {
    metas: Metas,
    vms: Mutex<HashMap<VmId, Revision>>,
    envs: Mutex<HashMap<EnvId, Revision>>,
    /// Members of one Env are visited at once; those of Envs that share a place wait in turn.
    turns: [Mutex<()>; TURNS],
}

/// Envs whose metas can be written at once.
const TURNS: usize = 16;

impl MetaCache {
    pub(crate) fn new(metas: Metas) -> Self {
        let turns = std::array::from_fn(|_| Mutex::default());
        Self { metas, vms: Mutex::default(), envs: Mutex::default(), turns }
    }

    /// The metas themselves.
    pub(crate) fn metas(&self) -> &Metas {
        &self.metas
    }

    /// Writes the metas of a Vm and its Env if they have changed, and removes those of snapshots
    /// that are gone.
    pub(crate) fn follow(&self, vm: &Row<Vm>, env: &Row<Env>) -> Result<(), MetaError> {
        let id = vm.value.id;
        let turn = lock(&self.turns[env.value.id.0 as usize % TURNS]);
        self.write(&self.envs, env.value.id, env, &names::env_meta(env.value.id))?;
        drop(turn);
        let latest = names::latest_meta(id);
        if !self.write(&self.vms, id, vm, &latest)? {
            return Ok(());
        }
        let mut keep: Vec<&Path> =
            vm.value.snapshots.values().map(|snapshot| snapshot.meta_path.as_path()).collect();
        keep.push(&latest);
        self.metas.keep_only(id, &keep)
    }

    /// Writes the meta of a disk that outlives its Vm.
    pub(crate) fn keep(&self, image: &KeptImage) -> Result<(), MetaError> {
        self.metas.write(&names::image_meta(image.id), image)
    }

    /// Removes the metas of a Vm that goes; its record goes after them.
    pub(crate) fn forget(&self, id: VmId) -> Result<(), MetaError> {
        lock(&self.vms).remove(&id);
        self.metas.remove_all(id)
    }

    /// Removes the meta of an Env that is gone.
    pub(crate) fn forget_env(&self, id: EnvId) -> Result<(), MetaError> {
        lock(&self.envs).remove(&id);
        self.metas.remove(&names::env_meta(id))
    }

    /// Whether it had to look at the file.
    fn write<K: Copy + Eq + Hash, T: Serialize + DeserializeOwned + PartialEq>(
        &self,
        known: &Mutex<HashMap<K, Revision>>,
        id: K,
        row: &Row<T>,
        path: &Path,
    ) -> Result<bool, MetaError> {
        let revision = lock(known).get(&id).copied();
        if revision == Some(row.revision) {
            return Ok(false);
        }
        // A daemon that has just started finds most of them as they should be.
        let is_there = revision.is_none() && self.metas.read(path).is_ok_and(|t: T| t == row.value);
        if !is_there {
            self.metas.write(path, &row.value)?;
        }
        lock(known).insert(id, row.revision);
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
