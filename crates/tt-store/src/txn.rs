//! What is asked of a commit and what it answers. Values only; [`crate::Kv::commit`] acts on them.

use crate::Revision;

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists, whatever its revision.
    Present(String),
    /// The key exists and was last put at this revision.
    Revision(String, Revision),
}

impl Guard {
    /// The key that is looked at.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::Revision(key, _) => key,
        }
    }

    /// Whether the guard holds for a key that was last put at `mod_revision`, or does not exist.
    #[must_use]
    pub fn holds(&self, mod_revision: Option<Revision>) -> bool {
        match self {
            Self::Absent(_) => mod_revision.is_none(),
            Self::Present(_) => mod_revision.is_some(),
            Self::Revision(_, wanted) => mod_revision == Some(*wanted),
        }
    }
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Makes the key or replaces its value.
    Put(String, Vec<u8>),
    /// Removes the key; an absent key stays absent and no watcher hears of it.
    Delete(String),
}

impl Write {
    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Guards and writes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold, as the store is before the writes.
    pub guards: Vec<Guard>,
    /// What is changed, in the order watchers see it. No key twice.
    pub writes: Vec<Write>,
}

impl Txn {
    /// A transaction that asks nothing and changes nothing: it answers the store's revision.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` does not exist.
    #[must_use]
    pub fn absent(mut self, key: impl Into<String>) -> Self {
        self.guards.push(Guard::Absent(key.into()));
        self
    }

    /// Only if `key` exists.
    #[must_use]
    pub fn present(mut self, key: impl Into<String>) -> Self {
        self.guards.push(Guard::Present(key.into()));
        self
    }

    /// Only if `key` was last put at `mod_revision`.
    #[must_use]
    pub fn revision(mut self, key: impl Into<String>, mod_revision: Revision) -> Self {
        self.guards.push(Guard::Revision(key.into(), mod_revision));
        self
    }

    /// Makes `key` or replaces its value.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Put(key.into(), value.into()));
        self
    }

    /// Removes `key` if it exists.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete(key.into()));
        self
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a conflict is an answer, not an error"]
pub enum Outcome {
    /// It happened at this revision; without a change, the revision that the guards held at.
    Done(Revision),
    /// Nothing happened: a guard does not hold.
    Conflict {
        /// The key of the first guard, in the order given, that does not hold.
        key: String,
    },
}
