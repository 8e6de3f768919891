//! The host's side: table of rules, forwarding, the reserved block, and for each Env the outer end
//! of its edge with a route per member. Everything is named after the daemon's instance, and nothing
//! of others is touched.

use crate::addresses::Addresses;
use crate::element::Count;
use crate::elements::Elements;
use crate::env::HOST_END;
use crate::link::{Links, Route};
use crate::ports::Ports;
use crate::sysctl::Folder;
use crate::tracked::Connections;
use crate::{
    NetworkConfig, NetworkError, Peer, TUNNEL_ID, facts, foreign, netns, nft, peers, rules, sysctl,
    way_out,
};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tt_model::{EnvId, Layout, NetKind, Vm, VmId};

/// How the tables of all daemons begin, see [`Layout::nft_table`].
const TABLES: &str = "tt_";
/// Sysctls of the outer end of an edge.
const EDGE_SYSCTLS: [(&str, &str); 5] = [
    // What the host asks of a member through 127.0.0.1 leaves and comes back here.
    ("route_localnet", "1"),
    ("rp_filter", "1"),
    ("forwarding", "1"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
];

/// The namespace that the daemon runs in, prepared for Envs.
#[derive(Debug)]
pub(crate) struct Host {
    layout: Layout,
    namespace: File,
    /// Of the host's links.
    conf: Folder,
    /// The same of IPv6, if the kernel has it.
    conf_six: Option<Folder>,
    links: Mutex<Links>,
    ports: Mutex<Ports>,
    flat: Mutex<Addresses>,
    guests: Mutex<Addresses>,
    guests_six: Mutex<Addresses>,
    connections: Connections,
    /// Of the host's table, as they were loaded.
    rule_num: AtomicUsize,
}

impl Host {
    /// Prepares the calling thread's namespace; what is there already stays as it is.
    pub(crate) fn prepare(config: &NetworkConfig) -> Result<Self, NetworkError> {
        let (layout, block) = (config.layout.clone(), config.block.trunc());
        let mut links = Links::open()?;
        check_block(&config.layout, config.range, block, &mut links)?;
        make_dir(&layout.netns_dir())?;
        sysctl::forward(&record(&layout))?;
        way_out::forward(&record(&layout), &mut links)?;
        reserve(&layout, Some(block), &mut links)?;
        let table = layout.nft_table();
        let rule_num = AtomicUsize::new(load_rules(config)?);
        foreign::close_others(&table, &mut links)?;
        foreign::pass(&layout.link_prefix())?;
        let ports = Ports::open(table.clone(), block)?;
        let flat = Mutex::new(Addresses::open(table.clone(), nft::FLAT)?);
        let guests = Mutex::new(Addresses::open(table.clone(), nft::GUESTS)?);
        let guests_six = Mutex::new(Addresses::open_six(table, nft::GUESTS_SIX)?);
        let namespace = File::open(netns::OWN).map_err(|source| NetworkError::UseNamespace {
            action: "open",
            path: PathBuf::from(netns::OWN),
            source,
        })?;
        let (links, ports) = (Mutex::new(links), Mutex::new(ports));
        let connections = Connections::open().map_err(fail_to_end)?;
        let host = Self {
            layout,
            namespace,
            conf: Folder::open("ipv4/conf")?,
            conf_six: Folder::find("ipv6/conf")?,
            links,
            ports,
            flat,
            guests,
            guests_six,
            connections,
            rule_num,
        };
        host.change_ports(|_| Ok(()))?;
        Ok(host)
    }

    /// Puts back what is gone of what [`prepare`](Self::prepare) made; true if rules were.
    pub(crate) fn mend(&self, config: &NetworkConfig) -> Result<bool, NetworkError> {
        sysctl::forward(&record(&self.layout))?;
        way_out::forward(&record(&self.layout), &mut self.links())?;
        reserve(&self.layout, Some(config.block.trunc()), &mut self.links())?;
        let rule_num = count_rules(&self.layout.nft_table())?;
        let is_whole = rule_num == self.rule_num.load(Ordering::Relaxed);
        if !is_whole {
            self.rule_num.store(load_rules(config)?, Ordering::Relaxed);
        }
        foreign::close_others(&self.layout.nft_table(), &mut self.links())?;
        foreign::pass(&self.layout.link_prefix())?;
        if !is_whole {
            // What was known of elements went with them.
            self.ports().read()?;
            lock(&self.flat).read()?;
            lock(&self.guests).read()?;
            lock(&self.guests_six).read()?;
        }
        Ok(!is_whole)
    }

    /// Takes [`prepare`](Self::prepare) back.
    pub(crate) fn close(&self) -> Result<(), NetworkError> {
        let table = self.layout.nft_table();
        foreign::forget(&self.layout.link_prefix())?;
        self.links().remove(&self.layout.tunnel())?;
        nft::remove(&table)?;
        reserve(&self.layout, None, &mut self.links())?;
        let is_other = |name: &str| name.starts_with(TABLES) && name != table;
        let is_shared = self.ports().has_others(is_other)?;
        sysctl::restore(&record(&self.layout), is_shared)?;
        match fs::remove_dir(self.layout.netns_dir()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(fail("remove", &self.layout.netns_dir(), source))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn namespace(&self) -> &File {
        &self.namespace
    }

    pub(crate) fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    /// Makes the address of a member a part of the sets that it belongs to.
    pub(crate) fn set_addresses(&self, vm: &Vm) -> Result<(), NetworkError> {
        lock(&self.guests).set(vm, true)?;
        lock(&self.guests_six).set(vm, true)?;
        lock(&self.flat).set(vm, vm.net_kind == NetKind::Flatten)
    }

    /// Takes [`set_addresses`](Self::set_addresses) back.
    pub(crate) fn remove_addresses(&self, vm: VmId) -> Result<(), NetworkError> {
        lock(&self.flat).remove(vm)?;
        lock(&self.guests_six).remove(vm)?;
        lock(&self.guests).remove(vm)
    }

    /// As [`remove_addresses`](Self::remove_addresses), for all members of an Env.
    pub(crate) fn remove_env_addresses(&self, env: EnvId) -> Result<(), NetworkError> {
        lock(&self.flat).remove_env(env)?;
        lock(&self.guests_six).remove_env(env)?;
        lock(&self.guests).remove_env(env)
    }

    /// The Envs that have an address or a port here, by looking.
    pub(crate) fn envs(&self) -> Result<BTreeSet<EnvId>, NetworkError> {
        let mut ports = self.ports();
        ports.read()?;
        let mut envs = ports.envs();
        for set in [&self.flat, &self.guests, &self.guests_six] {
            let mut set = lock(set);
            set.read()?;
            envs.extend(set.envs());
        }
        Ok(envs)
    }

    /// What of a member's the host has stopped.
    pub(crate) fn stopped(&self, member: Ipv4Addr) -> Result<Count, NetworkError> {
        let mut stopped = lock(&self.guests).count(member)?;
        stopped += lock(&self.guests_six).count(member)?;
        Ok(stopped)
    }

    /// Makes the tunnel lead to these hosts.
    pub(crate) fn set_peers(
        &self,
        config: &NetworkConfig,
        peers: &[Peer],
    ) -> Result<(), NetworkError> {
        peers::set(config, peers, &mut self.links())
    }

    /// Changes ports, and ends the connections through those that are gone.
    pub(crate) fn change_ports(
        &self,
        change: impl FnOnce(&mut Ports) -> Result<(), NetworkError>,
    ) -> Result<(), NetworkError> {
        let (result, has_removed) = {
            let mut ports = self.ports();
            (change(&mut ports), ports.take_removed())
        };
        let ended = self.connections.end(has_removed, |all| {
            let ports = self.ports();
            all.retain(|tracked| ports.is_over(tracked));
        });
        result.and(ended.map_err(fail_to_end))
    }

    /// Makes the outer end of an Env's edge ready and leads a member's address there. The pair
    /// itself is made from within the namespace.
    pub(crate) fn set_route(&self, env: EnvId, member: Ipv4Addr) -> Result<(), NetworkError> {
        let name = self.layout.edge(env);
        let mut links = self.links();
        let index = match links.find(&name)? {
            Some(edge) if edge.is_up => edge.index,
            Some(edge) => {
                self.conf.below(&name)?.set(&EDGE_SYSCTLS)?;
                way_out::open_edge(&mut links, self.conf_six.as_ref(), (edge.index, &name))?;
                links.add_address(edge.index, HOST_END.into())?;
                links.set_up(edge.index, &name)?;
                edge.index
            }
            None => links.index(&name)?,
        };
        links.set_route(&Route::to(member.into(), Some(index)), None)?;
        way_out::lead_to(&mut links, self.conf_six.as_ref(), (index, &name), member)
    }

    /// Removes a member's route, if it leads to that Env.
    pub(crate) fn remove_route(&self, env: EnvId, member: Ipv4Addr) -> Result<(), NetworkError> {
        let mut links = self.links();
        match links.find(&self.layout.edge(env))? {
            Some(edge) => {
                way_out::lead_no_more_to(&mut links, edge.index, member)?;
                links.remove_route(&Route::to(member.into(), Some(edge.index)))
            }
            None => Ok(()),
        }
    }

    /// Removes an Env's edge, both ends of it, with its routes.
    pub(crate) fn remove_edge(&self, env: EnvId) -> Result<(), NetworkError> {
        self.links().remove(&self.layout.edge(env))
    }

    /// The Envs that have an edge.
    pub(crate) fn edges(&self) -> Result<BTreeSet<EnvId>, NetworkError> {
        let links = self.links().all()?;
        let envs = links.iter().filter_map(|link| env_of_edge(&self.layout, &link.name));
        Ok(envs.collect())
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        lock(&self.links)
    }
}

/// A poisoned lock is of no concern: what is known is compared with the kernel.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose edge that is.
fn env_of_edge(layout: &Layout, name: &str) -> Option<EnvId> {
    let id = name.strip_prefix(&layout.edge_prefix())?;
    let env = EnvId(u64::from_str_radix(id, 16).ok()?);
    (layout.edge(env) == name).then_some(env)
}

fn check_block(
    layout: &Layout,
    range: Ipv4Net,
    block: Ipv4Net,
    links: &mut Links,
) -> Result<(), NetworkError> {
    if !range.contains(&block) {
        return Err(NetworkError::PlaceBlock { block, range });
    }
    let metric = metric(layout);
    let tunnel = layout.tunnel();
    let is_own_link = |name: &str| env_of_edge(layout, name).is_some() || name == tunnel;
    let is_own = |route: &Route| route.is_ours && route.metric == metric;
    for taken in facts::taken(links, &is_own_link, &is_own)? {
        if facts::overlap(block, taken.net) {
            return Err(NetworkError::Collide { block, foreign: taken.net, owner: taken.owner });
        }
        if facts::overlap(range, taken.net) {
            let (net, owner) = (taken.net, taken.owner);
            tracing::warn!(%range, %net, owner, "guests can not reach a network in their range");
        }
    }
    Ok(())
}

/// Loads the host's table, or its rules again; returns how many there are.
fn load_rules(config: &NetworkConfig) -> Result<usize, NetworkError> {
    let table = config.layout.nft_table();
    let rules = rules::host_rules(&rules::HostSide {
        table: &table,
        edges: &config.layout.edge_prefix(),
        tunnel: &config.layout.tunnel(),
        tunnel_id: TUNNEL_ID,
        tunnel_port: config.tunnel_port,
        block: config.block.trunc(),
    });
    nft::load(&table, &rules)?.finish()?;
    count_rules(&table)
}

fn count_rules(table: &str) -> Result<usize, NetworkError> {
    let count = Elements::open().and_then(|mut elements| elements.rule_num(table));
    count.map_err(|source| NetworkError::WatchRules { source })
}

/// Makes `block` the one that this daemon has reserved: what goes to an address there that no
/// member has ends here, and other daemons see that it is taken.
fn reserve(layout: &Layout, block: Option<Ipv4Net>, links: &mut Links) -> Result<(), NetworkError> {
    let mut is_there = false;
    for route in links.routes()? {
        let is_own = route.is_ours && route.link.is_none() && route.metric == metric(layout);
        if is_own && Some(route.to) == block {
            is_there = true;
        } else if is_own {
            links.remove_route(&route)?;
        }
    }
    match block.filter(|_| !is_there) {
        Some(block) => {
            let route = Route { metric: metric(layout), ..Route::to(block, None) };
            links.set_route(&route, None)
        }
        None => Ok(()),
    }
}

/// Tells our reservation from another daemon's.
pub(crate) fn metric(layout: &Layout) -> u32 {
    u32::from(layout.instance.0) + 1
}

/// Where it is noted what we changed for the whole host.
fn record(layout: &Layout) -> PathBuf {
    layout.run.join("sysctls")
}

fn make_dir(path: &Path) -> Result<(), NetworkError> {
    fs::create_dir_all(path).map_err(|source| fail("make", path, source))
}

fn fail_to_end(source: io::Error) -> NetworkError {
    NetworkError::EndConnections { source }
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::UseFile { action, path: path.to_owned(), source }
}
