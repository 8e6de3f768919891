//! The fake's disk: images that know where their content comes from, and the writes of fake machines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::{StorageKind, VmId};

/// What a layered image takes of the disk, in MB.
const LAYER_MB: u64 = 1;

/// One image of the fake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeImage {
    /// Its size, in MB (2^20 bytes).
    pub size_mb: u32,
    /// Digest of the template that it was once cloned from.
    pub digest: String,
    /// Its format.
    pub kind: StorageKind,
    /// What it lies on, if it is layered and does not lie on a template.
    pub under: Option<(VmId, u32)>,
    /// The content that it was made with, if it lies on nothing.
    pub origin: u64,
    /// What was written since, each layer's as one number; a merge has those of both.
    pub written: Vec<u64>,
    /// Whether it has its name; otherwise it is what an interrupted create left.
    pub complete: bool,
    /// Whether no machine may open it for writing: a layer lies on it, or it is a snapshot or a kept image.
    pub frozen: bool,
    /// Whether it survives a power loss as it is.
    pub synced: bool,
}

/// What is on the fake's disk. It outlives a [`FakeStorage`](super::FakeStorage), as a disk outlives a daemon.
#[derive(Debug)]
pub struct FakeDisk {
    total_mb: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: BTreeMap<VmId, BTreeMap<u32, FakeImage>>,
    /// Which image a machine has open.
    open: BTreeMap<VmId, u32>,
    /// How many writes there were: each one is another content.
    writes: u64,
}

impl FakeDisk {
    /// An empty disk of `total_mb` MB (2^20 bytes).
    #[must_use]
    pub fn new(total_mb: u64) -> Arc<Self> {
        Arc::new(Self { total_mb, state: Mutex::default() })
    }

    /// All images of a Vm by epoch, half-done ones too.
    #[must_use]
    pub fn images_of(&self, id: VmId) -> BTreeMap<u32, FakeImage> {
        self.lock().images.get(&id).cloned().unwrap_or_default()
    }

    /// Whether nothing is left on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().images.is_empty()
    }

    /// What a disk is, as one number: equal for equal contents. `None` if it, or what it lies on, is not there.
    #[must_use]
    pub fn content(&self, id: VmId, epoch: u32) -> Option<u64> {
        self.lock().content(id, epoch)
    }

    /// A machine writes into its disk, which is another one afterwards. Answers whether there was such a disk.
    pub fn write(&self, id: VmId, epoch: u32) -> bool {
        let mut state = self.lock();
        state.writes += 1;
        let stamp = state.writes;
        let Some(image) = state.image(id, epoch).filter(|image| image.complete) else {
            return false;
        };
        image.add(stamp);
        image.synced = false;
        true
    }

    /// Every machine is gone, and whatever was not synced is something else.
    pub fn lose_power(&self) {
        let mut state = self.lock();
        state.open.clear();
        state.writes += 1;
        let stamp = state.writes;
        for image in state.images.values_mut().flat_map(BTreeMap::values_mut) {
            if !image.synced {
                image.add(stamp);
                image.synced = true;
            }
        }
    }

    /// A machine opens its disk in place of the one that it has open. While it is open, only its engine can grow it.
    pub fn open(&self, id: VmId, epoch: u32) {
        self.lock().open.insert(id, epoch);
    }

    /// The machine of a Vm is gone.
    pub fn close(&self, id: VmId) {
        self.lock().open.remove(&id);
    }

    /// An engine grows a disk that its machine has open; it never shrinks one.
    pub fn grow(&self, id: VmId, epoch: u32, size_mb: u32) {
        if let Some(image) = self.lock().image(id, epoch) {
            image.size_mb = image.size_mb.max(size_mb);
        }
    }

    pub(super) fn is_open(&self, id: VmId, epoch: u32) -> bool {
        self.lock().open.get(&id) == Some(&epoch)
    }

    /// An image that is complete.
    pub(super) fn get(&self, id: VmId, epoch: u32) -> Option<FakeImage> {
        self.lock().image(id, epoch).filter(|image| image.complete).cloned()
    }

    pub(super) fn change(&self, id: VmId, epoch: u32, change: impl FnOnce(&mut FakeImage)) {
        if let Some(image) = self.lock().image(id, epoch) {
            change(image);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn total_mb(&self) -> u64 {
        self.total_mb
    }

    pub(super) fn free_mb(&self) -> u64 {
        let state = self.lock();
        let taken: u64 = state.images.values().flat_map(BTreeMap::values).map(room_mb).sum();
        self.total_mb.saturating_sub(taken)
    }
}

impl FakeImage {
    /// Another write, which is lost among the earlier ones.
    fn add(&mut self, stamp: u64) {
        match self.written.last_mut() {
            Some(written) => *written = mix(*written, stamp),
            None => self.written.push(mix(0, stamp)),
        }
    }
}

impl State {
    fn image(&mut self, id: VmId, epoch: u32) -> Option<&mut FakeImage> {
        self.images.get_mut(&id)?.get_mut(&epoch)
    }

    fn content(&self, id: VmId, epoch: u32) -> Option<u64> {
        let image = self.images.get(&id)?.get(&epoch).filter(|image| image.complete)?;
        let below = match image.under {
            Some((id, epoch)) => self.content(id, epoch)?,
            None => image.origin,
        };
        Some(image.written.iter().fold(below, |content, written| mix(content, *written)))
    }
}

/// What an image takes of the disk, in MB.
pub(super) fn room_mb(image: &FakeImage) -> u64 {
    if image.kind.is_layered() { LAYER_MB } else { image.size_mb.into() }
}

/// The content of a template.
pub(super) fn of_template(digest: &str) -> u64 {
    digest.bytes().fold(1, |number, byte| mix(number, byte.into()))
}

/// Another number for another pair, but for accidents (a step of SplitMix64); never 0.
fn mix(number: u64, other: u64) -> u64 {
    let mut z = number.rotate_left(32) ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) | 1
}
