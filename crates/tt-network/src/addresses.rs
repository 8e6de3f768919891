//! Sets of members' addresses in the host's table, each element with its owner's ids as comment: all
//! members, for counting, and those that are reached at their own address.

use crate::NetworkError;
use crate::element::Count;
use crate::elements::{Change, Element, Elements, Set};
use netlink_packet_netfilter::NetfilterProtoFamily;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use tt_model::{EnvId, Vm, VmId, six};

/// A set and what we know of it. Whatever the kernel says otherwise makes it read again.
#[derive(Debug)]
pub(crate) struct Addresses {
    elements: Elements,
    table: String,
    name: &'static str,
    /// Whether the elements are the IPv6 addresses that follow from those of the members.
    is_six: bool,
    known: Known,
}

impl Addresses {
    /// In the calling thread's namespace, where the table must be.
    pub(crate) fn open(table: String, name: &'static str) -> Result<Self, NetworkError> {
        Self::open_as(table, name, false)
    }

    /// As [`open`](Self::open), for a set of IPv6 addresses.
    pub(crate) fn open_six(table: String, name: &'static str) -> Result<Self, NetworkError> {
        Self::open_as(table, name, true)
    }

    fn open_as(table: String, name: &'static str, is_six: bool) -> Result<Self, NetworkError> {
        let elements = Elements::open().map_err(|source| fail(name, "open netlink for", source))?;
        let mut set = Self { elements, table, name, is_six, known: BTreeMap::new() };
        set.read()?;
        Ok(set)
    }

    /// Reads the set anew.
    pub(crate) fn read(&mut self) -> Result<(), NetworkError> {
        let elements = self.elements.read(set(&self.table, self.name));
        let elements = elements.map_err(|source| fail(self.name, "read", source))?;
        self.known = elements.iter().filter_map(read_element).collect();
        Ok(())
    }

    /// Makes the address of `vm` a part of the set, or not.
    pub(crate) fn set(&mut self, vm: &Vm, is_in: bool) -> Result<(), NetworkError> {
        let addr = self.key(vm.resource.ip_addr);
        let wanted = is_in.then_some((addr, (vm.env_id, vm.id)));
        self.change_known(|known| {
            let stale = of(known, |_, vm_id| vm_id == vm.id);
            let stale =
                stale.into_iter().filter(|old| Some(old) != wanted.as_ref().map(|(addr, _)| addr));
            let missing = wanted.clone().filter(|(addr, owner)| known.get(addr) != Some(owner));
            (stale.collect(), missing)
        })
    }

    /// Removes what a Vm has here.
    pub(crate) fn remove(&mut self, vm: VmId) -> Result<(), NetworkError> {
        self.change_known(|known| (of(known, |_, id| id == vm), None))
    }

    /// Removes what an Env has here.
    pub(crate) fn remove_env(&mut self, env: EnvId) -> Result<(), NetworkError> {
        self.change_known(|known| (of(known, |id, _| id == env), None))
    }

    /// What the element of an address has counted.
    pub(crate) fn count(&mut self, addr: Ipv4Addr) -> Result<Count, NetworkError> {
        let key = self.key(addr);
        let count = self.elements.count(set(&self.table, self.name), &key);
        count.map_err(|source| fail(self.name, "read", source))
    }

    /// The Envs that have a member here.
    pub(crate) fn envs(&self) -> BTreeSet<EnvId> {
        self.known.values().map(|(env, _)| *env).collect()
    }

    /// Makes the change that `plan` finds, and finds it again if the kernel says otherwise.
    fn change_known(&mut self, plan: impl Fn(&Known) -> Planned) -> Result<(), NetworkError> {
        match self.commit(plan(&self.known)) {
            Err(_) => {
                self.read()?;
                self.commit(plan(&self.known))
            }
            done => done,
        }
    }

    fn commit(&mut self, (remove, add): Planned) -> Result<(), NetworkError> {
        if remove.is_empty() && add.is_none() {
            return Ok(());
        }
        // An address that changes its owner is removed and added at once.
        let taken =
            add.as_ref().map(|(addr, _)| addr).filter(|addr| self.known.contains_key(*addr));
        let remove: Vec<Vec<u8>> = remove.into_iter().chain(taken.cloned()).collect();
        let change = Change {
            set: set(&self.table, self.name),
            remove: remove.iter().map(|addr| Element::of_key(addr.clone())).collect(),
            add: add
                .iter()
                .map(|(addr, (env, vm))| Element {
                    comment: Some(format!("{env}/{vm}")),
                    ..Element::of_key(addr.clone())
                })
                .collect(),
        };
        self.elements.change(vec![change]).map_err(|source| fail(self.name, "change", source))?;
        self.known.retain(|addr, _| !remove.contains(addr));
        self.known.extend(add);
        Ok(())
    }

    /// The element of the member that has `ip`.
    fn key(&self, ip: Ipv4Addr) -> Vec<u8> {
        match self.is_six {
            true => six::address(ip).octets().to_vec(),
            false => ip.octets().to_vec(),
        }
    }
}

/// Owners by the addresses, as bytes.
type Known = BTreeMap<Vec<u8>, (EnvId, VmId)>;

/// Addresses that go, and one that comes with its owner.
type Planned = (Vec<Vec<u8>>, Option<(Vec<u8>, (EnvId, VmId))>);

fn of(known: &Known, is_wanted: impl Fn(EnvId, VmId) -> bool) -> Vec<Vec<u8>> {
    let found = known.iter().filter(|(_, (env, vm))| is_wanted(*env, *vm));
    found.map(|(addr, _)| addr.clone()).collect()
}

fn set<'a>(table: &'a str, name: &'static str) -> Set<'a> {
    Set { family: NetfilterProtoFamily::Inet, table, name }
}

/// What has no comment of ours was not made by us and is left alone.
fn read_element(element: &Element) -> Option<(Vec<u8>, (EnvId, VmId))> {
    let (env, vm) = element.comment.as_ref()?.split_once('/')?;
    Some((element.key.clone(), (env.parse().ok()?, vm.parse().ok()?)))
}

fn fail(set: &'static str, action: &'static str, source: io::Error) -> NetworkError {
    NetworkError::ChangeElements { action, set, source }
}
