//! Disks of containers. What a disk begins with is an image of Docker's, under a name that says whose it is; what is
//! written over that is in the container of the same name, which the engine makes. A frozen disk is an image alone: a
//! snapshot is a commit, and what is made from it begins with that image.
//!
//! Beside each disk lies an empty file in the data directory, where other back ends have the disk itself: what there is of
//! a Vm is known, and nothing is taken for lost, while Docker is away. It never removes a container that has a process.

mod marks;

use crate::images::files::space;
use crate::layers::{missing, parse_name};
use crate::{RESERVE_MB, Space, Storage, StorageError};
use marks::Marks;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use tt_docker::{Docker, DockerError, Listed};
use tt_model::names::{DOCKER_TEMPLATE_TAG, LABEL_EPOCH, LABEL_VM};
use tt_model::names::{docker_tag, parse_docker_tag, runtime_image};
use tt_model::{Layout, Snapshot, SnapshotState, StorageKind, Vm, VmId};

/// Name of a template's image in its directory.
const TEMPLATE_IMAGE: &str = "container.tar";

/// See the module.
#[derive(Debug)]
pub(crate) struct Images {
    layout: Layout,
    docker: Arc<Docker>,
    /// A template is taken in once.
    loading: Mutex<()>,
}

impl Images {
    pub(crate) fn new(layout: Layout, docker: Arc<Docker>) -> Self {
        Self { layout, docker, loading: Mutex::new(()) }
    }

    fn marks(&self, id: VmId) -> Marks<'_> {
        Marks::of(&self.layout, id)
    }

    fn path(&self, id: VmId, epoch: u32) -> PathBuf {
        self.layout.data.join(runtime_image(StorageKind::Docker, id, epoch))
    }

    fn lost(&self, id: VmId, epoch: u32) -> StorageError {
        StorageError::Lost { path: self.path(id, epoch) }
    }

    /// Gives the image `from` the name of a disk.
    fn name(&self, from: &str, id: VmId, epoch: u32) -> Result<(), StorageError> {
        let tag = docker_tag(id, epoch);
        Ok(self.docker.tag(from, &self.layout.docker_repo(), &tag)?)
    }

    /// Whether a disk is there and complete.
    fn has(&self, id: VmId, epoch: u32) -> Result<bool, StorageError> {
        if !self.marks(id).has(epoch) {
            return Ok(false);
        }
        Ok(self.docker.image(&self.layout.docker_image(id, epoch))?.is_some()
            || self.docker.container(&self.layout.container(id, epoch))?.is_some())
    }

    /// The image that the disk of `vm` in `epoch` begins with.
    fn source(&self, vm: &Vm, epoch: u32) -> Result<String, StorageError> {
        if let Some(parent) = vm.disks.get(&epoch).and_then(|disk| disk.parent) {
            return Ok(self.layout.docker_image(vm.id, parent));
        }
        let Some(base) = &vm.base else { return self.template(vm) };
        let named = parse_name(base).filter(|(_, _, kind)| *kind == StorageKind::Docker);
        let (id, epoch, _) = named.ok_or_else(|| StorageError::CheckName {
            path: base.clone(),
            right: "images/ID/EPOCH.docker".to_owned(),
        })?;
        Ok(self.layout.docker_image(id, epoch))
    }

    /// The image of the template, taken in if need be.
    fn template(&self, vm: &Vm) -> Result<String, StorageError> {
        let name = self.layout.docker_template(&vm.template.digest);
        if self.docker.image(&name)?.is_none() {
            // Whoever else wants one looks again later: taking one in may take minutes, and visits are made by few.
            let _alone = match self.loading.try_lock() {
                Ok(alone) => alone,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Err(StorageError::NotYet { name }),
            };
            if self.docker.image(&name)?.is_some() {
                return Ok(name);
            }
            let archive = self.layout.template(vm).join(TEMPLATE_IMAGE);
            let loaded = self.docker.load(&archive).map_err(|error| match error {
                DockerError::UseFile { path, source, .. } => {
                    StorageError::OpenTemplate { path, source }
                }
                error => error.into(),
            })?;
            let tag = format!("{DOCKER_TEMPLATE_TAG}{}", vm.template.digest);
            self.docker.tag(&loaded, &self.layout.docker_repo(), &tag)?;
            if !loaded.starts_with("sha256:") && loaded != name {
                // A name of the archive's own is nobody's.
                self.docker.untag(&loaded)?;
            }
        }
        Ok(name)
    }

    /// Makes the runtime image, which is not there, and before it what is missing of what it is made from.
    fn create(&self, vm: &Vm) -> Result<(), StorageError> {
        let is_there = |epoch| self.has(vm.id, epoch);
        for epoch in missing(vm, is_there, |epoch| self.lost(vm.id, epoch))? {
            if self.marks(vm.id).has(epoch) {
                // It was complete once, and is not made again with another content.
                return Err(self.lost(vm.id, epoch));
            }
            self.reserve(vm.id, epoch)?;
            let from = self.source(vm, epoch)?;
            if self.docker.image(&from)?.is_none() {
                let path = self.layout.data.join(from);
                return Err(StorageError::OpenDisk {
                    path,
                    source: io::ErrorKind::NotFound.into(),
                });
            }
            self.marks(vm.id).begin(epoch)?;
            self.name(&from, vm.id, epoch)?;
            self.marks(vm.id).complete(epoch)?;
        }
        Ok(())
    }

    /// Refuses what would leave too little room where Docker keeps its layers.
    fn reserve(&self, id: VmId, epoch: u32) -> Result<(), StorageError> {
        let free_mb = self.space()?.free_mb;
        if free_mb < RESERVE_MB {
            let path = self.path(id, epoch);
            return Err(StorageError::NoSpace { path, need_mb: RESERVE_MB, free_mb });
        }
        Ok(())
    }

    /// What `vm` holds now, as the image of the disk `epoch`.
    fn freeze(&self, vm: &Vm, epoch: u32) -> Result<(), StorageError> {
        self.reserve(vm.id, epoch)?;
        let container = self.layout.container(vm.id, vm.epoch);
        if self.docker.container(&container)?.is_none() {
            return self.name(&self.layout.docker_image(vm.id, vm.epoch), vm.id, epoch);
        }
        let tag = docker_tag(vm.id, epoch);
        Ok(self.docker.commit(&container, &self.layout.docker_repo(), &tag)?)
    }

    /// The containers of a Vm.
    fn containers(&self, id: VmId) -> Result<Vec<Listed>, DockerError> {
        self.docker.containers(&[self.layout.docker_label(), format!("{LABEL_VM}={id}")])
    }

    /// The names of all images of this daemon's, without the repository.
    fn tags(&self) -> Result<Vec<String>, DockerError> {
        let repo = self.layout.docker_repo();
        let images = self.docker.images(&repo)?;
        let names = images.into_iter().flat_map(|image| image.repo_tags.unwrap_or_default());
        let tags =
            names.filter_map(|name| Some(name.strip_prefix(&repo)?.strip_prefix(':')?.to_owned()));
        Ok(tags.collect())
    }

    /// Removes disks of a Vm, complete or not, but those in `stay`; what has a process is left to a later call.
    fn keep_only(&self, id: VmId, stay: &BTreeSet<u32>) -> Result<(), StorageError> {
        for epoch in self.marks(id).all()?.difference(stay) {
            self.remove(id, *epoch)?;
        }
        Ok(())
    }

    /// Removes one disk. False if its container has a process.
    fn remove(&self, id: VmId, epoch: u32) -> Result<bool, StorageError> {
        match self.docker.remove(&self.layout.container(id, epoch)) {
            Err(error) if error.is_conflict() => return Ok(false),
            removed => removed?,
        }
        self.docker.untag(&self.layout.docker_image(id, epoch))?;
        self.marks(id).remove(epoch)?;
        Ok(true)
    }

    fn check_name(&self, vm: &Vm, name: &str, epoch: u32) -> Result<(), StorageError> {
        let right = runtime_image(StorageKind::Docker, vm.id, epoch);
        if name == right {
            return Ok(());
        }
        Err(StorageError::CheckName { path: name.to_owned(), right })
    }

    /// The disk of a snapshot; refuses a record that names another one, or the runtime image.
    fn snapshot_epoch(&self, vm: &Vm, snapshot: &Snapshot) -> Result<u32, StorageError> {
        let epoch = snapshot.epoch.filter(|epoch| *epoch != vm.epoch).unwrap_or(vm.next_epoch);
        self.check_name(vm, &snapshot.path, epoch)?;
        Ok(epoch)
    }
}

impl Storage for Images {
    fn kind(&self) -> StorageKind {
        StorageKind::Docker
    }

    fn create_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.check_name(vm, &vm.runtime_image, vm.epoch)?;
        if self.has(vm.id, vm.epoch)? { Ok(()) } else { self.create(vm) }
    }

    fn create_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        let epoch = self.snapshot_epoch(vm, snapshot)?;
        if snapshot.state != SnapshotState::Wanted {
            return if self.has(vm.id, epoch)? { Ok(()) } else { Err(self.lost(vm.id, epoch)) };
        }
        self.create_image(vm)?;
        self.marks(vm.id).begin(epoch)?;
        // What another try left has this name.
        self.docker.untag(&self.layout.docker_image(vm.id, epoch))?;
        self.freeze(vm, epoch)?;
        self.marks(vm.id).complete(epoch)
    }

    fn sync_disk(&self, vm: &Vm, epoch: u32) -> Result<(), StorageError> {
        if !self.has(vm.id, epoch)? {
            return Err(self.lost(vm.id, epoch));
        }
        let root = PathBuf::from(self.docker.info()?.docker_root_dir);
        let failed = |source| StorageError::Sync { path: root.clone(), source };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&root, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        // Which files a layer consists of is the driver's own to know.
        rustix::fs::syncfs(dir).map_err(|e| failed(e.into()))
    }

    fn apply_snapshot(&self, vm: &Vm, snapshot: &Snapshot) -> Result<(), StorageError> {
        let epoch = self.snapshot_epoch(vm, snapshot)?;
        self.check_name(vm, &vm.runtime_image, vm.epoch)?;
        if !self.has(vm.id, vm.epoch)? && !self.has(vm.id, epoch)? {
            return Err(self.lost(vm.id, epoch));
        }
        self.create_image(vm)
    }

    fn destroy_snapshot(&self, vm: &Vm) -> Result<(), StorageError> {
        self.keep_only(vm.id, &vm.epochs().collect())
    }

    fn keep_image(&self, vm: &Vm) -> Result<bool, StorageError> {
        self.check_name(vm, &vm.runtime_image, vm.epoch)?;
        if !self.has(vm.id, vm.epoch)? {
            if vm.disks.get(&vm.epoch).is_none_or(|disk| disk.parent.is_none()) {
                self.remove_stray(vm.id)?;
                return Ok(false);
            }
            self.create(vm)?;
        }
        let container = self.layout.container(vm.id, vm.epoch);
        if self.docker.container(&container)?.is_some() {
            self.freeze(vm, vm.epoch)?;
            self.docker.remove(&container)?;
        }
        self.keep_only(vm.id, &BTreeSet::from([vm.epoch]))?;
        Ok(true)
    }

    fn export(
        &self,
        layers: &[String],
        to: &File,
        goes_on: &dyn Fn(u64, u64) -> bool,
    ) -> Result<(), StorageError> {
        let path = self.layout.data.join(layers.concat());
        let (id, epoch) = match layers {
            [layer] => parse_name(layer).map(|(id, epoch, _)| (id, epoch)),
            _ => None,
        }
        .ok_or_else(|| StorageError::CheckName {
            path: layers.concat(),
            right: "images/ID/EPOCH.docker".to_owned(),
        })?;
        let name = self.layout.docker_image(id, epoch);
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let image = self.docker.image(&name)?;
        let image =
            image.ok_or_else(|| StorageError::OpenDisk { path: path.clone(), source: absent() })?;
        // The archive is a little more than what is in it.
        let goes_on = |done: u64| goes_on(done, done.max(image.size));
        match self.docker.save(&name, &mut &*to, &goes_on) {
            Err(DockerError::UseFile { source, .. }) => Err(StorageError::Export { path, source }),
            saved => Ok(saved?),
        }
    }

    fn destroy_image(&self, vm: &Vm) -> Result<(), StorageError> {
        self.remove_stray(vm.id)
    }

    fn images(&self) -> Result<Vec<VmId>, StorageError> {
        let mut ids = marks::ids(&self.layout)?;
        match self.tags() {
            Ok(tags) => {
                ids.extend(tags.iter().filter_map(|tag| parse_docker_tag(tag)).map(|(id, _)| id))
            }
            // What is there is known by its marks; and a Docker that is no use must not hold up who looks for what is left
            // of all back ends.
            Err(error) => tracing::debug!(%error, "images are not listed"),
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn remove_stray(&self, id: VmId) -> Result<(), StorageError> {
        let marks = self.marks(id);
        let containers = match self.containers(id) {
            // Without a mark there is nothing of this back end's, as far as anybody knows.
            Err(_) if marks.all()?.is_empty() => return Ok(()),
            containers => containers?,
        };
        let epochs = containers.iter().filter_map(|c| c.label(LABEL_EPOCH)?.parse().ok());
        let mut epochs: BTreeSet<u32> = epochs.collect();
        epochs.extend(marks.all()?);
        let tags = self.tags()?;
        let named = tags.iter().filter_map(|tag| parse_docker_tag(tag));
        epochs.extend(named.filter(|(of, _)| *of == id).map(|(_, epoch)| epoch));
        for epoch in epochs {
            if !self.remove(id, epoch)? {
                let source = io::Error::from(io::ErrorKind::ResourceBusy);
                return Err(StorageError::Destroy { path: self.path(id, epoch), source });
            }
        }
        marks.remove_dir()
    }

    fn collect_templates(&self, in_use: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        // One that is away, or no use, is asked again by the next sweep.
        let Ok(tags) = self.tags() else { return Ok(()) };
        for tag in tags {
            if let Some(digest) = tag.strip_prefix(DOCKER_TEMPLATE_TAG)
                && !in_use(digest)
            {
                self.docker.untag(&format!("{}:{tag}", self.layout.docker_repo()))?;
            }
        }
        Ok(())
    }

    fn space(&self) -> Result<Space, StorageError> {
        let root = self.docker.info()?.docker_root_dir;
        space(Path::new(&root))
    }
}
