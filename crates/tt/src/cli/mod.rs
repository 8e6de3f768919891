//! The command line: one file for each noun. It reads arguments, asks the daemon, and prints what it answers; it decides
//! nothing about Envs, and touches nothing of the host.

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use error::{CliError, Exit};
use output::{Output, print};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tt_api::Client;

mod console;
mod cp;
mod daemon;
mod doctor;
mod env;
mod env_create;
mod error;
mod exec;
mod exec_all;
mod host;
mod image;
mod lines;
mod login;
mod output;
mod patience;
mod progress;
mod recover;
mod registry;
mod snapshot;
mod ssh;
mod target;
mod template;
mod template_export;
mod terminal;
mod text;
mod verify;
mod vm;
mod vm_change;
mod vm_spec;
mod wait;

/// Disposable workspaces of virtual machines: sets of Vms that live, stop and end together.
#[derive(Debug, Parser)]
#[command(name = "tt", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Where options that every command takes stand in its help.
const GLOBAL: &str = "Global options";

/// What every command takes.
#[derive(Args, Debug)]
struct Globals {
    /// The daemon's socket [env: TT_SOCKET] [default: /run/tt/api.sock]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// Print results and errors only
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    quiet: bool,
    /// Print each step on a line of its own
    #[arg(short, long, global = true, help_heading = GLOBAL, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve this host
    Daemon(daemon::DaemonArgs),
    /// Say what this host can do, and what to install for the rest
    Doctor(doctor::DoctorArgs),
    /// Rebuild a lost or damaged store from what lies beside the disks; no daemon may run
    Recover(recover::RecoverArgs),
    /// Print a script that completes command lines in a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    #[command(flatten)]
    Ask(AskCommand),
}

/// Commands that ask the daemon.
#[derive(Debug, Subcommand)]
enum AskCommand {
    /// Compare the host with the records
    Verify(verify::VerifyArgs),
    /// Print the versions of this program and of the daemon
    Version,
    /// Envs: sets of Vms that live, stop and end together
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Vms: the members of Envs
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Run a program in a Vm
    ///
    /// The exit code is the program's; 128 and the signal's number if one ended it; 127 if there is no such program, 126
    /// if it can not be run, 125 if TT failed.
    Exec(exec::ExecArgs),
    /// Use the serial console of a Vm
    Console(console::ConsoleArgs),
    /// Log in to a Vm by SSH, through the daemon, whatever is published
    ///
    /// Runs the system's `ssh`, with the user's own configuration and keys beside; it sees the guest as host `tt-…`. The
    /// guest needs a server, and the key of who logs in: `--ssh-key` of `tt env create`. The exit code is that of `ssh`.
    Ssh(ssh::SshArgs),
    /// Join standard input and output to a TCP port of a guest; what `tt ssh` has `ssh` run
    #[command(hide = true)]
    Proxy(ssh::ProxyArgs),
    /// Copy a file or a directory into or out of a Vm
    ///
    /// One of SRC and DST is a path in a guest, written ENV/VM:PATH. If DST is an existing directory, the copy gets SRC's
    /// name below it; otherwise DST names the copy, and the directory above it must exist.
    Cp(cp::CpArgs),
    /// Snapshots: frozen Vms, to go back to
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Kept images: disks that outlived their Vms
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Templates: what Vms are made from
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Hosts: what carries Vms
    #[command(subcommand)]
    Host(host::HostCommand),
}

/// What commands work with.
#[derive(Clone, Debug)]
struct Context {
    /// Asks the daemon.
    client: Client,
    /// Prints.
    output: Output,
}

/// Runs the command line that the program was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Where there is no output there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::USAGE.0));
        }
    };
    let Globals { json, quiet, verbose, .. } = cli.globals;
    let output = Output { json, quiet, verbose };
    let is_exec = matches!(cli.command, Command::Ask(AskCommand::Exec(_)));
    let exit = run_to_end(cli, output).unwrap_or_else(|error| {
        error.report(output);
        if is_exec { exec::exit_of_error(&error) } else { error.exit() }
    });
    ExitCode::from(exit.0)
}

fn run_to_end(cli: Cli, output: Output) -> Result<Exit, CliError> {
    let started = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = started.map_err(|source| CliError::System { action: "start threads", source })?;
    let done = runtime.block_on(run(cli, output));
    // A thread may still wait for key strokes that nobody needs any more.
    runtime.shutdown_background();
    done
}

async fn run(cli: Cli, output: Output) -> Result<Exit, CliError> {
    let Globals { socket, .. } = cli.globals;
    match cli.command {
        Command::Daemon(args) => daemon::run(args, socket.as_deref(), output).await,
        Command::Doctor(args) => doctor::run(&args, socket.as_deref(), output),
        Command::Recover(args) => recover::run(&args, socket.as_deref(), output),
        Command::Completions { shell } => completions(shell),
        Command::Ask(command) => {
            let socket = crate::config::client_socket(socket);
            let client = Client::new(socket.clone());
            ask(&Context { client, output }, command, &socket).await
        }
    }
}

async fn ask(context: &Context, command: AskCommand, socket: &Path) -> Result<Exit, CliError> {
    match command {
        AskCommand::Verify(args) => verify::run(context, &args).await,
        AskCommand::Version => version(context).await,
        AskCommand::Env(command) => env::run(context, command).await,
        AskCommand::Vm(command) => vm::run(context, command).await,
        AskCommand::Exec(args) => exec::run(context, args).await,
        AskCommand::Console(args) => console::run(context, args).await,
        AskCommand::Ssh(args) => ssh::run(context, args, socket).await,
        AskCommand::Proxy(args) => ssh::proxy_run(context, args).await,
        AskCommand::Cp(args) => cp::run(context, args).await,
        AskCommand::Snapshot(command) => snapshot::run(context, command).await,
        AskCommand::Image(command) => image::run(context, command).await,
        AskCommand::Template(command) => template::run(context, command).await,
        AskCommand::Host(command) => host::run(context, command).await,
    }
}

async fn version(context: &Context) -> Result<Exit, CliError> {
    let version = env!("CARGO_PKG_VERSION");
    // A program without a daemon has a version too.
    let daemon = context.client.version().await;
    let both = serde_json::json!({ "version": version, "daemon": daemon.as_ref().ok() });
    context.output.result(&both, || match &daemon {
        Ok(view) => format!("tt {version}\ndaemon {} (api {})\n", view.version, view.api),
        Err(error) => format!("tt {version}\ndaemon unknown: {error}\n"),
    })?;
    Ok(Exit::DONE)
}

fn completions(shell: Shell) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tt", &mut script);
    print(&script)?;
    Ok(Exit::DONE)
}

/// The local clock in seconds since the epoch, for times that are shown relative to now.
fn now_unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
