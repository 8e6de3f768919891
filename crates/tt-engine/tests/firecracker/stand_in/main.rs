//! A stand-in for Firecracker, for tests where there is no KVM: a process that is started as Firecracker is and answers its API,
//! refusals included, as version 1.15.1 does. Its guest executes nothing: it says that it is alive, and counts in its memory.
//! It is no part of the product.

mod http;
mod machine;

use machine::Machine;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The version that it answers as.
const VERSION: &str = "1.15.1";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["--version"] {
        say(&mut io::stdout(), &format!("Firecracker v{VERSION}\n"));
        return ExitCode::SUCCESS;
    }
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let (Some(id), Some(socket), Some(log)) =
        (value("--id"), value("--api-sock"), value("--log-path"))
    else {
        say(&mut io::stderr(), "Error: ParseArguments");
        return ExitCode::from(153);
    };
    let Ok(log) = OpenOptions::new().create(true).truncate(false).write(true).open(log) else {
        say(&mut io::stderr(), "Error: LoggerInitialization");
        return ExitCode::from(1);
    };
    let mut log = Log { id: id.clone(), file: log };
    log.say(&format!("Running Firecracker v{VERSION}"));
    let Ok(listener) = UnixListener::bind(&socket) else {
        log.say("RunWithApi error: Failed to open the API socket");
        say(&mut io::stderr(), &format!("Error: RunWithApi(FailedToBindSocket({socket:?}))"));
        return ExitCode::from(1);
    };
    let machine = Arc::new(Mutex::new(Machine::new(id)));
    let served = machine.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let machine = served.clone();
            thread::spawn(move || http::serve(stream, |request| lock(&machine).answer(request)));
        }
    });
    machine::live(&machine);
    log.say("Firecracker exiting successfully. exit_code=0");
    ExitCode::SUCCESS
}

fn say(to: &mut dyn Write, text: &str) {
    // Whoever started it may not listen.
    let _ = writeln!(to, "{text}");
}

/// What it says of its own life.
struct Log {
    id: String,
    file: std::fs::File,
}

impl Log {
    fn say(&mut self, text: &str) {
        // A log that can not be written is what the test then sees.
        let _ = writeln!(self.file, "2026-01-01T00:00:00.000000000 [{}:main] {text}", self.id);
    }
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}
