//! How a user who is not root gets root's rights: asked for once, kept while long steps run, and what root made in the
//! user's caches given back. It keeps no password, and does nothing for root.

use crate::command::{Argv, has_program, is_root};
use crate::failure::{Failure, Outcome};
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Sudo's tickets last 15 minutes unless configured; some administrators say 5.
const RENEWAL: Duration = Duration::from_secs(60);

/// Root's rights: while it lives, `sudo` goes on to work without a password.
#[derive(Debug)]
pub struct Ticket(Option<(Sender<()>, JoinHandle<()>)>);

impl Ticket {
    /// Makes sure that root's rights can be had, before anything is done. On a terminal `sudo` may ask for a password.
    ///
    /// # Errors
    /// If they can not be had; it says what would be right.
    pub fn take() -> Outcome<Self> {
        if is_root() {
            return Ok(Self(None));
        }
        let is_terminal = std::io::stdin().is_terminal();
        if !has_program("sudo") {
            return Err(refusal(false, is_terminal));
        }
        let asks = || is_terminal && Argv::new("sudo").arg("-v").run().is_ok();
        if !works() && !asks() {
            return Err(refusal(true, is_terminal));
        }
        let renew = || {
            // Where it fails, the next program that needs root says so.
            let _ = works();
        };
        Ok(Self(Some(renew_each(RENEWAL, renew))))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            // It only sleeps and renews: there is nothing to learn from its end.
            let _ = thread.join();
        }
    }
}

fn refusal(has_sudo: bool, is_terminal: bool) -> Failure {
    let why = match (has_sudo, is_terminal) {
        (false, _) => {
            "this user is not root, and there is no `sudo`: run it as root, or install `sudo`"
        }
        (true, true) => "`sudo` refuses this user: run it as root, or let the user use `sudo`",
        (true, false) => {
            "without a terminal `sudo` must work without a password: run `sudo -v` first on the same \
             terminal, or run it as root"
        }
    };
    Failure::new(format!("root or sudo is needed: {why}"))
}

fn renew_each(
    interval: Duration,
    renew: impl Fn() + Send + 'static,
) -> (Sender<()>, JoinHandle<()>) {
    let (end, ended) = channel::<()>();
    let thread = std::thread::spawn(move || {
        while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            renew();
        }
    });
    (end, thread)
}

/// Whether root's rights are there without a password; renews them. Not by `-v`: that asks for one even where one of several rules lets
/// the user do without.
fn works() -> bool {
    Argv::new("sudo").args(["-n", "true"]).look().is_ok_and(|done| done.status.success())
}

/// Gives what root made below the user's own `dir` back to who owns `dir`.
///
/// # Errors
/// If it can not be given.
pub fn give_back(dir: &Path, names: &[&str]) -> Outcome {
    if is_root() {
        return Ok(());
    }
    let meta = std::fs::metadata(dir).map_err(Failure::to("look at", dir.display()))?;
    let paths = names.iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect();
    giving(meta.uid(), meta.gid(), paths).map_or(Ok(()), |argv| argv.root().run())
}

/// Never through symbolic links.
fn giving(uid: u32, gid: u32, paths: Vec<PathBuf>) -> Option<Argv> {
    let argv = Argv::new("chown").args(["-R", "-h", &format!("{uid}:{gid}"), "--"]);
    (!paths.is_empty()).then(|| argv.args(paths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_refusal_says_what_would_be_right() {
        let text = |has_sudo, is_terminal| refusal(has_sudo, is_terminal).to_string();
        assert!(text(false, true).contains("install `sudo`"), "{}", text(false, true));
        assert!(text(true, false).contains("run `sudo -v` first"), "{}", text(true, false));
        assert!(text(true, true).starts_with("root or sudo is needed: "), "{}", text(true, true));
    }

    #[test]
    fn renewals_end_with_their_step() {
        let renewed = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&renewed);
        let each = Duration::from_millis(1);
        let ticket = Ticket(Some(renew_each(each, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        })));
        while renewed.load(Ordering::Relaxed) < 2 {
            std::thread::sleep(each);
        }
        drop(ticket);
        assert_eq!(Arc::strong_count(&renewed), 1, "the thread still lives");
    }

    #[test]
    fn what_is_there_is_given_back_by_its_own_name() {
        let paths = vec![PathBuf::from("/cache/tmp/a"), PathBuf::from("/cache/b")];
        let argv = giving(1000, 100, paths).unwrap().to_string();
        assert_eq!(argv, "chown -R -h 1000:100 -- /cache/tmp/a /cache/b");
        assert_eq!(giving(1000, 100, Vec::new()), None);
    }
}
