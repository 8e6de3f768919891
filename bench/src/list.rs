//! `GET /v1/envs` with ten thousand Vms: time, and the daemon's memory.

use crate::table::{Row, median, millis};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;
use testkit::Must;
use tokio::net::UnixListener;
use tt_api::Client;
use tt_api::access::{BoxFuture, ByteStream, GuestStream, HostAccess};
use tt_api::server::{Api, ApiConfig, router, serve};
use tt_api::views::VerifyReport;
use tt_guest::session::Open;
use tt_model::plan::Policy;
use tt_model::{
    EngineFacts, EnvSpec, ErrorCode, Host, HostId, Phase, Protocol, Refusal, Snapshot, StorageKind,
    TemplateSource, Traffic, Vm, VmId, VmSpec, VmStatus, VmTemplate, feat,
};
use tt_store::Kv;
use tt_store::memory::MemoryKv;
use tt_store::sqlite::SqliteKv;
use tt_store::tables::{Change, Tables, TemplateRecord};

const ENVS: u32 = 40;
const VMS_PER_ENV: u32 = 250;
const ROUNDS: usize = 9;

/// The list over both stores.
pub fn ten_thousand_vms() -> Vec<Row> {
    let dir = tempfile::tempdir().must("a directory");
    let sqlite = SqliteKv::open(dir.path()).must("open a store");
    let mut rows = measure("memory", Arc::new(MemoryKv::new()));
    rows.extend(measure("sqlite", Arc::new(sqlite)));
    rows
}

fn measure(store: &str, kv: Arc<dyn Kv>) -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.must("a runtime").block_on(async {
        let tables = Tables::new(kv);
        let before_mb = memory_mb();
        let client = start(&tables);
        for number in 0..ENVS {
            let vm = VmSpec { count: Some(VMS_PER_ENV), ..VmSpec::new("micro") };
            let spec = EnvSpec { vms: vec![vm], ..EnvSpec::default() };
            client.create_env(&format!("env-{number}"), "k", &spec).await.must("create");
        }
        for vm in tables.vms().must("records") {
            let (phase, generation) = (Phase::Ready, vm.value.generation);
            let status =
                VmStatus { phase, generation, since_ms: 0, ready_ms: Some(1), trouble: None };
            let change = Change::new().status(vm.value.id, &status).must("a status");
            tables.commit(&change).must("commit");
        }
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let envs = client.envs().await.must("the list").envs;
            times.push(begin.elapsed());
            let number: usize = envs.iter().map(|env| env.vms.len()).sum();
            assert_eq!(number, 10_000);
        }
        let grown_mb = memory_mb().saturating_sub(before_mb);
        vec![
            Row::figure(format!("GET /v1/envs, 10,000 Vms, {store}"), millis(median(times))),
            Row::figure(
                format!("  memory of server, client and records, {store}"),
                format!("{grown_mb} MB"),
            ),
        ]
    })
}

fn start(tables: &Tables) -> Client {
    let template = VmTemplate {
        name: "micro".into(),
        path: "templates/bench".into(),
        compatible_engines: vec!["fake".into()],
        disk_size: 64,
        ..VmTemplate::default()
    };
    let record = TemplateRecord {
        name: "micro".into(),
        source: Some(TemplateSource::Build { recipe: "micro".into() }),
        memo: None,
        origin: None,
        push: None,
        host: HostId(1),
        is_wanted: true,
        template: Some(template),
        step: None,
        progress: None,
        trouble: None,
    };
    let change = Change::new().host(&host()).and_then(|change| change.new_template(&record));
    tables.commit(&change.must("records")).must("commit");
    let dir = tempfile::tempdir().must("a directory");
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).must("listen");
    let api = Api::new(ApiConfig {
        tables: tables.clone(),
        access: Arc::new(NoHost),
        policy: Policy::default(),
        host: HostId(1),
    });
    tokio::spawn(async move {
        // The directory stays as long as the server.
        let _dir = dir;
        serve(router(api), listener, std::future::pending()).await;
    });
    Client::new(socket)
}

fn host() -> Host {
    Host {
        underlay_addr: None,
        id: HostId(1),
        name: "bench".into(),
        version: String::new(),
        start_timestamp: 0,
        public_addr: Ipv4Addr::LOCALHOST,
        range: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
        block: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
        port_min: 20000,
        port_max: 29999,
        cpu_num: 2,
        mem_size: u32::MAX,
        disk_size: u32::MAX,
        storage: StorageKind::File,
        storage_reason: String::new(),
        engines: vec![EngineFacts {
            name: "fake".into(),
            version: String::new(),
            detail: String::new(),
            features: feat::NAT,
            unusable: None,
        }],
    }
}

/// A host without guests: listing asks it for nothing.
#[derive(Debug)]
struct NoHost;

impl HostAccess for NoHost {
    fn listening_ports(&self) -> BTreeSet<(Protocol, u16)> {
        BTreeSet::new()
    }

    fn now_unix_secs(&self) -> u64 {
        1000
    }

    fn random(&self, bytes: usize) -> Vec<u8> {
        vec![7; bytes]
    }

    fn open(&self, vm: VmId, _open: Open) -> BoxFuture<Result<GuestStream, Refusal>> {
        let refusal = nothing(vm);
        Box::pin(async { Err(refusal) })
    }

    fn console(&self, vm: VmId) -> BoxFuture<Result<ByteStream, Refusal>> {
        let refusal = nothing(vm);
        Box::pin(async { Err(refusal) })
    }

    fn connect(&self, vm: &Vm, _port: u16) -> BoxFuture<Result<ByteStream, Refusal>> {
        let refusal = nothing(vm.id);
        Box::pin(async { Err(refusal) })
    }

    fn console_log(&self, vm: VmId, _tail_bytes: u64) -> Result<Vec<u8>, Refusal> {
        Err(nothing(vm))
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, Refusal> {
        Err(nothing(vm.id))
    }

    fn frozen(&self, vm: &Vm, _snapshot: &Snapshot) -> Result<Vm, Refusal> {
        Err(nothing(vm.id))
    }

    fn verify(&self, _repair: bool) -> Result<VerifyReport, Refusal> {
        Ok(VerifyReport::default())
    }
}

fn nothing(vm: VmId) -> Refusal {
    Refusal::new(ErrorCode::State, format!("vm {vm}"), "it has no machine", "use a real host")
}

/// Memory of this process that is really used, in MB (2^20 bytes).
fn memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").must("own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).must("VmRSS");
    let kb: u64 = line.trim().trim_end_matches(" kB").parse().must("a number");
    kb / 1024
}
