//! One lock per Env: members of one Env wait for each other, different Envs go side by side.

use crate::NetworkError;
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use tt_model::EnvId;

/// Envs that may be locked at once: more than a daemon has threads.
const ENVS_MAX: usize = 1024;

/// The Envs that are locked now.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    envs: Mutex<BTreeSet<EnvId>>,
    freed: Condvar,
}

/// Lets go of the Env when dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    locks: &'a Locks,
    env: EnvId,
}

impl Locks {
    /// Waits for the Env.
    pub(crate) fn lock(&self, env: EnvId) -> Result<Locked<'_>, NetworkError> {
        let mut envs = self.envs();
        while envs.contains(&env) {
            let waited = self.freed.wait(envs);
            envs = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if envs.len() >= ENVS_MAX {
            return Err(NetworkError::KeepEnv { max: ENVS_MAX });
        }
        envs.insert(env);
        Ok(Locked { locks: self, env })
    }

    fn envs(&self) -> MutexGuard<'_, BTreeSet<EnvId>> {
        self.envs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.locks.envs().remove(&self.env);
        self.locks.freed.notify_all();
    }
}
