//! `tt ssh`: the system's `ssh` with a configuration for one guest, whose port is reached through the daemon. It knows
//! nothing of the protocol, and leaves keys, agents and files of the user's to `ssh`.

use super::Context;
use super::error::{CliError, Exit};
use super::output::print;
use super::target::VmTarget;
use super::terminal::read_stdin;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;
use tt_api::ClientError;
use tt_api::client::{ConsoleReceiver, ConsoleSender};
use tt_api::views::{EnvView, VmView};
use tt_model::ErrorCode;

/// How long a port may stay silent: a guest that is ready may still be starting its server, under emulation for long.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Pause before it is tried again.
const ANSWER_PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `tt ssh`.
#[derive(Args, Debug)]
pub struct SshArgs {
    /// Who logs in
    #[arg(short, long, default_value = "root")]
    user: String,
    /// The private key, beside those that `ssh` finds by itself
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The server's port in the guest
    #[arg(short, long, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Which Vm
    #[arg(value_name = "ENV/VM")]
    vm: VmTarget,
    /// What the guest's shell is to run, in place of a session
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Arguments of `tt proxy`.
#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// Which Vm
    #[arg(value_name = "ENV/VM")]
    vm: VmTarget,
    /// A TCP port of its guest
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// Becomes `ssh`.
///
/// # Errors
/// There is no such Vm, or no `ssh`.
pub async fn run(context: &Context, args: SshArgs, socket: &Path) -> Result<Exit, CliError> {
    let env = context.client.env(&args.vm.env).await?;
    let view = context.client.vm(&args.vm.env, &args.vm.vm).await?;
    let known_hosts = crate::config::known_hosts();
    if let Some(dir) = known_hosts.parent() {
        std::fs::create_dir_all(dir)
            .map_err(|source| CliError::System { action: "make a place for host keys", source })?;
    }
    let program = std::env::current_exe()
        .map_err(|source| CliError::System { action: "find this program", source })?;
    let alias = alias(&env, &view);
    // `ssh` runs it from wherever it likes.
    let socket = std::path::absolute(socket)
        .map_err(|source| CliError::System { action: "find the daemon's socket", source })?;
    let proxy = proxy(&program, &socket, &args.vm, args.port);
    let mut command = Command::new("ssh");
    command.args(argv(&args, &alias, &known_hosts, &proxy));
    let source = command.exec();
    Err(CliError::System { action: "start ssh (Debian, Ubuntu: `openssh-client`)", source })
}

/// Joins standard input and output to a port of a guest, for `ssh`.
///
/// # Errors
/// Nothing answers there for [`ANSWER_MAX`], or the daemon refuses.
pub async fn proxy_run(context: &Context, args: ProxyArgs) -> Result<Exit, CliError> {
    let until = Instant::now() + ANSWER_MAX;
    let connection = loop {
        match context.client.connect(&args.vm.env, &args.vm.vm, args.port).await {
            Err(ClientError::Problem(problem))
                if problem.code == ErrorCode::Agent && Instant::now() < until =>
            {
                tokio::time::sleep(ANSWER_PAUSE).await;
            }
            connection => break connection?,
        }
    };
    let (sender, receiver) = connection.split();
    tokio::select! {
        end = show(receiver) => end?,
        () = send(sender) => {}
    }
    Ok(Exit::DONE)
}

async fn show(mut receiver: ConsoleReceiver) -> Result<(), CliError> {
    while let Some(bytes) = receiver.receive().await? {
        block_in_place(|| print(&bytes))?;
    }
    Ok(())
}

async fn send(mut sender: ConsoleSender) {
    let mut input = read_stdin();
    while let Some(bytes) = input.recv().await {
        if sender.send(&bytes).await.is_err() {
            // The connection is gone; the receiver tells why.
            std::future::pending::<()>().await;
        }
    }
}

/// By what the guest's key is remembered: ids are used once by a daemon, and no two daemons make an Env of the same id in
/// the same second.
fn alias(env: &EnvView, view: &VmView) -> String {
    format!("tt-{}-{}-{}", env.env.start_timestamp, view.vm.env_id, view.vm.id)
}

/// The arguments of `ssh`. The alias stands where the host does, so that the user's configuration can name it (`tt-*`).
fn argv(args: &SshArgs, alias: &str, known_hosts: &Path, proxy: &OsStr) -> Vec<OsString> {
    let mut argv: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: &OsStr| {
        let mut text = OsString::from(name);
        text.push("=");
        text.push(value);
        argv.extend([OsString::from("-o"), text]);
    };
    option("ProxyCommand", proxy);
    // A new guest's key is taken at first sight: nobody but the daemon is between. A changed one is refused.
    option("StrictHostKeyChecking", OsStr::new("accept-new"));
    option("UserKnownHostsFile", &tokens_escaped(&configuration_quoted(known_hosts.as_os_str())));
    option("HostKeyAlias", OsStr::new(alias));
    option("CheckHostIP", OsStr::new("no"));
    option("User", OsStr::new(&args.user));
    if let Some(identity) = &args.identity {
        argv.extend([OsString::from("-i"), identity.into()]);
    }
    argv.extend([OsString::from("--"), OsString::from(alias)]);
    argv.extend(args.command.iter().map(OsString::from));
    argv
}

/// What `ssh` hands to the user's shell, behind an `exec` of its own: each word quoted, nothing left for `ssh` to expand.
fn proxy(program: &Path, socket: &Path, vm: &VmTarget, port: u16) -> OsString {
    let (vm, port) = (vm.to_string(), port.to_string());
    let words = [
        program.as_os_str(),
        OsStr::new("--socket"),
        socket.as_os_str(),
        OsStr::new("proxy"),
        OsStr::new(&vm),
        OsStr::new(&port),
    ];
    let words: Vec<Vec<u8>> = words.iter().map(|word| shell_quoted(word.as_bytes())).collect();
    tokens_escaped(OsStr::from_bytes(&words.join(&b' ')))
}

/// One word of a POSIX shell.
fn shell_quoted(word: &[u8]) -> Vec<u8> {
    let inner: Vec<&[u8]> = word.split(|byte| *byte == b'\'').collect();
    [b"'", &*inner.join(&b"'\\''"[..]), b"'"].concat()
}

/// One value of ssh_config(5).
fn configuration_quoted(value: &OsStr) -> OsString {
    let mut quoted = b"\"".to_vec();
    for byte in value.as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    OsStr::from_bytes(&quoted).to_owned()
}

/// Without what `ssh` would expand (TOKENS in ssh_config(5)).
fn tokens_escaped(text: &OsStr) -> OsString {
    let parts: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b'%').collect();
    OsStr::from_bytes(&parts.join(&b"%%"[..])).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmTarget {
        "shop/web".parse().unwrap()
    }

    #[test]
    fn the_proxy_s_words_stay_words_in_a_shell() {
        let socket = Path::new("/run/it's 100% $HOME/\"a\".sock");
        let proxy = proxy(Path::new("/opt/my tt"), socket, &vm(), 22);
        assert_eq!(
            proxy,
            r#"'/opt/my tt' '--socket' '/run/it'\''s 100%% $HOME/"a".sock' 'proxy' 'shop/web' '22'"#
        );
    }

    #[test]
    fn a_command_stays_behind_the_host() {
        let args = SshArgs {
            user: "debian".into(),
            identity: Some("/home/me/key".into()),
            port: 22,
            vm: vm(),
            command: vec!["uname".into(), "-r".into()],
        };
        let argv = argv(&args, "tt-1-2-3", Path::new("/home/me/a b%/known"), OsStr::new("P"));
        let argv: Vec<&str> = argv.iter().map(|arg| arg.to_str().unwrap()).collect();
        let end = argv.iter().position(|arg| *arg == "--").unwrap();
        assert_eq!(argv[end..], ["--", "tt-1-2-3", "uname", "-r"]);
        for wanted in [
            "ProxyCommand=P",
            "StrictHostKeyChecking=accept-new",
            "UserKnownHostsFile=\"/home/me/a b%%/known\"",
            "HostKeyAlias=tt-1-2-3",
            "User=debian",
            "/home/me/key",
        ] {
            assert!(argv[..end].contains(&wanted), "{wanted} {argv:?}");
        }
    }
}
