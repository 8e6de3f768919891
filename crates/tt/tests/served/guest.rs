//! What the test plays of a guest: programs are processes of this machine in groups of their own, files lie in a
//! directory.

use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tt_api::access::{
    BoxFuture, ByteStream, Disk, DiskForm, GuestStream, HostAccess, STREAM_QUEUE,
};
use tt_api::views::{Finding, VerifyReport};
use tt_guest::message::FailureCode;
use tt_guest::session::{FromGuest, Open, Program, ToGuest};
use tt_guest::tar::{Limits, Packer, Unpacker};
use tt_model::{Protocol, Refusal, Snapshot, Traffic, Vm, VmId, VmTemplate};

/// All guests of a host.
pub struct Guests {
    /// Where their files lie.
    pub root: PathBuf,
    /// Streams that have not ended.
    pub open: Arc<AtomicUsize>,
    /// The metas of snapshots.
    pub metas: Arc<Mutex<BTreeMap<(VmId, String), Vm>>>,
}

impl HostAccess for Guests {
    fn listening_ports(&self) -> BTreeSet<(Protocol, u16)> {
        BTreeSet::new()
    }

    fn now_unix_secs(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn random(&self, bytes: usize) -> Vec<u8> {
        vec![7; bytes]
    }

    fn open(&self, _: VmId, open: Open) -> BoxFuture<Result<GuestStream, Refusal>> {
        let (to, stdin) = channel(STREAM_QUEUE);
        let (out, from) = channel(STREAM_QUEUE);
        let root = self.root.clone();
        let open_streams = self.open.clone();
        open_streams.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            serve(open, &root, stdin, out);
            open_streams.fetch_sub(1, Ordering::SeqCst);
        });
        Box::pin(async move { Ok(GuestStream { to, from }) })
    }

    fn console(&self, _: VmId) -> BoxFuture<Result<ByteStream, Refusal>> {
        let (to, mut keys) = channel::<Vec<u8>>(STREAM_QUEUE);
        let (out, from) = channel(STREAM_QUEUE);
        thread::spawn(move || {
            let mut next = Some(b"login: ".to_vec());
            while let Some(bytes) = next {
                if out.blocking_send(bytes).is_err() {
                    break;
                }
                next = keys.blocking_recv();
            }
        });
        Box::pin(async move { Ok(ByteStream { to, from }) })
    }

    fn connect(&self, vm: &Vm, _port: u16) -> BoxFuture<Result<ByteStream, Refusal>> {
        self.console(vm.id)
    }

    fn console_log(&self, vm: VmId, tail_bytes: u64) -> Result<Vec<u8>, Refusal> {
        Ok(format!("last {tail_bytes} bytes of {vm}\n").into_bytes())
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, Refusal> {
        Ok(Traffic { sent_packets: vm.id.0, blocked_packets: 7, ..Traffic::default() })
    }

    fn frozen(&self, vm: &Vm, snapshot: &Snapshot) -> Result<Vm, Refusal> {
        Ok(self.metas.lock().unwrap()[&(vm.id, snapshot.name.clone())].clone())
    }

    fn disk(&self, template: &VmTemplate, form: DiskForm) -> Result<Disk, Refusal> {
        Ok(crate::export::disk(&template.name, form))
    }

    fn verify(&self, repair: bool) -> Result<VerifyReport, Refusal> {
        let stray = Finding {
            kind: "image".into(),
            name: "stray".into(),
            what: "images/9: no record".into(),
            id: Some(9),
        };
        let repaired = if repair { vec![stray] } else { vec![] };
        Ok(VerifyReport { repaired, ..VerifyReport::default() })
    }
}

fn serve(open: Open, root: &Path, stdin: Receiver<ToGuest>, out: Sender<FromGuest>) {
    let inside = |path: String| root.join(path.trim_start_matches('/'));
    let end = match open {
        Open::Exec(program) => exec(program, stdin, &out),
        Open::CopyIn { path, mode } => copied(copy_in(&inside(path), mode, stdin)),
        Open::CopyOut { path } => copied(copy_out(&inside(path), &out)),
    };
    // A client that is gone needs no end.
    let _ = out.blocking_send(end);
}

fn copied(outcome: Result<(), tt_guest::Error>) -> FromGuest {
    match outcome {
        Ok(()) => FromGuest::Exited { code: Some(0), signal: None },
        Err(error) => FromGuest::Failed { code: FailureCode::Io, why: error.to_string() },
    }
}

fn copy_in(
    path: &Path,
    mode: Option<u32>,
    mut stdin: Receiver<ToGuest>,
) -> Result<(), tt_guest::Error> {
    let mut unpacker = Unpacker::new(path, None, mode, Limits::NONE)?;
    while let Some(ToGuest::Data(bytes)) = stdin.blocking_recv() {
        unpacker.push(&bytes)?;
    }
    unpacker.finish()
}

fn copy_out(path: &Path, out: &Sender<FromGuest>) -> Result<(), tt_guest::Error> {
    let mut packer = Packer::new(path)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = packer.fill(&mut buffer)?;
        if count == 0 || out.blocking_send(FromGuest::Stdout(buffer[..count].to_vec())).is_err() {
            return Ok(());
        }
    }
}

fn exec(program: Program, stdin: Receiver<ToGuest>, out: &Sender<FromGuest>) -> FromGuest {
    let mut command = Command::new(&program.argv[0]);
    command.args(&program.argv[1..]).envs(program.env).process_group(0);
    command.current_dir(program.cwd.unwrap_or("/".into()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return FromGuest::Failed { code: FailureCode::NotFound, why: error.to_string() };
        }
        Err(error) => return FromGuest::Failed { code: FailureCode::Io, why: error.to_string() },
    };
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let input = child.stdin.take().unwrap();
    thread::spawn(move || take_input(stdin, input, group));
    // A client that takes no more output has given the program up.
    let kill = move || {
        // It may have ended already.
        let _ = kill_process_group(group, Signal::KILL);
    };
    let closed = out.clone();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let outputs = [
        thread::spawn({
            let out = out.clone();
            move || {
                pass(stdout, |bytes| out.blocking_send(FromGuest::Stdout(bytes)).is_ok()).then(kill)
            }
        }),
        thread::spawn({
            let out = out.clone();
            move || {
                pass(stderr, |bytes| out.blocking_send(FromGuest::Stderr(bytes)).is_ok()).then(kill)
            }
        }),
    ];
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if closed.is_closed() => kill(),
            None => thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    outputs.into_iter().for_each(|thread| drop(thread.join()));
    FromGuest::Exited { code: status.code(), signal: status.signal() }
}

/// Hands on what is read; true if nobody takes it any more.
fn pass(mut from: impl Read, send: impl Fn(Vec<u8>) -> bool) -> bool {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !send(buffer[..count].to_vec()) {
            return true;
        }
    }
    false
}

fn take_input(mut from: Receiver<ToGuest>, input: ChildStdin, group: Pid) {
    let mut input = Some(input);
    while let Some(message) = from.blocking_recv() {
        match message {
            // A program need not read its input.
            ToGuest::Data(bytes) => drop(input.as_mut().map(|input| input.write_all(&bytes))),
            ToGuest::Eof => input = None,
            ToGuest::Signal(number) => {
                let signal = Signal::from_named_raw(number).unwrap();
                // It may have ended already.
                let _ = kill_process_group(group, signal);
            }
            ToGuest::Resize { .. } => {}
        }
    }
}
