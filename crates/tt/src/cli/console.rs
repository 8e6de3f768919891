//! `tt console`: the serial console of a guest on the local terminal.

use super::Context;
use super::error::{CliError, Exit};
use super::output::print;
use super::target::VmTarget;
use super::terminal::{Caught, RawMode, Signals, read_stdin};
use clap::Args;
use tokio::task::block_in_place;
use tt_api::client::ConsoleReceiver;

/// What Ctrl-] sends, as in telnet(1).
const DETACH: u8 = 0x1d;

/// Arguments of `tt console`.
#[derive(Args, Debug)]
pub struct ConsoleArgs {
    /// Which Vm
    #[arg(value_name = "ENV/VM")]
    vm: VmTarget,
}

/// Joins the terminal to the console until Ctrl-] or the end of either.
///
/// # Errors
/// If the daemon refuses, or is lost.
pub async fn run(context: &Context, args: ConsoleArgs) -> Result<Exit, CliError> {
    let console = context.client.console(&args.vm.env, &args.vm.vm).await?;
    let (mut sender, receiver) = console.split();
    context.output.note(&format!("console of {}; leave it with Ctrl-]", args.vm));
    let mut signals = Signals::catch()?;
    let raw = RawMode::enter()?;
    let mut input = read_stdin();
    let feeder = async {
        while let Some(bytes) = input.recv().await {
            let (keys, is_left) = until_detached(&bytes);
            if sender.send(keys).await.is_err() {
                // The console is gone; the receiver tells why.
                std::future::pending::<()>().await;
            }
            if is_left {
                break;
            }
        }
    };
    let ended = async {
        loop {
            if let Caught::Forward(number) | Caught::End(number) = signals.next().await {
                return number;
            }
        }
    };
    let end = tokio::select! {
        end = pump(receiver) => end.map(|()| Exit::DONE),
        () = feeder => Ok(Exit::DONE),
        number = ended => Ok(Exit::of_signal(number)),
    };
    drop(raw);
    context.output.note("\nleft the console");
    end
}

async fn pump(mut receiver: ConsoleReceiver) -> Result<(), CliError> {
    while let Some(bytes) = receiver.receive().await? {
        block_in_place(|| print(&bytes))?;
    }
    Ok(())
}

/// The keys before Ctrl-], and whether it was there.
fn until_detached(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.iter().position(|byte| *byte == DETACH) {
        Some(place) => (&bytes[..place], true),
        None => (bytes, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_before_the_last_one_still_arrive() {
        assert_eq!(until_detached(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_detached(b"ls\r\x1dx"), (&b"ls\r"[..], true));
        assert_eq!(until_detached(b"\x1d"), (&b""[..], true));
    }
}
