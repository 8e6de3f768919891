//! A daemon's surface and records, with a host that the test plays: it moves every member one step at a time towards its
//! goal. Members named `slow` wait in phase `guest` until they are hurried; one named `bad` undoes its Env; of one named
//! `full` no snapshot can be taken.

use super::guest::Guests;
use super::terminal::Session;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;
use tt_api::server::{Api, ApiConfig, router, serve};
use tt_model::env::Failure;
use tt_model::plan::{Policy, plan_take, plan_take_failed, plan_taken, plan_undo};
use tt_model::{
    EngineFacts, ErrorCode, Goal, Host, HostId, KeptImage, Phase, TemplateSource, Trouble, Usage,
    Vm, VmId, VmStatus, VmTemplate, sample,
};
use tt_store::memory::MemoryKv;
use tt_store::tables::{Change, Row, Tables, TemplateRecord};

/// How long a member rests between two steps: longer than events are held back.
const STEP: Duration = Duration::from_millis(70);

/// What a run of the program left.
pub struct Run {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Run {
    /// It failed with that code and said that.
    #[track_caller]
    pub fn fails(&self, code: i32, expected: &str) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(self.err.contains(expected), "{}", self.err);
    }
}

/// The surface, served until it is dropped.
pub struct Daemon {
    dir: tempfile::TempDir,
    tables: Tables,
    access: Arc<Guests>,
    runtime: Option<Runtime>,
    stop: Arc<AtomicBool>,
    hurry: Arc<AtomicBool>,
    host: Option<JoinHandle<()>>,
}

impl Daemon {
    /// A host with the template `micro` and nothing else.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("guest");
        std::fs::create_dir(&root).unwrap();
        let tables = Tables::new(Arc::new(MemoryKv::new()));
        let change = Change::new().host(&host()).unwrap().new_template(&micro()).unwrap();
        tables.commit(&change).unwrap();
        let (stop, hurry) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let metas = Arc::new(Mutex::new(BTreeMap::new()));
        let played = {
            let (tables, stop, hurry) = (tables.clone(), stop.clone(), hurry.clone());
            let metas = metas.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    step_all(&tables, hurry.load(Ordering::SeqCst));
                    take_all(&tables, &mut metas.lock().unwrap());
                    std::thread::sleep(STEP);
                }
            })
        };
        let access = Arc::new(Guests { root, open: Arc::new(AtomicUsize::new(0)), metas });
        let mut daemon =
            Self { dir, tables, access, runtime: None, stop, hurry, host: Some(played) };
        daemon.replace();
        daemon
    }

    /// Ends the surface at once, whatever is under way, and serves it again.
    pub fn replace(&mut self) {
        if let Some(old) = self.runtime.take() {
            old.shutdown_background();
            std::fs::remove_file(self.socket()).unwrap();
        }
        let runtime = Runtime::new().unwrap();
        let listener = {
            let _entered = runtime.enter();
            tokio::net::UnixListener::bind(self.socket()).unwrap()
        };
        let api = Api::new(ApiConfig {
            tables: self.tables.clone(),
            access: self.access.clone(),
            // Long enough that a call right after another one comes too soon wherever a second ends between them.
            policy: Policy { mgmt_interval: 2, ..Policy::default() },
            host: HostId(1),
        });
        runtime.spawn(serve(router(api), listener, std::future::pending()));
        self.runtime = Some(runtime);
    }

    /// One more template, of that name.
    pub fn add_template(&self, name: &str) {
        let mut record = micro();
        record.name = name.to_owned();
        record.template.as_mut().unwrap().name = name.to_owned();
        self.tables.commit(&Change::new().new_template(&record).unwrap()).unwrap();
    }

    /// Lets slow members go on.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::SeqCst);
    }

    /// Where the guests' files lie.
    pub fn guest_root(&self) -> &Path {
        &self.access.root
    }

    /// Waits until no stream is open in any guest: what the client gave up has ended.
    pub fn guests_are_idle(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.access.open.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < deadline, "a stream is still open");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs the program to its end.
    pub fn tt(&self, args: &[&str]) -> Run {
        self.tt_with(args, b"")
    }

    /// Runs the program to its end with that input.
    pub fn tt_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut child = self.spawn(args);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A program need not read its input.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        Run {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the program.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.spawn_with(args, Stdio::piped())
    }

    /// Starts the program with that input.
    pub fn spawn_with(&self, args: &[&str], stdin: Stdio) -> Child {
        self.command(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Starts the program on a terminal.
    pub fn on_terminal(&self, args: &[&str]) -> Session {
        Session::start(self.command(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tt"));
        command.args(args).env("TT_SOCKET", self.socket()).env("TERM", "xterm");
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(host) = self.host.take() {
            // A test that failed already must not abort by failing twice.
            drop(host.join());
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Moves every member one step. A change that others overtook is made at the next step.
fn step_all(tables: &Tables, hurry: bool) {
    for vm in tables.vms().unwrap() {
        let status = tables.status(vm.value.id).unwrap().map(|row| row.value);
        match (vm.value.goal, status.as_ref().map(|status| status.phase)) {
            (Goal::Gone, Some(Phase::Removing)) => erase(tables, &vm),
            (Goal::Running, Some(Phase::Image)) if vm.value.name == "bad" => {
                undo(tables, &vm.value)
            }
            (Goal::Running, Some(Phase::Guest)) if vm.value.name == "slow" && !hurry => {}
            (goal, phase) => write(tables, &vm.value, next(goal, phase), status),
        }
    }
    for env in tables.envs().unwrap() {
        let statuses = env.value.vm_set.iter().map(|id| tables.status(*id).unwrap());
        let all_ready = statuses.flatten().filter(|row| row.value.phase == Phase::Ready).count();
        if !env.value.is_created && all_ready == env.value.vm_set.len() {
            let mut env = env;
            env.value.is_created = true;
            tables.commit(&Change::new().env(&env).unwrap()).unwrap();
        }
    }
}

/// Takes the snapshots that are wanted, and removes the images that are not.
fn take_all(tables: &Tables, metas: &mut BTreeMap<(VmId, String), Vm>) {
    for mut row in tables.vms().unwrap() {
        let Some(wanted) = row.value.wanted_snapshots().next().cloned() else { continue };
        let frozen = row.value.clone();
        plan_take(&mut row.value, &wanted.name);
        if row.value.name == "full" {
            let why = "no space is left".into();
            let trouble = Trouble { code: ErrorCode::SnapshotCreate, why, retry: false };
            plan_take_failed(&mut row.value, &wanted.name, trouble);
        } else {
            let version = wanted.with_memory.then(|| "qemu 10.0".to_owned());
            plan_taken(&mut row.value, &wanted.name, version, now());
            metas.insert((frozen.id, wanted.name), frozen);
        }
        tables.commit(&Change::new().vm(&row).unwrap()).unwrap();
    }
    for row in tables.images().unwrap().iter().filter(|row| !row.value.is_wanted) {
        tables.commit(&Change::new().remove_image(row)).unwrap();
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn next(goal: Goal, phase: Option<Phase>) -> Phase {
    match (goal, phase) {
        (Goal::Gone, _) => Phase::Removing,
        (Goal::Stopped | Goal::Suspended, _) => Phase::Stopped,
        (Goal::Paused, _) => Phase::Paused,
        (Goal::Running, None | Some(Phase::Stopped)) => Phase::Image,
        (Goal::Running, Some(Phase::Image)) => Phase::Machine,
        (Goal::Running, Some(Phase::Machine)) => Phase::Guest,
        (Goal::Running, _) => Phase::Ready,
    }
}

fn write(tables: &Tables, vm: &Vm, phase: Phase, last: Option<VmStatus>) {
    let ready_ms = (phase == Phase::Ready).then_some(440);
    let status =
        VmStatus { phase, generation: vm.generation, since_ms: 1, ready_ms, trouble: None };
    if last.as_ref() != Some(&status) {
        tables.commit(&Change::new().status(vm.id, &status).unwrap()).unwrap();
    }
}

fn undo(tables: &Tables, vm: &Vm) {
    let mut env = tables.env(vm.env_id).unwrap().unwrap();
    let rows = tables.vms_of(&env.value).unwrap();
    let mut vms: Vec<Vm> = rows.iter().map(|row| row.value.clone()).collect();
    // A guest may choose such a text.
    let why = "no such \x1b[31mdisk".into();
    let trouble = Trouble { code: ErrorCode::CreateImage, why, retry: true };
    plan_undo(&mut env.value, &mut vms, Failure { vm_name: vm.name.clone(), trouble });
    let rows: Vec<Row<Vm>> =
        rows.iter().zip(vms).map(|(row, value)| Row { value, revision: row.revision }).collect();
    tables.commit(&Change::new().env(&env).unwrap().vms(&rows).unwrap()).unwrap();
}

fn erase(tables: &Tables, vm: &Row<Vm>) {
    let mut env = tables.env(vm.value.env_id).unwrap().unwrap();
    env.value.vm_set.remove(&vm.value.id);
    let mut usage: Row<Usage> = tables.usage(vm.value.host).unwrap().unwrap();
    usage.value.vm_num -= 1;
    usage.value.mem_size -= u64::from(vm.value.resource.mem_size);
    let kept = vm.value.state.keep_image.then(|| KeptImage::of(&vm.value, now()));
    let change = Change::new().erase_vm(vm, &env, &usage, kept.as_ref()).unwrap();
    tables.commit(&change).unwrap();
}

fn host() -> Host {
    let sample = sample::host("qemu");
    let qemu =
        EngineFacts { version: "10.0".into(), detail: "tcg".into(), ..sample.engines[0].clone() };
    Host { name: "here".into(), port_max: 20009, mem_size: 8192, engines: vec![qemu], ..sample }
}

fn micro() -> TemplateRecord {
    TemplateRecord {
        name: "micro".into(),
        source: Some(TemplateSource::Build { recipe: "micro".into() }),
        memo: None,
        origin: None,
        host: HostId(1),
        is_wanted: true,
        template: Some(VmTemplate {
            name: "micro".into(),
            memo: Some("a kernel and an agent".into()),
            features: ["disk", "kernel", "agent"].map(str::to_owned).into(),
            ..sample::template("qemu")
        }),
        step: None,
        progress: None,
        trouble: None,
        push: None,
    }
}
