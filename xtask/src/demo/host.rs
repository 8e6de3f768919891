//! A daemon with scratch directories, and the end of all that it made. When it is dropped, nothing of it is left, even if
//! the daemon had died.

use super::shown;
use crate::command::{Argv, is_root};
use crate::compile::Built;
use crate::failure::{Failure, Outcome};
use crate::{interrupt, say};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The name of the only Env.
const ENV: &str = "shop";
/// Boots of guests are emulated where there is no KVM, and slow on a busy machine.
const TT_LIMIT: Duration = Duration::from_secs(300);
/// The daemon looks at the host first: a probe of KVM among other things.
const START_LIMIT: Duration = Duration::from_secs(60);
/// It ends the visits under way first.
const END_LIMIT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What is shown of the daemon's log after a failure.
const LOG_LINES: usize = 60;

/// The daemon and its directories.
#[derive(Debug)]
pub struct Host {
    built: Built,
    scratch: PathBuf,
    daemon: Option<Child>,
    is_over: bool,
}

impl Host {
    /// Makes the directories.
    ///
    /// # Errors
    /// If they can not be made.
    pub fn new(built: &Built) -> Outcome<Self> {
        // It holds guests' disks: in many places the usual temporary directory is memory.
        let scratch = Path::new("/var").join("tmp").join(format!("tt-demo-{}", std::process::id()));
        fs::create_dir(&scratch).map_err(Failure::to("make", scratch.display()))?;
        let host = Self { built: built.clone(), scratch, daemon: None, is_over: false };
        // Machines' users pass it, and the umask may have taken that away.
        fs::set_permissions(&host.scratch, fs::Permissions::from_mode(0o711))
            .map_err(Failure::to("open", host.scratch.display()))?;
        Ok(host)
    }

    fn daemon_args(&self) -> Vec<OsString> {
        let dir = |name: &str| self.scratch.join(name).into_os_string();
        let agent = self.built.agent.clone().into();
        let words =
            ["--data".into(), dir("data"), "--run".into(), dir("run"), "--guest-agent".into()];
        words.into_iter().chain([agent]).collect()
    }

    /// Shows what this host can do. What is missing is only told: the daemon will say whether it can do without.
    ///
    /// # Errors
    /// If it can not be run.
    pub fn doctor(&self) -> Outcome {
        let argv = Argv::new(&self.built.tt).arg("doctor").args(self.daemon_args());
        let argv = argv.root().limit(TT_LIMIT);
        say::prompt(&argv);
        argv.look().map(|done| say::line(done.text.trim_end()))
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(&mut self) -> Outcome {
        let argv = Argv::new(&self.built.tt).arg("daemon").args(self.daemon_args()).root();
        say::prompt(format_args!("{argv} &"));
        let path = self.log();
        let open = || fs::OpenOptions::new().create(true).append(true).open(&path);
        let out = open().map_err(Failure::to("open", path.display()))?;
        let twin = out.try_clone().map_err(Failure::to("open", path.display()))?;
        let child = argv.start(|command| {
            // Ctrl-C is for the demo; the daemon is ended in good order then.
            command.stdin(Stdio::null()).stdout(out).stderr(twin).process_group(0);
        })?;
        self.daemon = Some(child);
        let start = Instant::now();
        while !self.answers()? {
            if let Some(status) = self.ended()? {
                return Err(Failure::new(format!("the daemon ended: {status}")));
            }
            if start.elapsed() > START_LIMIT || interrupt::came() {
                return Err(Failure::new("the daemon does not answer"));
            }
            sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Runs `tt` against the daemon, shows it, and returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn tt<const N: usize>(&self, args: [&str; N]) -> Outcome<String> {
        shown(&self.argv(&args))
    }

    /// Shows the last lines of the daemon's log.
    pub fn tell_log(&self) {
        say::title("the daemon's last words");
        // What a daemon of root wrote is readable for all: the file is ours.
        let text = fs::read_to_string(self.log()).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        say::line(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
    }

    /// Destroys what is there, ends the daemon, and removes its directories. A daemon that died is started again: it knows
    /// what it had made.
    ///
    /// # Errors
    /// If something stays; the first reason.
    pub fn end(&mut self) -> Outcome {
        if self.is_over {
            return Ok(());
        }
        self.is_over = true;
        let cleared = self.clear();
        let ended = self.stop();
        let removed = self.remove();
        cleared.and(ended).and(removed)
    }

    fn clear(&mut self) -> Outcome {
        if self.daemon.is_none() {
            return Ok(());
        }
        if self.ended()?.is_some() {
            self.start()?;
        }
        let there = self.argv(&["env", "show", ENV]).look()?.status.success();
        if there { self.argv(&["env", "destroy", ENV]).run() } else { Ok(()) }
    }

    fn stop(&mut self) -> Outcome {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let pid = daemon.id().to_string();
        // Where sudo stands between, it passes the signal on.
        for signal in ["-TERM", "-KILL"] {
            if matches!(daemon.try_wait(), Ok(Some(_))) {
                break;
            }
            let kill = Argv::new("kill").args([signal, &pid]).root();
            match is_root() {
                true => say::prompt(format_args!("kill {signal} {pid}")),
                false => say::prompt(format_args!("sudo kill {signal} {pid}")),
            }
            kill.run()?;
            let start = Instant::now();
            while start.elapsed() < END_LIMIT {
                match daemon.try_wait().map_err(Failure::to("wait for", "the daemon"))? {
                    Some(status) if status.success() => return Ok(()),
                    Some(status) => {
                        return Err(Failure::new(format!("the daemon ended: {status}")));
                    }
                    None => sleep(LOOK_INTERVAL),
                }
            }
        }
        Err(Failure::new("the daemon did not end when it was asked to"))
    }

    /// Never through a mount: something of the host could lie behind it.
    fn remove(&self) -> Outcome {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(Failure::to("read", "/proc/self/mountinfo"))?;
        let scratch = self.scratch.to_string_lossy();
        if let Some(line) = mounts.lines().find(|line| line.contains(&*scratch)) {
            return Err(Failure::new(format!("a mount was left below {scratch}: {line}")));
        }
        Argv::new("rm").args(["-r", "--one-file-system"]).arg(&self.scratch).root().run()
    }

    fn argv(&self, args: &[&str]) -> Argv {
        let socket = self.scratch.join("run/api.sock");
        let argv = Argv::new(&self.built.tt).args(args);
        argv.env("TT_SOCKET", socket).root().limit(TT_LIMIT)
    }

    fn answers(&self) -> Outcome<bool> {
        Ok(self.argv(&["env", "ls"]).look()?.status.success())
    }

    fn ended(&mut self) -> Outcome<Option<std::process::ExitStatus>> {
        let Some(daemon) = &mut self.daemon else { return Ok(None) };
        daemon.try_wait().map_err(Failure::to("look at", "the daemon"))
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("daemon.log")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            say::line(format_args!("while cleaning up: {failure}"));
        }
    }
}
