//! What a machine has on the host beside its process: a directory, and cgroups. All carry its id, so that
//! looking finds them; each is made and removed by calls that may be repeated.

use crate::EngineError;
use crate::cgroup::{Cgroups, Limits};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tt_model::{Layout, VmId};

/// Below a machine's directory: its program's working directory, the only place it can write to.
pub(crate) const OWN: &str = "own";
/// Below a machine's directory: there from just before the process is made until its remains are removed.
const BEGUN: &str = "begun";
/// Below a machine's directory: its program's messages.
pub(crate) const MESSAGES: &str = "messages";
/// How much of the messages is read, in bytes from the end: the reason stands there, and a guest may provoke more.
const MESSAGES_BYTES_MAX: u64 = 4096;
/// Directories that machines' users pass through but do not list.
pub(crate) const PASSABLE: u32 = 0o711;

/// The things of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains<'a> {
    pub layout: &'a Layout,
    pub groups: &'a Cgroups,
    pub id: VmId,
}

impl Remains<'_> {
    /// A file of it, made by the daemon.
    pub fn file(&self, name: &str) -> PathBuf {
        self.layout.vm_dir(self.id).join(name)
    }

    /// A file of it, made by its program.
    pub fn own(&self, name: &str) -> PathBuf {
        self.file(OWN).join(name)
    }

    /// Its processes.
    pub fn pids(&self) -> Result<Vec<u32>, EngineError> {
        Ok(self.groups.pids(&self.layout.cgroup(self.id))?.unwrap_or_default())
    }

    /// Whether there is anything of it.
    pub fn exist(&self) -> Result<bool, EngineError> {
        Ok(self.layout.vm_dir(self.id).exists()
            || self.groups.pids(&self.layout.cgroup(self.id))?.is_some())
    }

    /// Whether its process was ever about to be made.
    pub fn begun(&self) -> bool {
        self.file(BEGUN).exists()
    }

    /// Notes that its process is about to be made.
    pub fn begin(&self) -> Result<(), EngineError> {
        let path = self.file(BEGUN);
        File::create(&path).map(drop).map_err(|e| make("marker", &path, e))
    }

    /// Makes its directories; answers the program's working directory, opened.
    pub fn make_dirs(&self, uid: u32) -> Result<File, EngineError> {
        let dir = self.layout.vm_dir(self.id);
        if let Some(all) = dir.parent() {
            make_dir(all, PASSABLE)?;
        }
        // The program's group may pass it, no other machine may: it holds the sockets.
        make_dir(&dir, 0o710)?;
        give(&dir, None, uid)?;
        let own = dir.join(OWN);
        make_dir(&own, 0o700)?;
        give(&own, Some(uid), uid)?;
        File::open(&own).map_err(|e| make("directory", &own, e))
    }

    /// Makes its cgroup; see [`Cgroups::create`].
    pub fn make_cgroup(&self, limits: &Limits) -> Result<Vec<File>, EngineError> {
        self.groups.create(&self.layout.cgroup(self.id), limits)
    }

    /// Makes the file `name` that a program of it writes messages to.
    pub fn make_messages(&self, name: &str) -> Result<File, EngineError> {
        let path = self.file(name);
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        options.open(&path).map_err(|e| make("message file", &path, e))
    }

    /// What its program wrote into its own directory under `name`: a file, and no more than `bytes_max` of it. The program may
    /// have put anything there, such as a link to a file of others.
    pub fn written(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, EngineError> {
        let path = self.own(name);
        let read = || {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
            let meta = file.metadata()?;
            if !meta.is_file() || meta.len() > bytes_max {
                let problem = format!("it is no file of at most {bytes_max} bytes");
                return Err(io::Error::other(problem));
            }
            let mut bytes = Vec::new();
            file.take(bytes_max).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source| EngineError::Read { path: path.clone(), source })
    }

    /// The end of the messages in the file `name`.
    pub fn messages(&self, name: &str) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.file(name))?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(MESSAGES_BYTES_MAX)))?;
            let mut bytes = Vec::new();
            file.take(MESSAGES_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Kills its processes. True if there was one.
    pub fn kill(&self) -> Result<bool, EngineError> {
        crate::process::kill_group(self.groups, &self.layout.cgroup(self.id))
    }

    /// Kills its processes, and once there is none removes everything. False if one is still ending: call again.
    pub fn clear(&self) -> Result<bool, EngineError> {
        match self.kill()? {
            true => Ok(false),
            false => self.remove(),
        }
    }

    /// The cgroup of its mould: the program that takes a copy of its memory.
    pub fn mould(&self) -> PathBuf {
        moulds(self.layout).join(self.id.to_string())
    }

    /// Removes everything, if it has no process. False if one is still ending.
    pub fn remove(&self) -> Result<bool, EngineError> {
        // First what says that there was a process, so that a removal cut short is not taken for a clean end.
        gone(fs::remove_file(self.file(BEGUN)), &self.file(BEGUN))?;
        if !self.groups.remove(&self.layout.cgroup(self.id))? {
            return Ok(false);
        }
        let dir = self.layout.vm_dir(self.id);
        gone(fs::remove_dir_all(&dir), &dir)?;
        Ok(true)
    }
}

/// Every id that has remains.
pub(crate) fn ids(layout: &Layout, groups: &Cgroups) -> Result<Vec<VmId>, EngineError> {
    let mut ids = groups.ids(&layout.cgroup_root())?;
    ids.extend(ids_in(&layout.run.join("vm"))?);
    ids.extend(groups.ids(&moulds(layout))?);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The ids that entries of `dir` are named by; other names are none of ours.
pub(crate) fn ids_in(dir: &Path) -> Result<Vec<VmId>, EngineError> {
    let read = |source| EngineError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(read)?.file_name();
        let id = name.to_str().and_then(|n| n.parse::<VmId>().ok());
        ids.extend(id.filter(|id| name.to_str() == Some(&id.to_string())));
    }
    Ok(ids)
}

/// Makes the directory that everything of machines is below.
pub(crate) fn make_run_dir(layout: &Layout) -> Result<(), EngineError> {
    make_dir(&layout.run, PASSABLE)
}

/// Removes what all machines share. To be called when no machine has remains.
pub(crate) fn close(layout: &Layout, groups: &Cgroups) {
    // Each refuses if something is left in it after all, and then has to stay.
    let _ = fs::remove_dir(layout.run.join("vm"));
    groups.close(&moulds(layout));
    groups.close(&layout.cgroup_root());
}

/// The cgroup of all moulds, relative to a controller's mount.
pub(crate) fn moulds(layout: &Layout) -> PathBuf {
    layout.cgroup_root().join("moulds")
}

/// The first directory on the way to `path` that machines' users can not pass, if there is one.
pub(crate) fn impassable(path: &Path) -> Option<PathBuf> {
    let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|m| m.mode() & 0o001 == 0);
    path.ancestors().filter(closed).last().map(Path::to_owned)
}

/// Writes a small file into a machine's directory.
pub(crate) fn note(remains: &Remains<'_>, name: &str, text: &str) -> Result<(), EngineError> {
    let path = remains.file(name);
    fs::write(&path, text).map_err(|e| make("marker", &path, e))
}

/// Listens on a socket that only the daemon's user can connect to.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, EngineError> {
    gone(fs::remove_file(path), path)?;
    let failed = |e| make("socket", path, e);
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Hands a file to a machine's user.
pub(crate) fn give(path: &Path, uid: Option<u32>, gid: u32) -> Result<(), EngineError> {
    let uid = uid.map(Uid::from_raw);
    rustix::fs::chown(path, uid, Some(Gid::from_raw(gid)))
        .map_err(|e| make("owner of", path, e.into()))
}

/// Lets a machine's user read a file of the daemon's, and nobody else.
pub(crate) fn open_to(path: &Path, uid: u32) -> Result<(), EngineError> {
    give(path, Some(0), uid)?;
    fs::set_permissions(path, Permissions::from_mode(0o440)).map_err(|e| make("mode of", path, e))
}

/// Makes a directory of this mode, if it is not there.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), EngineError> {
    let failed = |e| make("directory", path, e);
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    // The umask may have taken away what others need.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

/// Removing what is not there succeeds.
pub(crate) fn gone(removed: io::Result<()>, path: &Path) -> Result<(), EngineError> {
    match removed {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(EngineError::Remove { path: path.to_owned(), source }),
    }
}

fn make(what: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::Make { what, path: path.to_owned(), source }
}
