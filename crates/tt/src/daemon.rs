//! Composition root: the only place that names concrete drivers.

mod access;
pub mod doctor;
mod plug;
pub mod recover;
mod register;

use crate::config::{Accelerator, Config, StorageChoice};
use access::LocalHost;
use ipnet::Ipv4Net;
use plug::Plugs;
use register::Findings;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tt_api::server::{Api, ApiConfig};
use tt_docker::Docker;
use tt_engine::docker::{DockerConfig, DockerEngine, Plug};
use tt_engine::exec::{ExecConfig, ExecEngine};
use tt_engine::firecracker::{FirecrackerConfig, FirecrackerEngine};
use tt_engine::qemu::{AcceleratorChoice, QemuConfig, QemuEngine};
use tt_engine::{GuestNetwork, VmEngine, Wake};
use tt_host::{
    Clock, Drivers, Guests, HostConfig, HostService, MetaError, Metas, Queue, SystemClock,
};
use tt_image::Catalogue;
use tt_model::{EngineFacts, Host, Layout, StorageKind, VmId};
use tt_network::{NetnsNetwork, Network, NetworkConfig};
use tt_storage::{Choice, Pool, Storage};
use tt_store::sqlite::SqliteKv;
use tt_store::tables::{Row, Tables};

/// Why the daemon could not be started, or ended in disorder.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It is not root: namespaces, links and users can not be made.
    #[error("tt daemon must run as root")]
    Privilege,
    /// A directory or file could not be made or read.
    #[error("could not prepare {}", path.display())]
    Prepare {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store could not be opened.
    #[error("could not open the store")]
    Store(#[from] tt_store::StoreError),
    /// The records could not be read or written.
    #[error("could not read or write the records")]
    Tables(#[from] tt_store::tables::TablesError),
    /// The network could not be made.
    #[error("could not prepare the network")]
    Network(#[from] tt_network::NetworkError),
    /// The storage could not be chosen.
    #[error("could not prepare the storage")]
    Storage(#[from] tt_storage::StorageError),
    /// Disks are to be data sets, or volumes, and there is no pool for them.
    #[error(
        "storage `{0}` needs a pool: name one (`pool` in the table `zfs` of the configuration), or put the data \
         directory on one"
    )]
    NoPool(&'static str),
    /// The host's threads could not be started.
    #[error("could not start to work")]
    Host(#[from] tt_host::HostError),
    /// The host's meta could not be written.
    #[error("could not write down what this host is")]
    Meta(#[from] MetaError),
    /// The templates could not be listed.
    #[error("could not list the templates")]
    Templates(#[from] tt_image::ImageError),
    /// There are disks, but the store has no host: it was lost, and every disk would be a stray.
    #[error(
        "{} has disks, but its store is empty; put the store back, rebuild it with `tt recover`, \
         or move the disks away",
        dir.display()
    )]
    LostStore {
        /// Where the disks are.
        dir: PathBuf,
    },
    /// Another daemon uses the run directory.
    #[error(
        "run directory {} belongs to another daemon; give each its own --run (and --data)",
        dir.display()
    )]
    ClaimRun {
        /// The run directory.
        dir: PathBuf,
    },
    /// Another range or block is configured while Vms have addresses of the old one.
    #[error(
        "there are Vms with addresses of block {block} in range {range}; destroy them before \
         another range or block is configured"
    )]
    MoveBlock {
        /// The range that is in use.
        range: Ipv4Net,
        /// The block that is in use.
        block: Ipv4Net,
    },
    /// Every block of the range collides with a network of the host.
    #[error("every block of {range} is used by the host itself; configure another range")]
    ChooseBlock {
        /// The range.
        range: Ipv4Net,
    },
    /// Others took every id that was tried.
    #[error("could not take an id for this host in {tries} tries")]
    TakeId {
        /// How often it was tried.
        tries: u32,
    },
    /// The API ended.
    #[error("could not serve the API")]
    Serve(#[source] io::Error),
}

/// The drivers of a host, as the configuration wants them, with what they found.
struct Composed {
    drivers: Drivers,
    facts: Vec<EngineFacts>,
    storage: StorageKind,
    storage_reason: String,
}

/// Serves this host until the process is told to end. Guests run on then.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::Privilege);
    }
    if !config.data_dir.exists() {
        // Before it is made: who names another daemon's run directory by mistake is to find nothing of it.
        register::check_run(&config.run_dir)?;
    }
    prepare_directories(&config)?;
    // The store is locked before anything of the host is touched: two daemons never share it.
    let kv = SqliteKv::open(&config.data_dir.join("store"))?;
    let tables = Tables::new(Arc::new(kv));
    let instance = register::instance(&config.data_dir)?;
    let _claim = register::claim_run(&config.run_dir, instance)?;
    let (data, run) = (config.data_dir.clone(), config.run_dir.clone());
    let layout = Layout { data, run, instance };
    let known = register::known_host(&tables)?.map(|row: Row<Host>| row.value);
    register::check_store_is_ours(&config.data_dir, known.as_ref())?;
    let block = register::block(&config, known.as_ref(), &tables)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let vms: Arc<Queue<VmId>> = Arc::new(Queue::new());
    let composed = compose(&config, &layout, block, vms.clone())?;
    let findings = Findings {
        engines: composed.facts,
        storage: composed.storage,
        storage_reason: composed.storage_reason,
    };
    let host = register::register(&config, known.as_ref(), block, findings, &tables, &*clock)?;
    let metas = Metas::new(&layout);
    metas.write(&tt_model::names::host_meta(), &host)?;
    let wake = vms.clone();
    let runtime = tokio::runtime::Handle::current();
    let guests = Arc::new(Guests::new(runtime, layout.clone(), &host, move |id| wake.push(id)));
    let catalogue = Arc::new(catalogue(&config));
    let service = Arc::new(HostService::start(HostConfig {
        host: host.id,
        tables: tables.clone(),
        drivers: composed.drivers.clone(),
        guests: guests.clone(),
        metas: metas.clone(),
        catalogue: catalogue.clone(),
        clock: clock.clone(),
        policy: config.policy.clone(),
        sweep_grace_ms: u64::try_from(config.sweep_grace.as_millis()).unwrap_or(u64::MAX),
        vms,
    })?);
    let network = composed.drivers.network.clone();
    let access =
        Arc::new(LocalHost { guests, service: service.clone(), network, metas, clock, catalogue });
    let api = Api::new(ApiConfig { tables, access, policy: config.policy, host: host.id });
    let served = serve(api, &config.socket).await;
    end(&service, &composed.drivers, &config.socket).await;
    served
}

/// The templates' files.
fn catalogue(config: &Config) -> Catalogue {
    Catalogue::new(&config.data_dir, &config.cache_dir, &config.guest_agent)
}

/// The engines, by preference, of a host whose new disks are of this kind. Touches nothing yet.
fn engines(
    config: &Config,
    layout: &Layout,
    storage: StorageKind,
    docker: Arc<Docker>,
    plug: Arc<dyn Plug>,
) -> Vec<Arc<dyn VmEngine>> {
    let accelerator = match config.qemu.accelerator {
        Accelerator::Auto => AcceleratorChoice::Auto,
        Accelerator::Kvm => AcceleratorChoice::Kvm,
        Accelerator::Tcg => AcceleratorChoice::Tcg,
    };
    let network = GuestNetwork {
        gateway: tt_model::host::gateway(config.range),
        prefix_len: config.range.prefix_len(),
    };
    let firecracker = FirecrackerConfig {
        layout: layout.clone(),
        binary: config.firecracker.clone(),
        needs_kvm: true,
        has_layers: storage.is_layered(),
        network,
    };
    let binary = config.qemu.binary.clone();
    let qemu = QemuConfig { layout: layout.clone(), binary, accelerator, network };
    let docker =
        DockerConfig { layout: layout.clone(), docker, agent: config.guest_agent.clone(), plug };
    let mut engines: Vec<Arc<dyn VmEngine>> = vec![
        Arc::new(QemuEngine::new(qemu)),
        Arc::new(FirecrackerEngine::new(firecracker)),
        Arc::new(DockerEngine::new(docker)),
    ];
    if let Some(program) = config.exec_program.clone() {
        let exec = ExecConfig { layout: layout.clone(), program };
        engines.push(Arc::new(ExecEngine::new(exec)));
    }
    engines
}

/// The back end for new images, and why that one; and the pool of those that have one.
fn choose_storage(config: &Config) -> Result<(Choice, Option<Pool>), DaemonError> {
    let pool = Pool::find(config.pool.as_deref(), &config.data_dir)?;
    let kind = match config.storage {
        StorageChoice::File => StorageKind::File,
        StorageChoice::Qcow2 => StorageKind::Qcow2,
        StorageChoice::Btrfs => StorageKind::Btrfs,
        StorageChoice::Zfs => StorageKind::Zfs,
        StorageChoice::Zvol => StorageKind::Zvol,
        StorageChoice::Auto => {
            let choice = tt_storage::choose(&config.data_dir, &config.qemu.binary, pool.as_ref())?;
            return Ok((choice, pool));
        }
    };
    let trouble = match (kind, &pool) {
        (StorageKind::Zfs | StorageKind::Zvol, None) => {
            return Err(DaemonError::NoPool(kind.name()));
        }
        (kind, Some(pool)) => pool.trouble(kind, &config.data_dir),
        (_, None) => None,
    };
    Ok((Choice { kind, reason: "it is configured".to_owned(), trouble }, pool))
}

fn compose(
    config: &Config,
    layout: &Layout,
    block: Ipv4Net,
    vms: Arc<Queue<VmId>>,
) -> Result<Composed, DaemonError> {
    let (Choice { kind: storage, reason: storage_reason, trouble }, pool) = choose_storage(config)?;
    if let Some(trouble) = trouble {
        tracing::warn!(storage = storage.name(), trouble, "new images wait");
    }
    let network = NetnsNetwork::new(NetworkConfig {
        layout: layout.clone(),
        range: config.range,
        block,
        public: config.public_addr,
        underlay: register::underlay(config),
        is_underlay_found: config.underlay_addr.is_none(),
        tunnel_port: config.tunnel_port,
        upstream_dns: config.upstream_dns.clone(),
    });
    network.init()?;
    let network: Arc<dyn Network> = Arc::new(network);
    let docker = Arc::new(Docker::new(&config.docker_socket));
    let engines =
        engines(config, layout, storage, docker.clone(), Arc::new(Plugs(network.clone())));
    let wake: Wake = Arc::new(move |id| vms.push(id));
    let facts: Vec<EngineFacts> = engines.iter().map(|engine| engine.init(wake.clone())).collect();
    for engine in &facts {
        match &engine.unusable {
            None => {
                tracing::info!(engine = engine.name, detail = engine.detail, "engine is usable")
            }
            // Most hosts have what one engine needs and want no other.
            Some(why) if facts.iter().any(|engine| engine.unusable.is_none()) => {
                tracing::info!(engine = engine.name, why, "engine is not usable");
            }
            Some(why) => tracing::warn!(engine = engine.name, why, "engine is not usable"),
        }
    }
    tracing::info!(storage = storage.name(), reason = storage_reason, "storage for new images");
    // Not only the one for new images: those that are there keep their kind when another one is configured.
    let open = |kind: &StorageKind| match kind {
        StorageKind::Docker => tt_storage::open_docker(layout, docker.clone()),
        kind => tt_storage::open_in(pool.as_ref(), *kind, layout),
    };
    let storages: Vec<Arc<dyn Storage>> = StorageKind::ALL.iter().map(open).collect();
    let drivers = Drivers { engines, storages, network };
    Ok(Composed { drivers, facts, storage, storage_reason })
}

fn prepare_directories(config: &Config) -> Result<(), DaemonError> {
    // Machines of their own users pass through these, but list nothing.
    for path in [&config.data_dir, &config.run_dir] {
        make_directory(path, 0o711)?;
    }
    make_directory(&config.data_dir.join("logs"), 0o700)?;
    make_directory(&config.data_dir.join("store"), 0o700)?;
    make_directory(&config.cache_dir, 0o711)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Prepare { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

async fn serve(api: Api, socket: &Path) -> Result<(), DaemonError> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(DaemonError::Prepare { path: socket.to_owned(), source: error });
        }
        _ => {}
    }
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)
            .map_err(|source| DaemonError::Prepare { path: dir.to_owned(), source })?;
    }
    let prepare = |source| DaemonError::Prepare { path: socket.to_owned(), source };
    let listener = UnixListener::bind(socket).map_err(prepare)?;
    let only_root = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, only_root).map_err(prepare)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Serve)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Serve)?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tracing::info!(socket = %socket.display(), "ready");
    tt_api::server::serve(tt_api::server::router(api), listener, shutdown).await;
    Ok(())
}

/// Ends in good order: visits under way are finished, and what nothing uses any more is removed.
async fn end(service: &Arc<HostService>, drivers: &Drivers, socket: &Path) {
    let (service, drivers) = (service.clone(), drivers.clone());
    let stopped = tokio::task::spawn_blocking(move || {
        service.stop();
        drivers.engines.iter().for_each(|engine| engine.close());
        if let Err(error) = drivers.network.close() {
            tracing::warn!(error = chain(&error), "network not closed");
        }
    });
    if stopped.await.is_err() {
        tracing::error!("the host's service had panicked");
    }
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, "socket not removed");
    }
}

/// The error with all its causes, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
