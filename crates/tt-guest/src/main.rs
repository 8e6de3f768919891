//! `tt-guest`, the agent: the first process of a micro guest, a service in a full one. It trusts the host, and takes its
//! orders only from the channel.

mod agent;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::Options;

const USAGE: &str =
    "usage: tt-guest [--port PATH | --unix PATH] [--no-setup] | --container | --version
  --port PATH  serve this virtio-serial port instead of the one named tt.agent.0
  --unix PATH  listen on this unix socket instead
  --container  be the first process of a container of TT's
  --no-setup   refuse to change the machine's identity, network, disk and clock
";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == tt_guest::container::ARGUMENT)
    {
        return agent::run_container();
    }
    // The kernel hands its own unknown parameters to the first process; they mean nothing here.
    if std::process::id() == 1 {
        return agent::run(Options::default());
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments == ["--version"] {
        return say(
            &mut std::io::stdout(),
            &format!("tt-guest {}\n", env!("CARGO_PKG_VERSION")),
            ExitCode::SUCCESS,
        );
    }
    match parse(arguments) {
        Some(options) => agent::run(options),
        None => say(&mut std::io::stderr(), USAGE, ExitCode::from(2)),
    }
}

fn parse(arguments: Vec<OsString>) -> Option<Options> {
    let mut options = Options::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str()? {
            "--port" => options.port = Some(PathBuf::from(arguments.next()?)),
            "--unix" => options.unix = Some(PathBuf::from(arguments.next()?)),
            "--no-setup" => options.no_setup = true,
            _ => return None,
        }
    }
    (options.port.is_none() || options.unix.is_none()).then_some(options)
}

fn say(to: &mut dyn Write, text: &str, code: ExitCode) -> ExitCode {
    match to.write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(arguments: &[&str]) -> Option<Options> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn arguments_are_checked() {
        assert!(parse_all(&[]).is_some());
        let options = parse_all(&["--unix", "/s", "--no-setup"]).unwrap();
        assert_eq!((options.unix.unwrap(), options.no_setup), (PathBuf::from("/s"), true));
        for wrong in [&["--unix"][..], &["--port", "/p", "--unix", "/s"], &["--help"], &["x"]] {
            assert!(parse_all(wrong).is_none(), "{wrong:?}");
        }
    }
}
