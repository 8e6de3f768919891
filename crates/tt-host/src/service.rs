//! The threads that keep a host matching its records, and their start and end.

use crate::expire::Expirer;
use crate::guest::Guests;
use crate::kept::ImageRemover;
use crate::peers::Neighbours;
use crate::sweep::{Report, Sweeper};
use crate::templates::TemplateMaker;
use crate::watch::Follower;
use crate::{
    Clock, Drivers, Errands, HostError, LayerMerger, Metas, Next, Queue, SnapshotTaker, Visitor,
    layers, take_back,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tt_image::Catalogue;
use tt_model::plan::Policy;
use tt_model::{HostId, VmId};
use tt_store::tables::Tables;

/// Vms that are visited at once. A visit waits for disks and tools more than it computes.
const WORKERS: usize = 16;
/// Envs of which snapshots are taken at once: each waits for a guest's memory to be copied.
const TAKERS: usize = 4;
/// Templates that are made at once: long downloads must not keep short builds waiting, and each may keep a processor busy.
const MAKERS: usize = 3;
/// How often passed lifetimes are looked for: nobody's lifetime is off by more.
const EXPIRE_TICK: Duration = Duration::from_millis(500);
/// How long a repair waits for the visits that it causes, and how often it looks.
const REPAIR_MAX: Duration = Duration::from_secs(5);
const REPAIR_LOOK: Duration = Duration::from_millis(100);
/// How often the host is compared with the records.
const SWEEP_TICK: Duration = Duration::from_secs(30);

/// What a host's service is made of.
#[derive(Debug)]
pub struct HostConfig {
    /// Which of the recorded hosts this is.
    pub host: HostId,
    /// The records.
    pub tables: Tables,
    /// The drivers.
    pub drivers: Drivers,
    /// The channels to the guests.
    pub guests: Arc<Guests>,
    /// The metas' files.
    pub metas: Metas,
    /// The templates' files.
    pub catalogue: Arc<Catalogue>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The administrator's choices.
    pub policy: Policy,
    /// How long a stray is left alone, in milliseconds.
    pub sweep_grace_ms: u64,
    /// The queue of Vms, which the drivers' events are pushed into.
    pub vms: Arc<Queue<VmId>>,
}

/// A host at work.
#[derive(Debug)]
pub struct HostService {
    vms: Arc<Queue<VmId>>,
    templates: Arc<Queue<String>>,
    errands: Errands,
    images: Arc<Queue<VmId>>,
    hosts: Arc<Queue<HostId>>,
    sweeper: Arc<Sweeper>,
    is_stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl HostService {
    /// Starts to match the host to its records. On return no status says of a machine that ended meanwhile that it runs.
    pub fn start(config: HostConfig) -> Result<Self, HostError> {
        let ended = take_back(&config.tables, &config.drivers, &*config.clock, config.host)?;
        if ended > 0 {
            tracing::info!(ended, "machines ended while no daemon looked");
        }
        let errands = Errands::default();
        let sweeper = Arc::new(Sweeper::new(&config, errands.unmerged.clone()));
        let service = Self {
            vms: config.vms.clone(),
            templates: Arc::new(Queue::new()),
            errands,
            images: Arc::new(Queue::new()),
            hosts: Arc::new(Queue::new()),
            sweeper,
            is_stopping: Arc::default(),
            threads: Mutex::default(),
        };
        service.start_threads(config)?;
        Ok(service)
    }

    /// Compares the host with the records.
    pub fn verify(&self) -> Result<Report, HostError> {
        self.sweeper.verify()
    }

    /// Compares the host with the records, clears at once what no record knows, and visits every
    /// Vm. Answers what was wrong, and what still is after some seconds.
    pub fn repair(&self) -> Result<(Report, Report), HostError> {
        let before = self.sweeper.repair()?;
        self.sweeper.vms()?.into_iter().for_each(|id| self.vms.push(id));
        let begin = Instant::now();
        loop {
            let after = self.sweeper.verify()?;
            if after.findings.is_empty() || begin.elapsed() > REPAIR_MAX {
                return Ok((before, after));
            }
            std::thread::sleep(REPAIR_LOOK);
        }
    }

    /// Finishes the visits under way and begins no more. Guests run on.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.vms.close();
        self.templates.close();
        self.errands.snapshots.close();
        self.errands.merges.close();
        self.images.close();
        self.hosts.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread had panicked");
            }
        }
    }

    fn start_threads(&self, config: HostConfig) -> Result<(), HostError> {
        let HostConfig { host, tables, drivers, guests, metas, catalogue, clock, policy, .. } =
            config;
        let visitor = Arc::new(Visitor::new(
            tables.clone(),
            drivers.clone(),
            guests,
            clock.clone(),
            host,
            metas.clone(),
            self.errands.clone(),
        ));
        self.start_workers(visitor.clone())?;
        let (vms, is_stopping) = (self.vms.clone(), self.is_stopping.clone());
        let unmerged = self.errands.unmerged.clone();
        let (of, by) = (tables.clone(), visitor.clone());
        let merger = LayerMerger::new(of, by, host, vms, unmerged, is_stopping);
        let merges = self.errands.merges.clone();
        self.spawn("merge", move || merger.run(&merges))?;
        let vms = self.vms.clone();
        let taker = SnapshotTaker::new(tables.clone(), visitor, clock.clone(), vms);
        self.start_takers(Arc::new(taker))?;
        let network = drivers.network.clone();
        let hosts = self.hosts.clone();
        if let Err(error) = network.on_change(Arc::new(move || hosts.push(host))) {
            // They are looked at now and then.
            tracing::warn!(error = layers::chain(&error), "changes of rules are seen late");
        }
        let vms = self.vms.clone();
        let neighbours = Neighbours { tables: tables.clone(), network, host, vms };
        let hosts = self.hosts.clone();
        self.spawn("hosts", move || neighbours.run(&hosts))?;
        let remover = ImageRemover { tables: tables.clone(), drivers: drivers.clone(), metas };
        let images = self.images.clone();
        self.spawn("images", move || remover.run(&images))?;
        let stopping = self.is_stopping.clone();
        let maker =
            Arc::new(TemplateMaker::new(tables.clone(), catalogue, drivers, host, stopping));
        for number in 0..MAKERS {
            let (maker, templates) = (maker.clone(), self.templates.clone());
            self.spawn(&format!("template-{number}"), move || maker.run(&templates))?;
        }
        let expirer = Arc::new(Expirer::new(tables.clone(), clock, policy, host));
        let ticking = expirer.clone();
        self.tick("expire", EXPIRE_TICK, move || ticking.tick())?;
        let sweeping = self.sweeper.clone();
        self.tick("sweep", SWEEP_TICK, move || {
            if let Err(error) = sweeping.sweep() {
                tracing::warn!(error = layers::chain(&error), "sweep failed");
            }
        })?;
        let (vms, templates) = (self.vms.clone(), self.templates.clone());
        let (images, hosts) = (self.images.clone(), self.hosts.clone());
        let follower = Follower { tables, vms, templates, images, hosts, host, expirer };
        let is_stopping = self.is_stopping.clone();
        // It waits for commits, so it is not joined: it ends with the process.
        let follow = move || follower.run(|| !is_stopping.load(Ordering::Relaxed));
        spawn_thread("follow", follow)?;
        Ok(())
    }

    fn start_takers(&self, taker: Arc<SnapshotTaker>) -> Result<(), HostError> {
        for number in 0..TAKERS {
            let (envs, taker) = (self.errands.snapshots.clone(), taker.clone());
            self.spawn(&format!("snapshot-{number}"), move || taker.run(&envs))?;
        }
        Ok(())
    }

    fn start_workers(&self, visitor: Arc<Visitor>) -> Result<(), HostError> {
        for number in 0..WORKERS {
            let (vms, visitor) = (self.vms.clone(), visitor.clone());
            self.spawn(&format!("visit-{number}"), move || {
                while let Some(id) = vms.take() {
                    match visitor.visit(id, vms.failures(&id)) {
                        Next::Never => vms.done(&id, None),
                        Next::Settled(delay) => vms.done(&id, Some(delay)),
                        Next::Wait(delay) => vms.wait(&id, delay),
                        Next::BackOff => vms.failed(&id),
                    }
                }
            })?;
        }
        Ok(())
    }

    fn tick(
        &self,
        name: &str,
        period: Duration,
        mut act: impl FnMut() + Send + 'static,
    ) -> Result<(), HostError> {
        let is_stopping = self.is_stopping.clone();
        self.spawn(name, move || {
            while !is_stopping.load(Ordering::Relaxed) {
                act();
                let begin = Instant::now();
                // More often than once: scoped threads that `act` may have made leave a token for
                // the next park behind, and it would end at once.
                while let Some(left) = period.checked_sub(begin.elapsed()) {
                    if is_stopping.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::park_timeout(left);
                }
            }
        })
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), HostError> {
        let thread = spawn_thread(name, run)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}

fn spawn_thread(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, HostError> {
    std::thread::Builder::new()
        .name(format!("tt-{name}"))
        .spawn(run)
        .map_err(|source| HostError::Thread { name: name.to_owned(), source })
}
