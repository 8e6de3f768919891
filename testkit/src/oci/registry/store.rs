//! What a registry holds: contents by digest, documents by tag, and which repository has which.

use super::super::digest;
use super::{Door, Part, Trick};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A request that it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `GET` and so on.
    pub method: String,
    /// The path, with the query.
    pub path: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `Range`.
    pub range: Option<String>,
    /// How much came with it.
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct Store {
    pub(super) address: SocketAddr,
    pub(super) door: Door,
    pub(super) tricks: Vec<(Part, Trick, usize)>,
    pub(super) asked: Vec<Asked>,
    contents: BTreeMap<String, Vec<u8>>,
    blobs: BTreeSet<(String, String)>,
    manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    uploads: u64,
}

impl Store {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            door: Door::Open,
            tricks: Vec::new(),
            asked: Vec::new(),
            contents: BTreeMap::new(),
            blobs: BTreeSet::new(),
            manifests: BTreeMap::new(),
            uploads: 0,
        }
    }

    pub(super) fn put_blob(&mut self, name: &str, blob: Vec<u8>) {
        let digest = digest(&blob);
        self.blobs.insert((name.to_owned(), digest.clone()));
        self.contents.insert(digest, blob);
    }

    pub(super) fn blob(&self, name: &str, digest: &str) -> Option<Vec<u8>> {
        let is_there = self.blobs.contains(&(name.to_owned(), digest.to_owned()));
        is_there.then(|| self.contents.get(digest).cloned()).flatten()
    }

    /// Whether another repository has it, so that this one has it now, too.
    pub(super) fn mount(&mut self, name: &str, from: &str, digest: &str) -> bool {
        let is_there = self.blobs.contains(&(from.to_owned(), digest.to_owned()));
        if is_there {
            self.blobs.insert((name.to_owned(), digest.to_owned()));
        }
        is_there
    }

    /// The number of a new upload.
    pub(super) fn upload(&mut self) -> u64 {
        self.uploads += 1;
        self.uploads
    }

    pub(super) fn put_manifest(&mut self, name: &str, tag: &str, media_type: &str, json: Vec<u8>) {
        for version in [tag.to_owned(), digest(&json)] {
            let key = (name.to_owned(), version);
            self.manifests.insert(key, (media_type.to_owned(), json.clone()));
        }
    }

    pub(super) fn manifest(&self, name: &str, version: &str) -> Option<(String, Vec<u8>)> {
        self.manifests.get(&(name.to_owned(), version.to_owned())).cloned()
    }

    /// The trick that is to be played with that part, if there is one left.
    pub(super) fn trick(&mut self, part: Part) -> Option<Trick> {
        let is_meant = |(of, _, times): &&mut (Part, Trick, usize)| *of == part && *times > 0;
        let (_, trick, times) = self.tricks.iter_mut().find(is_meant)?;
        *times = times.saturating_sub(usize::from(*times < usize::MAX));
        Some(trick.clone())
    }
}
