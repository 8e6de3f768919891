//! When a request is sent again: it came too soon, or the connection was lost. Everything else is answered to the user.

use super::error::CliError;
use super::output::Output;
use super::text::format_tenths;
use std::time::Duration;
use tt_api::ClientError;
use tt_model::ErrorCode;

/// Longest time that a request which came too soon is held back; longer ones are the user's to wait.
const TOO_SOON_MS_MAX: u64 = 5000;
/// How often a request that came too soon is repeated: others may keep the Env busy.
const TOO_SOON_REPEATS: u32 = 5;
/// How often a request whose connection was lost is repeated; with the pauses below they take 6 seconds, in which a
/// daemon is replaced by the next one.
const LOSS_REPEATS: u32 = 6;
/// Pause before the first repetition after a loss; it doubles up to [`LOSS_PAUSE_MAX`].
const LOSS_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after a loss.
const LOSS_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Sends a request, and again where it came too soon for the daemon's policy.
///
/// # Errors
/// What the last request answered.
pub async fn patiently<T>(
    output: Output,
    request: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, CliError> {
    let mut repeats = 0;
    loop {
        match request().await {
            Err(error) if repeats < TOO_SOON_REPEATS => {
                let Some(wait_ms) = too_soon(&error) else { return Err(error.into()) };
                let wait = format_tenths(wait_ms);
                output.note(&format!("too soon after the last call; trying again in {wait}"));
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                repeats += 1;
            }
            answer => return Ok(answer?),
        }
    }
}

/// Sends a request that may be repeated, and again where the connection was lost.
///
/// # Errors
/// What the last request answered.
pub async fn through_losses<T>(
    output: Output,
    request: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, CliError> {
    let mut losses = Losses::default();
    loop {
        match request().await {
            Err(error) => losses.bear(output, error).await?,
            Ok(answer) => return Ok(answer),
        }
    }
}

/// Counts lost connections in a row.
#[derive(Debug, Default)]
pub struct Losses {
    number: u32,
    had_contact: bool,
}

impl Losses {
    /// A connection came about: what is lost from now on may be found again.
    pub fn contact(&mut self) {
        *self = Self { number: 0, had_contact: true };
    }

    /// Pauses if `error` is a loss that another attempt may heal.
    ///
    /// # Errors
    /// `error`, if it is none, or if there were too many.
    pub async fn bear(&mut self, output: Output, error: ClientError) -> Result<(), CliError> {
        // A daemon that was never there is not waited for: the user may have named the wrong socket.
        let is_loss = match error {
            ClientError::Exchange { .. } => true,
            ClientError::Connect { .. } => self.had_contact,
            _ => false,
        };
        if !is_loss || self.number >= LOSS_REPEATS {
            return Err(error.into());
        }
        if self.number == 0 {
            output.note("the connection to the daemon was lost; trying again");
        }
        tokio::time::sleep((LOSS_PAUSE * (1 << self.number)).min(LOSS_PAUSE_MAX)).await;
        self.number += 1;
        self.had_contact = true;
        Ok(())
    }
}

/// How long to wait before a request that came too soon is repeated, in milliseconds.
fn too_soon(error: &ClientError) -> Option<u64> {
    let ClientError::Problem(problem) = error else { return None };
    let wait_ms = problem.retry_after_ms.filter(|wait_ms| *wait_ms <= TOO_SOON_MS_MAX);
    wait_ms.filter(|_| problem.code == ErrorCode::TooSoon)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tt_api::Problem;

    fn problem(code: ErrorCode, retry_after_ms: Option<u64>) -> ClientError {
        let text = String::new;
        let (status, retry) = (429, true);
        let problem = Problem {
            status,
            code,
            title: text(),
            detail: text(),
            remedy: None,
            retry,
            retry_after_ms,
        };
        ClientError::Problem(problem)
    }

    fn unreachable() -> ClientError {
        let source = std::io::ErrorKind::NotFound.into();
        ClientError::Connect { socket: "/x".into(), source }
    }

    const QUIET: Output = Output { json: false, quiet: true, verbose: false };

    #[test]
    fn only_what_came_too_soon_is_repeated_and_not_for_long() {
        assert_eq!(too_soon(&problem(ErrorCode::TooSoon, Some(5000))), Some(5000));
        assert_eq!(too_soon(&problem(ErrorCode::TooSoon, Some(5001))), None);
        assert_eq!(too_soon(&problem(ErrorCode::TooSoon, None)), None);
        assert_eq!(too_soon(&problem(ErrorCode::Busy, Some(1))), None);
        assert_eq!(too_soon(&unreachable()), None);
    }

    #[tokio::test]
    async fn a_request_that_came_too_soon_is_sent_again() {
        let calls = Cell::new(0);
        let answer = patiently(QUIET, async || {
            calls.set(calls.get() + 1);
            if calls.get() < 3 { Err(problem(ErrorCode::TooSoon, Some(1))) } else { Ok(7) }
        });
        assert_eq!((answer.await.unwrap(), calls.get()), (7, 3));
    }

    #[tokio::test]
    async fn patience_ends() {
        let calls = Cell::new(0);
        let answer = patiently(QUIET, async || -> Result<(), _> {
            calls.set(calls.get() + 1);
            Err(problem(ErrorCode::TooSoon, Some(0)))
        });
        assert!(answer.await.is_err());
        assert_eq!(calls.get(), 1 + TOO_SOON_REPEATS);
    }

    #[tokio::test]
    async fn a_daemon_that_was_never_there_is_not_waited_for() {
        let answer = through_losses(QUIET, async || -> Result<(), _> { Err(unreachable()) });
        assert!(answer.await.is_err());
        let mut losses = Losses::default();
        losses.contact();
        assert!(losses.bear(QUIET, unreachable()).await.is_ok());
    }
}
