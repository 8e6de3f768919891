//! `tt recover`: rebuilds a lost or damaged store from the metas beside the disks. No daemon may
//! run meanwhile; the next one finds the guests that do.

use super::{DaemonError, catalogue, prepare_directories};
use crate::config::Config;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tt_host::{Clock, Metas, Recovered, SystemClock};
use tt_model::Layout;
use tt_store::StoreError;
use tt_store::sqlite::SqliteKv;
use tt_store::tables::Tables;

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// What the store holds now.
    pub recovered: Recovered,
    /// Where the damaged store was put, if there was one.
    pub moved_to: Option<PathBuf>,
}

/// Rebuilds the store. `is_lenient`: without what damaged metas describe.
///
/// # Errors
/// Nothing is changed then, except that a damaged store may have been put aside.
pub fn run(config: &Config, is_lenient: bool) -> Result<Report, DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::Privilege);
    }
    prepare_directories(config)?;
    let (kv, moved_to) = open(&config.data_dir.join("store"))?;
    let tables = Tables::new(Arc::new(kv));
    let instance = super::register::instance(&config.data_dir)?;
    let (data, run) = (config.data_dir.clone(), config.run_dir.clone());
    let metas = Metas::new(&Layout { data, run, instance });
    let templates = catalogue(config).list()?;
    let recovered = tt_host::recover(&tables, &metas, &templates, is_lenient)?;
    Ok(Report { recovered, moved_to })
}

/// Opens the store, or a new one in the place of one that can not be read.
fn open(dir: &Path) -> Result<(SqliteKv, Option<PathBuf>), DaemonError> {
    match SqliteKv::open(dir) {
        Err(StoreError::Damaged { .. }) => {
            let moved_to = dir.with_extension(format!("damaged-{}", SystemClock.now()));
            let failed = |source| DaemonError::Prepare { path: moved_to.clone(), source };
            std::fs::rename(dir, &moved_to).map_err(failed)?;
            Ok((SqliteKv::open(dir)?, Some(moved_to)))
        }
        opened => Ok((opened?, None)),
    }
}
