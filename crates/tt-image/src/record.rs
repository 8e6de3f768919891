//! A template's directory: its record and its files, checked before anything of them is used. Whoever could write there
//! may have left anything; what is no plain file of a plausible size is refused, and never read.

use crate::{CONTAINER, DISK, INITRAMFS, ImageError, KERNEL, digest, files};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tt_model::VmTemplate;
use tt_model::template::{FEATURE_CONTAINER, FEATURE_DISK, FEATURE_KERNEL};

/// Name of the record in a template's directory.
const FILE: &str = "template.json";
/// Version of the record's form.
const VERSION: u32 = 2;
/// Largest record.
const BYTES_MAX: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    template: VmTemplate,
}

/// Writes the record of a template whose files are there.
pub(crate) fn write(dir: &Path, template: &VmTemplate) -> Result<(), ImageError> {
    let record = Record { version: VERSION, template: template.clone() };
    let path = dir.join(FILE);
    let mut json =
        serde_json::to_vec_pretty(&record).map_err(|e| files::not_written(&path)(e.into()))?;
    json.push(b'\n');
    files::write(&path, &json)
}

/// Reads the record of the template in `dir`, and looks at its files.
pub(crate) fn read(dir: &Path) -> Result<VmTemplate, ImageError> {
    let path = dir.join(FILE);
    let damaged = |problem: String| ImageError::Damaged { path: path.clone(), problem };
    let meta = dir.symlink_metadata().map_err(files::not_read(dir))?;
    if !meta.is_dir() {
        return Err(damaged("its directory is none".into()));
    }
    let json = files::read(&path, BYTES_MAX)?;
    let record: Record = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    if record.version != VERSION {
        let problem = format!("it has version {}, not {VERSION}", record.version);
        return Err(damaged(problem));
    }
    let template = record.template;
    if !digest::is_digest(&template.digest) || template.path != path_of(&template.digest) {
        return Err(damaged("its digest and path do not belong together".into()));
    }
    check_files(dir, &template)?;
    Ok(template)
}

/// Where the template of that digest lies, relative to a data directory.
pub(crate) fn path_of(digest: &str) -> String {
    format!("templates/{digest}")
}

/// Names of the files of a template: those of its forms.
pub(crate) fn files_of(template: &VmTemplate) -> Vec<&'static str> {
    let forms = [
        (FEATURE_KERNEL, KERNEL),
        (FEATURE_KERNEL, INITRAMFS),
        (FEATURE_DISK, DISK),
        (FEATURE_CONTAINER, CONTAINER),
    ];
    forms.into_iter().filter(|(form, _)| template.has(form)).map(|(_, file)| file).collect()
}

fn check_files(dir: &Path, template: &VmTemplate) -> Result<(), ImageError> {
    for name in files_of(template) {
        let path = dir.join(name);
        let meta = path.symlink_metadata().map_err(files::not_read(&path))?;
        let problem = if !meta.is_file() {
            "it is no regular file"
        } else if name == DISK && meta.len().div_ceil(1 << 20) != u64::from(template.disk_size) {
            "its size is not the one in the record"
        } else {
            continue;
        };
        return Err(ImageError::Damaged { path, problem: problem.into() });
    }
    Ok(())
}
