//! The network of a real host. It joins the two sides: what lies in an Env's namespace and what
//! lies on the host, in an order in which a daemon may die anywhere.

use crate::dhcp::Terms;
use crate::env::{BRIDGE_MTU, Inside, Plan, set_up_plugged};
use crate::gate::Gate;
use crate::link::Links;
use crate::locks::Locks;
use crate::member::Member;
use crate::named::Bounds;
use crate::nat::Host;
use crate::watch::RuleWatch;
use crate::{
    EnvNames, Found, MEMBERS_MAX, Network, NetworkError, Peer, Reached, facts, netns, peers,
};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tt_model::{EnvId, Layout, Traffic, Vm, VmId};

/// Where tunnels listen (IANA: VXLAN).
pub const TUNNEL_PORT: u16 = 4789;
/// Tells our tunnels from others on the same port (the VNI, 24 bits): `tt` in ASCII.
pub const TUNNEL_ID: u32 = 0x7474;

/// What a host's network is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Names of everything.
    pub layout: Layout,
    /// Where all inner addresses come from, of all hosts; its first address is every gateway.
    pub range: Ipv4Net,
    /// The part of the range that this host hands out.
    pub block: Ipv4Net,
    /// Where clients reach this host, if an administrator says so; else it is looked up.
    pub public: Option<Ipv4Addr>,
    /// The host's address that tunnels of other hosts lead to; without it there is no tunnel.
    pub underlay: Option<Ipv4Addr>,
    /// Whether nobody chose `underlay`, so that it follows the host's own address.
    pub is_underlay_found: bool,
    /// UDP port of the tunnel on all hosts, [`TUNNEL_PORT`] unless an administrator says otherwise.
    pub tunnel_port: u16,
    /// Who is asked for names that no member has, first to last; the first two are used.
    pub upstream_dns: Vec<SocketAddr>,
}

/// The driver for network namespaces and nftables. It works in the network namespace of the thread
/// that calls [`Network::init`]; all other calls come from threads in the same one.
#[derive(Debug)]
pub struct NetnsNetwork {
    config: NetworkConfig,
    locks: Locks,
    /// Where the host was reached when it was looked up last.
    reached: Mutex<Reached>,
    host: Mutex<Option<Arc<Made>>>,
    watch: Mutex<Option<RuleWatch>>,
}

/// What `init` makes.
#[derive(Debug)]
struct Made {
    host: Host,
    gate: Gate,
}

impl NetnsNetwork {
    /// Touches nothing before [`Network::init`].
    pub fn new(config: NetworkConfig) -> Self {
        let reached = Reached { public: config.public, underlay: config.underlay };
        Self {
            config,
            locks: Locks::default(),
            reached: Mutex::new(reached),
            host: Mutex::new(None),
            watch: Mutex::new(None),
        }
    }

    fn made(&self) -> Result<Arc<Made>, NetworkError> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        host.clone().ok_or(NetworkError::NotInit)
    }

    fn member(&self, vm: &Vm) -> Member {
        Member::new(vm, self.config.range)
    }

    fn netns(&self, env: EnvId) -> PathBuf {
        self.config.layout.netns(env)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.config.range.network()) + 1)
    }

    fn with_plan<T>(
        &self,
        made: &Made,
        env: EnvId,
        action: impl FnOnce(&Plan<'_>) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        action(&Plan {
            gateway: self.gateway(),
            range: self.config.range,
            edge: &self.config.layout.edge(env),
            host: made.host.namespace().as_fd(),
        })
    }

    /// Inside the Env's namespace, which is made if it is not there.
    fn set_inside(&self, made: &Made, env: EnvId, member: &Member) -> Result<(), NetworkError> {
        let path = self.netns(env);
        let is_attached = made.gate.is_attached(env);
        let gateway = self.gateway();
        let (door, is_new) = self.with_plan(made, env, |plan| {
            let set = |mut inside: Inside| {
                let is_new = inside.set(plan, member)?;
                if is_attached {
                    return Ok((None, is_new));
                }
                Ok((Some((inside.open_gate(gateway)?, inside.known(self.config.range)?)), is_new))
            };
            if netns::exists(&path) {
                return netns::enter(&path, || set(Inside::open()?));
            }
            // An edge of a namespace that died before it had a file ends some time later; the new
            // one needs its name now.
            made.host.remove_edge(env)?;
            netns::make(&path, || set(Inside::open_new()?))
        })?;
        if let Some((sockets, known)) = door {
            made.gate.attach(env, sockets, known)?;
        }
        made.gate.set_bounds(env, member.ip, member.bounds())?;
        if is_new { made.gate.open_again(env) } else { Ok(()) }
    }

    /// Gives the gate its sockets in the namespaces that an earlier daemon left.
    fn attach_all(&self, made: &Made) -> Result<(), NetworkError> {
        let gateway = self.gateway();
        for env in netns::list(&self.config.layout.netns_dir())? {
            let path = self.netns(env);
            if !netns::exists(&path) || made.gate.is_attached(env) {
                continue;
            }
            let open = || {
                let mut inside = Inside::open()?;
                Ok((inside.open_gate(gateway)?, inside.known(self.config.range)?))
            };
            match netns::enter(&path, open) {
                Ok((sockets, known)) => made.gate.attach(env, sockets, known)?,
                // The next `set_net` mends it, or the sweep removes it.
                Err(error) => tracing::warn!(%env, %error, "no names in this env for now"),
            }
        }
        Ok(())
    }

    fn remove_env(&self, made: &Made, env: EnvId) -> Result<(), NetworkError> {
        // Its socket would keep the namespace.
        made.gate.detach(env);
        made.host.remove_edge(env)?;
        netns::remove(&self.netns(env))
    }

    /// Changes the limits of a member that has its network.
    fn set_limits(&self, vm: &Vm, change: impl FnOnce(&mut Member)) -> Result<(), NetworkError> {
        let made = self.made()?;
        let _locked = self.locks.lock(vm.env_id)?;
        let path = self.netns(vm.env_id);
        let mut member = self.member(vm);
        change(&mut member);
        if !netns::exists(&path) {
            return Err(NetworkError::NotSet { vm: vm.id });
        }
        netns::enter(&path, || {
            let mut inside = Inside::open()?;
            if inside.has_member(&member)? {
                inside.set_elements(&member)
            } else {
                Err(NetworkError::NotSet { vm: vm.id })
            }
        })?;
        made.gate.set_bounds(vm.env_id, member.ip, member.bounds())
    }

    fn members(&self, env: EnvId) -> Result<BTreeSet<VmId>, NetworkError> {
        netns::enter(&self.netns(env), || Inside::open()?.members())
    }
}

impl Network for NetnsNetwork {
    fn init(&self) -> Result<(), NetworkError> {
        let mut slot = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::prepare(&self.config)?;
        if slot.is_some() {
            return Ok(());
        }
        let upstream = self.config.upstream_dns.clone();
        let terms = Terms { range: self.config.range, mtu: BRIDGE_MTU };
        let gate = Gate::start(terms, upstream)?;
        let made = Made { host, gate };
        self.attach_all(&made)?;
        *slot = Some(Arc::new(made));
        Ok(())
    }

    fn mend(&self) -> Result<bool, NetworkError> {
        self.made()?.host.mend(&self.config)
    }

    fn on_change(&self, wake: Arc<dyn Fn() + Send + Sync>) -> Result<(), NetworkError> {
        let watch = RuleWatch::start(wake)?;
        let before = self.watch.lock().unwrap_or_else(PoisonError::into_inner).replace(watch);
        drop(before);
        Ok(())
    }

    fn set_names(&self, env: EnvId, names: &EnvNames) -> Result<(), NetworkError> {
        let made = self.made()?;
        if names.members.len() > MEMBERS_MAX {
            return Err(NetworkError::SetNames { count: names.members.len(), max: MEMBERS_MAX });
        }
        made.gate.set_names(env, names)
    }

    fn set_net(&self, vm: &Vm) -> Result<(), NetworkError> {
        let made = self.made()?;
        let _locked = self.locks.lock(vm.env_id)?;
        self.set_inside(&made, vm.env_id, &self.member(vm))?;
        made.host.set_route(vm.env_id, vm.resource.ip_addr)?;
        made.host.set_addresses(vm)?;
        made.host.change_ports(|ports| ports.set(vm))
    }

    fn set_peers(&self, peers: &[Peer]) -> Result<(), NetworkError> {
        let made = self.made()?;
        peers::check(&self.config, peers)?;
        let underlay = self.reached_at()?.underlay;
        made.host.set_peers(&NetworkConfig { underlay, ..self.config.clone() }, peers)
    }

    fn reached_at(&self) -> Result<Reached, NetworkError> {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if self.config.public.is_none() || self.config.is_underlay_found {
            let last = reached.public.or(reached.underlay);
            let found = facts::follow_address(&mut Links::open()?, last, self.config.range)?;
            if self.config.public.is_none() {
                reached.public = found.or(reached.public);
            }
            if self.config.is_underlay_found {
                reached.underlay = found.or(reached.underlay);
            }
        }
        Ok(*reached)
    }

    fn plug(&self, vm: &Vm, into: BorrowedFd<'_>) -> Result<(), NetworkError> {
        self.made()?;
        let _locked = self.locks.lock(vm.env_id)?;
        let (path, member) = (self.netns(vm.env_id), self.member(vm));
        let Some(plug) = member.plug.clone().filter(|_| netns::exists(&path)) else {
            return Err(NetworkError::NotSet { vm: vm.id });
        };
        let prefix = self.config.range.prefix_len();
        let address = Ipv4Net::new_assert(member.ip, prefix);
        let inside = Path::new("the namespace of a container");
        let set_up = || netns::enter_open(into, inside, || set_up_plugged(address, self.gateway()));
        if !set_up()? {
            netns::enter(&path, || {
                let mut inside = Inside::open()?;
                match inside.knows(&member)? {
                    true => inside.plug(&member, &plug, into),
                    false => Err(NetworkError::NotSet { vm: vm.id }),
                }
            })?;
            set_up()?;
        }
        Ok(())
    }

    fn unplug(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.made()?;
        let _locked = self.locks.lock(vm.env_id)?;
        let (path, member) = (self.netns(vm.env_id), self.member(vm));
        match member.plug.clone().filter(|_| netns::exists(&path)) {
            Some(plug) => netns::enter(&path, || {
                let mut inside = Inside::open()?;
                match inside.knows(&member)? {
                    true => inside.unplug(&member, &plug),
                    false => Ok(()),
                }
            }),
            None => Ok(()),
        }
    }

    fn unset_net(&self, vm: &Vm) -> Result<(), NetworkError> {
        let made = self.made()?;
        let env = vm.env_id;
        let _locked = self.locks.lock(env)?;
        made.host.change_ports(|ports| ports.remove(vm.id))?;
        made.host.remove_addresses(vm.id)?;
        if !netns::exists(&self.netns(env)) {
            return self.remove_env(&made, env);
        }
        let mut others = self.members(env)?;
        others.remove(&vm.id);
        if others.is_empty() {
            return self.remove_env(&made, env);
        }
        made.host.remove_route(env, vm.resource.ip_addr)?;
        let member = self.member(vm);
        netns::enter(&self.netns(env), || Inside::open()?.unset_member(&member))?;
        made.gate.set_bounds(env, member.ip, Bounds::default())
    }

    fn deny_outgoing(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.set_limits(vm, |member| member.is_denied = true)
    }

    fn allow_outgoing(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.set_limits(vm, |member| member.is_denied = false)
    }

    fn set_blacklist(&self, vm: &Vm) -> Result<(), NetworkError> {
        self.set_limits(vm, |_| {})
    }

    fn traffic(&self, vm: &Vm) -> Result<Traffic, NetworkError> {
        let made = self.made()?;
        let _locked = self.locks.lock(vm.env_id)?;
        let path = self.netns(vm.env_id);
        if !netns::exists(&path) {
            return Err(NetworkError::NotSet { vm: vm.id });
        }
        let member = self.member(vm);
        let mut traffic = netns::enter(&path, || {
            let mut inside = Inside::open()?;
            match inside.has_member(&member)? {
                true => inside.traffic(&member),
                false => Err(NetworkError::NotSet { vm: vm.id }),
            }
        })?;
        traffic.blocked_packets += made.host.stopped(member.ip)?.packets;
        Ok(traffic)
    }

    fn found(&self) -> Result<Found, NetworkError> {
        let made = self.made()?;
        let mut found = Found::default();
        for env in netns::list(&self.config.layout.netns_dir())? {
            let _locked = self.locks.lock(env)?;
            let path = self.netns(env);
            if netns::exists(&path) {
                found.envs.insert(env, self.members(env)?);
            } else if path.exists() {
                found.leftovers.insert(env);
            }
        }
        let mut outside = made.host.edges()?;
        outside.extend(made.host.envs()?);
        outside.retain(|env| !found.envs.contains_key(env));
        found.leftovers.append(&mut outside);
        Ok(found)
    }

    fn remove_stray(&self, env: EnvId) -> Result<(), NetworkError> {
        let made = self.made()?;
        let _locked = self.locks.lock(env)?;
        made.host.change_ports(|ports| ports.remove_env(env))?;
        made.host.remove_env_addresses(env)?;
        self.remove_env(&made, env)?;
        made.gate.forget(env);
        Ok(())
    }

    fn close(&self) -> Result<(), NetworkError> {
        match self.found() {
            Ok(found) if found == Found::default() => {}
            Ok(_) | Err(NetworkError::NotInit) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut slot = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = slot.as_ref() {
            made.host.close()?;
        }
        *slot = None;
        Ok(())
    }
}
