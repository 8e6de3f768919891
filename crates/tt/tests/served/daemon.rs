//! A daemon's surface and records, with a host that the test plays: it moves every member one step at a time towards its
//! goal. Members named `slow` wait in phase `guest` until they are hurried; one named `bad` undoes its Env.

use super::guest::Guests;
use super::terminal::Session;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tt_api::server::{Api, ApiConfig, router, serve};
use tt_model::env::Failure;
use tt_model::plan::{Policy, plan_undo};
use tt_model::{
    EngineFacts, ErrorCode, Goal, Host, HostId, Phase, StorageKind, Trouble, Usage, Vm, VmStatus,
    VmTemplate, feat,
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
        let played = {
            let (tables, stop, hurry) = (tables.clone(), stop.clone(), hurry.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    step_all(&tables, hurry.load(Ordering::SeqCst));
                    std::thread::sleep(STEP);
                }
            })
        };
        let access = Arc::new(Guests { root, open: Arc::new(AtomicUsize::new(0)) });
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
    tables.commit(&Change::new().erase_vm(vm, &env, &usage).unwrap()).unwrap();
}

fn host() -> Host {
    Host {
        id: HostId(1),
        name: "here".into(),
        version: "0.1.0".into(),
        start_timestamp: 1,
        public_addr: [192, 0, 2, 7].into(),
        range: "10.0.0.0/8".parse().unwrap(),
        block: "10.0.0.0/16".parse().unwrap(),
        port_min: 20000,
        port_max: 20009,
        cpu_num: 4,
        mem_size: 8192,
        disk_size: 100_000,
        storage: StorageKind::File,
        storage_reason: "it is a test".into(),
        engines: vec![EngineFacts {
            name: "qemu".into(),
            version: "10.0".into(),
            detail: "tcg".into(),
            features: feat::PAUSE | feat::SHUTDOWN | feat::NAT | feat::EXEC | feat::CONSOLE,
            unusable: None,
        }],
    }
}

fn micro() -> TemplateRecord {
    TemplateRecord {
        name: "micro".into(),
        recipe: "micro".into(),
        host: HostId(1),
        is_wanted: true,
        template: Some(VmTemplate {
            name: "micro".into(),
            path: "templates/micro".into(),
            memo: Some("a kernel and an agent".into()),
            compatible_engines: vec!["qemu".into()],
            features: vec!["kernel".into(), "agent".into()],
            digest: "0".repeat(64),
            disk_size: 64,
        }),
        step: None,
        trouble: None,
    }
}
