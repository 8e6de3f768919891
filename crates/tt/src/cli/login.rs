//! `--ssh-key` and `--user-data`: files of this machine that go to new guests. They are read here; what they may hold is
//! checked by the model.

use super::error::CliError;
use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tt_model::Refusal;
use tt_model::login::{USER_DATA_BYTES_MAX, check_ssh_keys, check_user_data};

/// Most bytes of a file that are read: somewhat more than anything that is taken, so that what is too long is said to be so.
const FILE_BYTES_MAX: u64 = 4 * USER_DATA_BYTES_MAX as u64;

/// What new guests are given.
#[derive(Args, Debug)]
pub struct LoginArgs {
    /// Let the owner of this public key log in: a `.pub` file of OpenSSH, or several keys, a line each
    #[arg(long = "ssh-key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// What cloud-init does at the first boot: `#cloud-config`, a script, or a MIME archive
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

impl LoginArgs {
    /// The keys and the user data.
    ///
    /// # Errors
    /// A file can not be read, or holds something else.
    pub fn read(&self) -> Result<(Vec<String>, Option<String>), CliError> {
        let mut keys = Vec::new();
        for path in &self.keys {
            let text = read(path)?;
            let lines =
                text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
            let found: Vec<String> = lines.map(str::to_owned).collect();
            if found.is_empty() {
                return Err(wrong(path, "it holds no key", "name a `.pub` file of OpenSSH"));
            }
            check_ssh_keys(&found).map_err(|refusal| refused(path, refusal))?;
            keys.extend(found);
        }
        let Some(path) = &self.user_data else { return Ok((keys, None)) };
        let text = read(path)?;
        check_user_data(&text).map_err(|refusal| refused(path, refusal))?;
        Ok((keys, Some(text)))
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let file = File::open(path).map(|file| file.take(FILE_BYTES_MAX));
    match file.and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(path, &format!("it can not be read: {error}"), "name a text file")),
    }
}

fn refused(path: &Path, refusal: Refusal) -> CliError {
    wrong(path, &format!("{}: {}", refusal.what, refusal.problem), &refusal.remedy)
}

fn wrong(path: &Path, problem: &str, remedy: &str) -> CliError {
    CliError::Use { problem: format!("{}: {problem}", path.display()), remedy: remedy.to_owned() }
}
