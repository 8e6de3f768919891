//! A network in memory that fails, hangs or dies on demand, one side effect at a time. It holds its
//! world behind an [`Arc`], so that the next daemon of a test finds what the last one left. It
//! never touches the host.

use crate::{EnvNames, Found, MEMBERS_MAX, Network, NetworkError, Peer, Reached, facts};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tt_model::fault::{Fault, FaultHook, Moment};
use tt_model::{EnvId, Traffic, Vm};

mod parts;
mod world;

use world::ports_of;
pub use world::{FakePort, FakeWorld};

/// See the module.
pub struct FakeNetwork {
    world: Arc<Mutex<FakeWorld>>,
    hook: FaultHook,
    died: AtomicBool,
    names: Mutex<BTreeMap<EnvId, EnvNames>>,
    wake: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl fmt::Debug for FakeNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeNetwork")
            .field("world", &self.world)
            .field("died", &self.died)
            .finish_non_exhaustive()
    }
}

impl FakeNetwork {
    /// A daemon's network on `world`. `hook` is asked before and after every side effect, without
    /// any lock being held, so it may block.
    pub fn new(world: Arc<Mutex<FakeWorld>>, hook: FaultHook) -> Self {
        Self {
            world,
            hook,
            died: AtomicBool::new(false),
            names: Mutex::default(),
            wake: Mutex::default(),
        }
    }

    /// The world as it is now.
    pub fn world(&self) -> FakeWorld {
        lock(&self.world).clone()
    }

    /// The names that were set for an Env since the daemon started.
    pub fn names(&self, env: EnvId) -> Option<EnvNames> {
        lock(&self.names).get(&env).cloned()
    }

    /// Somebody else flushes the host's rules: public ports, flat addresses and other hosts are gone until
    /// they are set again.
    pub fn flush(&self) {
        {
            let mut world = lock(&self.world);
            world.is_flushed = true;
            world.ports.clear();
            world.flat.clear();
            world.peers.clear();
        }
        let wake = lock(&self.wake).clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// The host gets other addresses.
    pub fn move_to(&self, public: Ipv4Addr, underlay: Ipv4Addr) {
        lock(&self.world).reached = Reached { public: Some(public), underlay: Some(underlay) };
    }

    /// Starts the daemon again after [`Fault::Die`]: the world is as it was, what was in memory is
    /// gone.
    pub fn revive(&self) {
        lock(&self.names).clear();
        self.died.store(false, Ordering::SeqCst);
    }

    fn alive(&self) -> Result<(), NetworkError> {
        if self.died.load(Ordering::SeqCst) { Err(NetworkError::Died) } else { Ok(()) }
    }

    fn ready(&self) -> Result<(), NetworkError> {
        self.alive()?;
        if lock(&self.world).host { Ok(()) } else { Err(NetworkError::NotInit) }
    }

    fn ask(&self, moment: Moment, effect: &'static str) -> Result<(), NetworkError> {
        self.alive()?;
        match (self.hook)(moment, effect) {
            Fault::None => Ok(()),
            Fault::Fail => Err(NetworkError::Fault { effect }),
            Fault::Die => {
                self.died.store(true, Ordering::SeqCst);
                Err(NetworkError::Died)
            }
        }
    }

    /// Looks with `differs`; if so, makes the side effect, with the hook before and after it.
    fn act<D, E>(&self, effect: &'static str, differs: D, change: E) -> Result<(), NetworkError>
    where
        D: FnOnce(&FakeWorld) -> bool,
        E: FnOnce(&mut FakeWorld),
    {
        self.alive()?;
        let differs = differs(&lock(&self.world));
        if differs {
            self.ask(Moment::Before, effect)?;
            change(&mut lock(&self.world));
            self.ask(Moment::After, effect)?;
        }
        Ok(())
    }

    fn is_set(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.ready()?;
        let world = lock(&self.world);
        match world.namespaces.get(&vm.env_id) {
            Some(members) if members.contains(&vm.id) => Ok(()),
            _ => Err(NetworkError::NotSet { vm: vm.id }),
        }
    }
}

impl Network for FakeNetwork {
    fn init(&self) -> Result<(), NetworkError> {
        self.act("net.host", |world| !world.host, |world| world.host = true)
    }

    fn mend(&self) -> Result<bool, NetworkError> {
        self.ready()?;
        let is_flushed = lock(&self.world).is_flushed;
        self.act("net.mend", |world| world.is_flushed, |world| world.is_flushed = false)?;
        Ok(is_flushed)
    }

    fn on_change(&self, wake: Arc<dyn Fn() + Send + Sync>) -> Result<(), NetworkError> {
        self.alive()?;
        *lock(&self.wake) = Some(wake);
        Ok(())
    }

    fn set_names(&self, env: EnvId, names: &EnvNames) -> Result<(), NetworkError> {
        self.ready()?;
        if names.members.len() > MEMBERS_MAX {
            return Err(NetworkError::SetNames { count: names.members.len(), max: MEMBERS_MAX });
        }
        if names.members.is_empty() {
            lock(&self.names).remove(&env);
        } else {
            lock(&self.names).insert(env, names.clone());
        }
        Ok(())
    }

    fn set_net(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.ready()?;
        let (env, addr) = (vm.env_id, vm.resource.ip_addr);
        self.act(
            "net.namespace",
            |world| !world.namespaces.contains_key(&env),
            |world| {
                world.namespaces.entry(env).or_default();
                world.edges.insert(env);
            },
        )?;
        self.act(
            "net.tap",
            |world| {
                let members = world.namespaces.get(&env);
                members.is_some_and(|members| !members.contains(&vm.id))
            },
            |world| {
                world.namespaces.entry(env).or_default().insert(vm.id);
            },
        )?;
        self.set_denied(vm, vm.deny_outgoing)?;
        self.set_listed(vm, &vm.state.net_blacklist.iter().copied().collect())?;
        self.set_allowed(vm)?;
        self.act(
            "net.route",
            |world| world.routes.get(&addr) != Some(&env),
            |world| {
                world.routes.insert(addr, env);
            },
        )?;
        self.set_flat(vm)?;
        self.set_ports(vm)
    }

    fn set_peers(&self, peers: &[Peer]) -> Result<(), NetworkError> {
        self.ready()?;
        let wanted: BTreeSet<Peer> = peers.iter().copied().collect();
        for (index, peer) in peers.iter().enumerate() {
            if peers[..index].iter().any(|other| facts::overlap(other.block, peer.block)) {
                return Err(NetworkError::PlacePeer { block: peer.block, host: peer.underlay });
            }
        }
        self.act("net.peers", |world| world.peers != wanted, |world| world.peers = wanted.clone())
    }

    fn reached_at(&self) -> Result<Reached, NetworkError> {
        self.ready()?;
        Ok(lock(&self.world).reached)
    }

    fn plug(&self, vm: &Vm, _: BorrowedFd<'_>) -> Result<(), NetworkError> {
        self.ready()?;
        self.is_set(vm)
    }

    fn unplug(&self, _: &Vm) -> Result<(), NetworkError> {
        self.ready()
    }

    fn unset_net(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.ready()?;
        let (env, addr) = (vm.env_id, vm.resource.ip_addr);
        self.act(
            "net.ports.remove",
            |world| !ports_of(world, vm.id).is_empty(),
            |world| world.ports.retain(|_, target| target.vm != vm.id),
        )?;
        self.act(
            "net.flat.remove",
            |world| world.flat.contains_key(&vm.id),
            |world| {
                world.flat.remove(&vm.id);
            },
        )?;
        self.act(
            "net.route.remove",
            |world| world.routes.get(&addr) == Some(&env),
            |world| {
                world.routes.remove(&addr);
            },
        )?;
        self.act(
            "net.tap.remove",
            |world| world.namespaces.get(&env).is_some_and(|m| m.contains(&vm.id)),
            |world| {
                if let Some(members) = world.namespaces.get_mut(&env) {
                    members.remove(&vm.id);
                }
                world.forget_limits(vm.id);
            },
        )?;
        let is_empty = {
            let world = lock(&self.world);
            world.namespaces.get(&env).is_none_or(BTreeSet::is_empty)
        };
        if is_empty { self.remove_namespace(env) } else { Ok(()) }
    }

    fn deny_outgoing(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.is_set(vm)?;
        self.set_denied(vm, true)
    }

    fn allow_outgoing(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.is_set(vm)?;
        self.set_denied(vm, false)
    }

    fn set_blacklist(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.is_set(vm)?;
        self.set_listed(vm, &vm.state.net_blacklist.iter().copied().collect())?;
        self.set_allowed(vm)
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, NetworkError> {
        self.is_set(vm)?;
        Ok(Traffic::default())
    }

    fn found(&self) -> Result<Found, NetworkError> {
        self.ready()?;
        let world = lock(&self.world);
        let envs = world.namespaces.clone();
        let ports = world.ports.values().map(|target| target.env);
        let flat = world.flat.values().copied();
        let leftovers = world.edges.iter().copied().chain(ports).chain(flat);
        Ok(Found { leftovers: leftovers.filter(|env| !envs.contains_key(env)).collect(), envs })
    }

    fn remove_stray(&self, env: EnvId) -> Result<(), NetworkError> {
        self.ready()?;
        self.act(
            "net.ports.remove",
            |world| world.ports.values().any(|target| target.env == env),
            |world| world.ports.retain(|_, target| target.env != env),
        )?;
        self.act(
            "net.flat.remove",
            |world| world.flat.values().any(|of| *of == env),
            |world| world.flat.retain(|_, of| *of != env),
        )?;
        lock(&self.names).remove(&env);
        self.remove_namespace(env)
    }

    fn close(&self) -> Result<(), NetworkError> {
        match self.found() {
            Ok(found) if found == Found::default() => {}
            Ok(_) | Err(NetworkError::NotInit) => return Ok(()),
            Err(error) => return Err(error),
        }
        let remove = |world: &mut FakeWorld| {
            world.host = false;
            world.peers.clear();
        };
        self.act("net.host.remove", |world| world.host, remove)
    }
}

/// A poisoned lock is of no concern: every change under it is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "fake_tests.rs"]
mod tests;
