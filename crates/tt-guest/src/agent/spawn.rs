//! Starts a program as the host asked: user, environment, directory, pipes or a terminal.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tt_guest::message::{Exec, FailureCode, Tty};

use super::process::{Identity, Processes};
use super::refusal::Refusal;
use super::stream::Stream;
use super::users::{self, User};

/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The group that owns terminals, by convention on Linux.
const TTY_GROUP: u32 = 5;

/// Our ends of a program's standard files, none of which blocks.
pub struct Ends {
    pub stdin: Option<File>,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    /// Standard input and output are a terminal's master.
    pub is_tty: bool,
}

/// Starts the program and registers it with its stream.
pub fn spawn(
    processes: &Processes,
    stream: &Arc<Stream>,
    exec: &Exec,
) -> Result<(u32, Ends), Refusal> {
    let user = find_user(exec.user.as_deref())?;
    let mut command = command(exec, &user)?;
    let ends = match &exec.tty {
        Some(tty) => attach_terminal(&mut command, stream, tty, &user)
            .map_err(|error| Refusal::io("cannot open a terminal", &error))?,
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    let identity = Identity { user: Some(user), takes_terminal: ends.is_some() };
    let told = Arc::clone(stream);
    let spawned = processes.spawn(&mut command, identity, move |exit| told.set_exit(exit));
    let mut child = spawned
        .map_err(|error| Refusal::io(&format!("cannot start {:?}", exec.argv[0]), &error))?;
    let pid = child.id();
    let _ = stream.pid.set(pid.cast_signed());
    let ends = match ends {
        Some(ends) => ends,
        None => Ends {
            stdin: child.stdin.take().map(|end| unblocked(end.into())),
            stdout: child.stdout.take().map(|end| unblocked(end.into())),
            stderr: child.stderr.take().map(|end| unblocked(end.into())),
            is_tty: false,
        },
    };
    Ok((pid, ends))
}

/// A terminal's size.
pub fn window_size(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

fn find_user(wanted: Option<&str>) -> Result<User, Refusal> {
    let wanted = wanted.unwrap_or("root");
    let found =
        users::find(wanted).map_err(|error| Refusal::io("cannot read /etc/passwd", &error))?;
    found.ok_or_else(|| {
        Refusal::new(FailureCode::NoUser, format!("no user {wanted:?} in /etc/passwd"))
    })
}

fn command(exec: &Exec, user: &User) -> Result<Command, Refusal> {
    let malformed = |why| Err(Refusal::new(FailureCode::BadMessage, why));
    let Some((program, arguments)) =
        exec.argv.split_first().filter(|(program, _)| !program.is_empty())
    else {
        return malformed("argv must name a program");
    };
    if exec.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return malformed("names of environment variables must hold a character, and no `=`");
    }
    let mut environment = BTreeMap::from([
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
    ]);
    environment.extend(exec.tty.as_ref().map(|tty| ("TERM", tty.term.as_str())));
    environment.extend(exec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(directory(exec.cwd.as_deref(), user)?);
    Ok(command)
}

/// The directory to start in; a user's home need not exist, but one that was asked for must.
fn directory<'a>(wanted: Option<&'a str>, user: &'a User) -> Result<&'a str, Refusal> {
    match wanted {
        None if Path::new(&user.home).is_dir() => Ok(&user.home),
        None => Ok("/"),
        Some(wanted) if fs::metadata(wanted).is_ok_and(|about| about.is_dir()) => Ok(wanted),
        Some(wanted) => Err(Refusal::new(
            FailureCode::BadPath,
            format!("the working directory {wanted:?} is no directory"),
        )),
    }
}

fn attach_terminal(
    command: &mut Command,
    stream: &Stream,
    tty: &Tty,
    user: &User,
) -> io::Result<Option<Ends>> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&slave, window_size(tty.rows, tty.cols))?;
    // A terminal that stays root's still works for a program that has it open already.
    let _ =
        rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(TTY_GROUP)));
    let _ = rustix::fs::fchmod(&slave, Mode::RUSR | Mode::WUSR | Mode::WGRP);
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    let _ = stream.terminal.set(master.try_clone()?);
    let input = unblocked(master);
    Ok(Some(Ends {
        stdin: Some(input.try_clone()?),
        stdout: Some(input),
        stderr: None,
        is_tty: true,
    }))
}

fn unblocked(end: OwnedFd) -> File {
    // It can only fail for a bad descriptor.
    let _ = rustix::fs::fcntl_setfl(&end, OFlags::NONBLOCK);
    File::from(end)
}
