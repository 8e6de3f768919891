//! Why a command failed, what to do about it, and with which code the program ends.

use super::output::Output;
use super::text::one_line;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use std::error::Error;
use std::io;
use tt_api::ClientError;
use tt_guest::message::FailureCode;
use tt_model::{ErrorCode, Trouble};

/// How the program ends: 0 done, 1 refused or failed, 2 usage; `exec` passes on the code of its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// All was done.
    pub const DONE: Self = Self(0);
    /// It was refused, or it failed.
    pub const FAILED: Self = Self(1);
    /// The command line makes no sense.
    pub const USAGE: Self = Self(2);
    /// `exec` did not get as far as its program (as env(1) does).
    pub const NO_EXEC: Self = Self(125);
    /// `exec` found its program, but the guest can not run it (as env(1) has it).
    pub const NOT_EXECUTABLE: Self = Self(126);
    /// `exec` did not find its program in the guest (as env(1) has it).
    pub const NOT_FOUND: Self = Self(127);

    /// As a shell reports a program that was ended by a signal.
    pub fn of_signal(signal: i32) -> Self {
        Self(u8::try_from(128 + signal).unwrap_or(u8::MAX))
    }
}

/// Number of the signal that a terminal's Ctrl-C sends (signal(7)).
pub const SIGINT: i32 = 2;
/// Number of the signal of a broken pipe (signal(7)).
pub const SIGPIPE: i32 = 13;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The daemon refused, or could not be asked. Whether a retry helps is said by the source.
    #[error(transparent)]
    Ask(#[from] ClientError),
    /// The daemon's configuration makes no sense; a retry does not help.
    #[error(transparent)]
    Configure(#[from] ConfigError),
    /// The daemon could not be started, or ended in disorder.
    #[error(transparent)]
    Serve(#[from] DaemonError),
    /// The command line can be read, but asks for something that can not be; a retry does not help.
    #[error("{problem}")]
    Use {
        /// What is wrong.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// The output could not be written; a retry may help.
    #[error("cannot write the output")]
    Write {
        /// What the system said.
        source: io::Error,
    },
    /// The local terminal, the clock or the like did not do as it was told; a retry may help.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The result could not be written as JSON; a defect, a retry does not help.
    #[error("cannot write the result as JSON")]
    Encode {
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// An Env was undone because one of its members failed. A retry helps if the trouble passes.
    #[error("env {env} could not be created: {vm}: {}", trouble.why)]
    Create {
        /// The Env.
        env: String,
        /// The member.
        vm: String,
        /// What went wrong with it.
        trouble: Trouble,
    },
    /// A member is in a trouble that does not pass by itself.
    #[error("{vm}: {}", trouble.why)]
    Settle {
        /// The member, as `ENV/VM`.
        vm: String,
        /// What went wrong with it.
        trouble: Trouble,
    },
    /// A template could not be made. A retry helps if the trouble passes.
    #[error("template {name} could not be made: {}", trouble.why)]
    Build {
        /// The template.
        name: String,
        /// What went wrong.
        trouble: Trouble,
    },
    /// A template could not be pushed to a registry. A retry helps if the trouble passes.
    #[error("template {name} could not be pushed: {}", trouble.why)]
    Push {
        /// The template.
        name: String,
        /// What went wrong.
        trouble: Trouble,
    },
    /// A snapshot could not be taken, and none of it is left. A retry helps if the trouble passes.
    #[error("snapshot {name} could not be taken: {vm}: {}", trouble.why)]
    Snapshot {
        /// The snapshot.
        name: String,
        /// The member, as `ENV/VM`.
        vm: String,
        /// What went wrong with it.
        trouble: Trouble,
    },
    /// What was waited for is gone.
    #[error("{what} went away meanwhile")]
    Follow {
        /// E.g. `env shop`.
        what: String,
    },
    /// The user stopped waiting.
    #[error("stopped waiting; the work goes on")]
    Interrupt {
        /// The command that shows how it stands.
        look: String,
    },
    /// The user ended what this program itself was doing.
    #[error("{what} was given up; nothing is left of it")]
    GiveUp {
        /// E.g. `the export of micro`.
        what: String,
    },
    /// A copy failed on this side.
    #[error("cannot copy {path}")]
    Copy {
        /// The local path.
        path: String,
        /// What went wrong.
        source: tt_guest::Error,
    },
    /// The guest refused or failed. Whether a retry helps is the guest's to know.
    #[error("the guest refused: {why}")]
    Guest {
        /// For a program.
        code: FailureCode,
        /// What it said.
        why: String,
    },
    /// Some of several things failed; each was said already.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// Out of how many.
        all: usize,
    },
}

impl CliError {
    /// The stable code, where there is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Ask(error) => error.code(),
            Self::Create { trouble, .. }
            | Self::Settle { trouble, .. }
            | Self::Snapshot { trouble, .. }
            | Self::Push { trouble, .. }
            | Self::Build { trouble, .. } => Some(trouble.code),
            _ => None,
        }
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Ask(ClientError::Problem(problem)) => problem.remedy.clone(),
            Self::Ask(ClientError::Connect { .. }) => {
                Some("start `tt daemon`, or name its socket with --socket or TT_SOCKET".into())
            }
            Self::Ask(error) if error.is_retryable() => Some("try again".into()),
            Self::Configure(error) => error.remedy(),
            Self::Use { remedy, .. } => Some(remedy.clone()),
            Self::Create { trouble, .. }
            | Self::Build { trouble, .. }
            | Self::Snapshot { trouble, .. } => {
                let again = if trouble.retry { "; try again" } else { "" };
                Some(format!("nothing is left of it{again}"))
            }
            Self::Push { trouble, .. } => {
                trouble.retry.then(|| "try again: what lies there already is not sent again".into())
            }
            Self::Settle { vm, .. } => Some(format!("look with: tt vm log {vm}")),
            Self::Interrupt { look } => Some(format!("look with: {look}")),
            _ => None,
        }
    }

    /// With which code the program ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Use { .. } => Exit::USAGE,
            Self::Interrupt { .. } | Self::GiveUp { .. } => Exit::of_signal(SIGINT),
            _ if self.is_broken_pipe() => Exit::of_signal(SIGPIPE),
            _ => Exit::FAILED,
        }
    }

    /// Whether the reader of the output went away (`| head`): nothing to complain of.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write { source } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Says it on standard error: the chain of causes, the remedy, the code, each once.
    pub fn report(&self, output: Output) {
        if self.is_broken_pipe() {
            return;
        }
        output.complain(&self.text());
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("error: {}", chain(self))];
        lines.extend(self.remedy().map(|remedy| format!("  {}", one_line(&remedy))));
        lines.extend(self.code().map(|code| format!("[{code}]")));
        lines.join("\n")
    }
}

/// An error with its causes, outermost first, none twice.
fn chain(error: &CliError) -> String {
    // A problem's own text has the remedy and the code in it, which get lines of their own.
    let mut parts = match error {
        CliError::Ask(ClientError::Problem(problem)) => vec![problem.detail.clone()],
        error => vec![error.to_string()],
    };
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
        next = cause.source();
    }
    // A parser of files shows the line of a mistake below its message; its line feeds are kept.
    let joined = parts.join(": ");
    joined.trim_end().lines().map(one_line).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_api::Problem;

    #[test]
    fn an_error_says_what_then_the_remedy_then_the_code() {
        let problem = Problem {
            status: 404,
            code: ErrorCode::NotFound,
            title: "The named thing does not exist.".into(),
            detail: "env `shop`: there is none".into(),
            remedy: Some("see `tt env ls`".into()),
            retry: false,
            retry_after_ms: None,
        };
        let error = CliError::from(ClientError::Problem(problem));
        assert_eq!(
            error.text(),
            "error: env `shop`: there is none\n  see `tt env ls`\n[ERR_TT_NOT_FOUND]"
        );
        assert_eq!(error.exit(), Exit::FAILED);
    }

    #[test]
    fn causes_follow_and_none_is_said_twice() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error =
            CliError::from(ClientError::Connect { socket: "/run/tt/api.sock".into(), source });
        assert_eq!(
            error.text(),
            "error: no daemon answers at /run/tt/api.sock: entity not found\n  \
             start `tt daemon`, or name its socket with --socket or TT_SOCKET"
        );
        let trouble =
            Trouble { code: ErrorCode::StartVm, why: "start: no\x1b[2J".into(), retry: true };
        let error = CliError::Create { env: "shop".into(), vm: "web".into(), trouble };
        assert_eq!(
            error.text(),
            "error: env shop could not be created: web: start: no\\u{1b}[2J\n  \
             nothing is left of it; try again\n[ERR_TT_ENGINE_START_VM]"
        );
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let broken = CliError::Write { source: io::ErrorKind::BrokenPipe.into() };
        assert_eq!(broken.exit(), Exit(141));
        assert_eq!(CliError::Interrupt { look: "tt env ls".into() }.exit(), Exit(130));
        assert_eq!(CliError::Use { problem: "a".into(), remedy: "b".into() }.exit(), Exit::USAGE);
        assert_eq!((Exit::of_signal(9), Exit::of_signal(1000)), (Exit(137), Exit(255)));
    }
}
