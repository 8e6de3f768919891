//! A daemon's surface without a daemon: the real router on a real socket, a store, and a host that
//! the test plays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tt_api::access::{
    BoxFuture, ByteStream, Disk, DiskForm, GuestStream, HostAccess, STREAM_QUEUE,
};
use tt_api::server::{Api, ApiConfig, router, serve};
use tt_api::views::{Checked, EnvView, Finding, VerifyReport};
use tt_api::{Client, Problem};
use tt_guest::session::{FromGuest, Open, ToGuest};
use tt_model::plan::{Policy, plan_take, plan_taken};
use tt_model::template::{FEATURE_AGENT, FEATURE_DISK};
use tt_model::{
    EngineFacts, EnvSpec, ErrorCode, Host, HostId, KeptImage, Phase, Protocol, Refusal, Snapshot,
    TemplateSource, Traffic, Vm, VmId, VmSpec, VmStatus, VmTemplate, feat, sample,
};
use tt_store::Kv;
use tt_store::memory::MemoryKv;
use tt_store::tables::{Change, Committed, Tables, TemplateRecord};

/// What the test plays of the host.
#[derive(Default)]
pub struct TestAccess {
    /// Seconds since the epoch.
    pub now: AtomicU64,
    /// Messages that a flooding program could hand over.
    pub flooded: AtomicU64,
    /// Whether the last stream was given up before its end.
    pub is_cancelled: AtomicBool,
    /// The metas of snapshots.
    pub metas: Mutex<BTreeMap<(VmId, String), Vm>>,
    /// Disks that are open to be sent.
    pub disks: Arc<AtomicUsize>,
}

impl HostAccess for Shared {
    fn listening_ports(&self) -> BTreeSet<(Protocol, u16)> {
        [(Protocol::Udp, 20000), (Protocol::Tcp, 20001)].into()
    }

    fn now_unix_secs(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }

    fn random(&self, bytes: usize) -> Vec<u8> {
        vec![7; bytes]
    }

    fn open(&self, _: VmId, open: Open) -> BoxFuture<Result<GuestStream, Refusal>> {
        let (to, stdin) = mpsc::channel(STREAM_QUEUE);
        let (out, from) = mpsc::channel(STREAM_QUEUE);
        let access = Arc::clone(&self.0);
        Box::pin(async move {
            let Open::Exec(program) = open else {
                return Err(Refusal::new(ErrorCode::Agent, "agent", "it is away", "wait"));
            };
            let name = program.argv[0].clone();
            tokio::spawn(async move {
                match name.as_str() {
                    "flood" => flood(&access, out).await,
                    "deaf" => {
                        // Takes nothing, says nothing, and holds its input open.
                        out.closed().await;
                        drop(stdin);
                        access.is_cancelled.store(true, Ordering::SeqCst);
                    }
                    "lost" => drop(out),
                    _ => echo(stdin, out).await,
                }
            });
            Ok(GuestStream { to, from })
        })
    }

    fn console(&self, vm: VmId) -> BoxFuture<Result<ByteStream, Refusal>> {
        let (to, mut keys) = mpsc::channel::<Vec<u8>>(STREAM_QUEUE);
        let (out, from) = mpsc::channel(STREAM_QUEUE);
        Box::pin(async move {
            out.send(format!("console of {vm}\n").into_bytes()).await.unwrap();
            tokio::spawn(async move {
                while let Some(bytes) = keys.recv().await {
                    if bytes == b"off" || out.send(bytes).await.is_err() {
                        break;
                    }
                }
            });
            Ok(ByteStream { to, from })
        })
    }

    /// Port 22 says who it is and echoes; nothing listens on others.
    fn connect(&self, vm: &Vm, port: u16) -> BoxFuture<Result<ByteStream, Refusal>> {
        if port != 22 {
            let what = format!("port {port}");
            let refusal = Refusal::new(ErrorCode::Agent, what, "nothing answers there", "wait");
            return Box::pin(async { Err(refusal) });
        }
        self.console(vm.id)
    }

    fn console_log(&self, vm: VmId, tail_bytes: u64) -> Result<Vec<u8>, Refusal> {
        Ok(format!("log of {vm}, {tail_bytes}").into_bytes())
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, Refusal> {
        Ok(Traffic { sent_packets: vm.id.0, ..Traffic::default() })
    }

    fn frozen(&self, vm: &Vm, snapshot: &Snapshot) -> Result<Vm, Refusal> {
        let metas = self.0.metas.lock().unwrap();
        metas.get(&(vm.id, snapshot.name.clone())).cloned().ok_or_else(|| {
            let what = format!("meta of {}", vm.full_name());
            Refusal::new(ErrorCode::MetaRestore, what, "it is not whole", "use another snapshot")
        })
    }

    fn disk(&self, template: &VmTemplate, form: DiskForm) -> Result<Disk, Refusal> {
        crate::disks::disk(template, form, self.0.disks.clone())
    }

    fn verify(&self, repair: bool) -> Result<VerifyReport, Refusal> {
        let finding = Finding {
            kind: "image".into(),
            name: "images/9".into(),
            what: "no record".into(),
            id: Some(9),
        };
        let checked = Checked { envs: 1, vms: 2 };
        let (findings, repaired) =
            if repair { (vec![], vec![finding]) } else { (vec![finding], vec![]) };
        Ok(VerifyReport { findings, repaired, checked })
    }
}

struct Shared(Arc<TestAccess>);

async fn echo(mut stdin: mpsc::Receiver<ToGuest>, out: mpsc::Sender<FromGuest>) {
    let _ = out.send(FromGuest::Started { pid: 42 }).await;
    let mut end = FromGuest::Exited { code: Some(0), signal: None };
    while let Some(message) = stdin.recv().await {
        let answer = match message {
            ToGuest::Data(data) => FromGuest::Stdout(data),
            ToGuest::Resize { rows, cols } => {
                FromGuest::Stderr(format!("{rows}x{cols}").into_bytes())
            }
            ToGuest::Signal(signal) => {
                end = FromGuest::Exited { code: None, signal: Some(signal) };
                break;
            }
            ToGuest::Eof => break,
        };
        let _ = out.send(answer).await;
    }
    let _ = out.send(end).await;
}

async fn flood(access: &TestAccess, out: mpsc::Sender<FromGuest>) {
    while out.send(FromGuest::Stdout(vec![b'x'; 64 << 10])).await.is_ok() {
        access.flooded.fetch_add(1, Ordering::SeqCst);
    }
    access.is_cancelled.store(true, Ordering::SeqCst);
}

/// The surface, served until it is dropped.
pub struct Server {
    pub client: Client,
    pub tables: Tables,
    pub access: Arc<TestAccess>,
    pub socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Must be called in a runtime.
pub fn server() -> Server {
    server_on(Arc::new(MemoryKv::new()))
}

pub fn server_on(kv: Arc<dyn Kv>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tt.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let tables = Tables::new(kv);
    let change = Change::new().host(&host()).unwrap().new_template(&template("micro")).unwrap();
    commit(&tables, &change);
    let access = Arc::new(TestAccess::default());
    access.now.store(1_000_000, Ordering::Relaxed);
    let config = ApiConfig {
        tables: tables.clone(),
        access: Arc::new(Shared(Arc::clone(&access))),
        policy: Policy { life_time_max: 1000, life_time_default: 100, ..Policy::default() },
        host: HostId(1),
    };
    let router = router(Api::new(config));
    let task = tokio::spawn(serve(router, listener, std::future::pending()));
    Server { client: Client::new(socket.clone()), tables, access, socket, task, _dir: dir }
}

/// A host with an engine that can do everything but memory, one that can do everything, and one that
/// can do nothing.
pub fn host() -> Host {
    let sample = sample::host("fake");
    let whole = sample.engines[0].clone();
    let engine =
        |name: &str, features| EngineFacts { name: name.into(), features, ..whole.clone() };
    let memory = feat::SUSPEND | feat::MEMORY_SNAPSHOT;
    let engines = vec![
        engine("fake", whole.features & !memory),
        engine("full", whole.features),
        engine("mute", feat::NAT),
    ];
    Host { name: "h.example".into(), engines, ..sample }
}

/// A template that is ready.
pub fn template(name: &str) -> TemplateRecord {
    TemplateRecord {
        name: name.into(),
        source: Some(TemplateSource::Build { recipe: "micro".into() }),
        memo: None,
        origin: None,
        host: HostId(1),
        is_wanted: true,
        template: Some(VmTemplate {
            name: name.into(),
            compatible_engines: ["fake", "full", "mute"].map(str::to_owned).into(),
            features: vec![FEATURE_DISK.into(), FEATURE_AGENT.into()],
            disk_size: 16,
            ..sample::template("fake")
        }),
        step: None,
        progress: None,
        trouble: None,
        push: None,
    }
}

/// An Env of `count` Vms.
pub fn spec(count: u32) -> EnvSpec {
    let vm = VmSpec {
        count: Some(count),
        mem_size: Some(32),
        ports: vec!["80".parse().unwrap()],
        ..VmSpec::new("micro")
    };
    EnvSpec { vms: vec![vm], ..EnvSpec::default() }
}

pub fn commit(tables: &Tables, change: &Change) {
    assert!(matches!(tables.commit(change).unwrap(), Committed::Done(_)));
}

/// What the host does when it is done with a Vm.
pub fn settled(vm: &Vm, phase: Phase) -> VmStatus {
    VmStatus { phase, generation: vm.generation, since_ms: 1, ready_ms: None, trouble: None }
}

impl Server {
    /// An Env of `count` Vms, all of them ready.
    pub async fn ready_env(&self, name: &str, count: u32) -> EnvView {
        self.client.create_env(name, "key", &spec(count)).await.unwrap();
        let mut env = self.tables.env_by_name(name).unwrap().unwrap();
        env.value.is_created = true;
        let vms = self.tables.vms_of(&env.value).unwrap();
        let change = vms.iter().fold(Change::new().env(&env).unwrap(), |change, vm| {
            change.status(vm.value.id, &settled(&vm.value, Phase::Ready)).unwrap()
        });
        commit(&self.tables, &change);
        self.client.env(name).await.unwrap()
    }

    /// What the host does when a destroyed Env's Vms are gone.
    pub fn erase(&self, name: &str) {
        let ids = self.tables.env_by_name(name).unwrap().unwrap().value.vm_set;
        ids.into_iter().for_each(|id| self.erase_vm(id, 5));
    }

    /// What the host does when a Vm is gone at `now`.
    pub fn erase_vm(&self, id: VmId, now: u64) {
        let vm = self.tables.vm(id).unwrap().unwrap();
        let mut env = self.tables.env(vm.value.env_id).unwrap().unwrap();
        let mut usage = self.tables.usage(HostId(1)).unwrap().unwrap();
        env.value.vm_set.remove(&id);
        usage.value.vm_num -= 1;
        usage.value.mem_size -= u64::from(vm.value.resource.mem_size);
        let kept = vm.value.state.keep_image.then(|| KeptImage::of(&vm.value, now));
        let change = Change::new().erase_vm(&vm, &env, &usage, kept.as_ref()).unwrap();
        commit(&self.tables, &change);
    }

    /// What the host does to take the snapshots of that name that are wanted; it writes what was
    /// frozen as their metas.
    pub fn take(&self, env: &str, name: &str, engine_version: Option<&str>) {
        let env = self.tables.env_by_name(env).unwrap().unwrap().value;
        for mut row in self.tables.vms_of(&env).unwrap() {
            if !row.value.wanted_snapshots().any(|snapshot| snapshot.name == name) {
                continue;
            }
            let frozen = row.value.clone();
            self.access.metas.lock().unwrap().insert((frozen.id, name.to_owned()), frozen);
            plan_take(&mut row.value, name);
            plan_taken(&mut row.value, name, engine_version.map(str::to_owned), 7);
            commit(&self.tables, &Change::new().vm(&row).unwrap());
        }
    }

    /// Lets enough time pass for the next management call.
    pub fn later(&self) {
        self.access.now.fetch_add(10, Ordering::Relaxed);
    }

    /// Sends bytes as they are and reads until the server closes.
    pub async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // A server that refuses without reading everything closes the connection behind it.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer)
    }
}

/// A response as it was on the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("no head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: answer[end + 4..].to_vec() }
    }

    pub fn problem(&self) -> Problem {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }
}
