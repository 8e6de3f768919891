//! The public ports of a host: elements of one map, each with its owner's ids as comment. It never
//! takes a port from another Vm.

use crate::NetworkError;
use crate::elements::{Change, Element, Elements, Set};
use crate::nft::PORTS;
use crate::tracked::Tracked;
use ipnet::Ipv4Net;
use netlink_packet_netfilter::NetfilterProtoFamily;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use tt_model::{EnvId, Protocol, Vm, VmId};

/// What a client connects to.
type Public = (Protocol, u16);

/// Where a public port leads, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    env: EnvId,
    vm: VmId,
    addr: Ipv4Addr,
    port: u16,
}

/// The map and what we know of it: reading 60,000 elements for each change would take longer than
/// all the rest. Whatever the kernel says otherwise makes it read again.
#[derive(Debug)]
pub(crate) struct Ports {
    elements: Elements,
    table: String,
    block: Ipv4Net,
    known: Known,
    /// Since it was last asked.
    has_removed: bool,
}

#[derive(Debug, Default)]
struct Known {
    targets: BTreeMap<Public, Target>,
    /// So that the cost of a change does not grow with the ports of others.
    of_vm: BTreeMap<VmId, BTreeSet<Public>>,
}

impl Known {
    fn insert(&mut self, key: Public, target: Target) {
        self.targets.insert(key, target);
        self.of_vm.entry(target.vm).or_default().insert(key);
    }

    fn remove(&mut self, key: &Public) {
        let Some(target) = self.targets.remove(key) else {
            return;
        };
        if let Some(keys) = self.of_vm.get_mut(&target.vm) {
            keys.remove(key);
            if keys.is_empty() {
                self.of_vm.remove(&target.vm);
            }
        }
    }

    fn of_vm(&self, vm: VmId) -> Vec<Public> {
        let keys = self.of_vm.get(&vm);
        keys.into_iter().flatten().copied().collect()
    }

    fn of_env(&self, env: EnvId) -> Vec<Public> {
        let targets = self.targets.iter().filter(|(_, target)| target.env == env);
        targets.map(|(key, _)| *key).collect()
    }
}

impl Ports {
    /// In the calling thread's namespace, where the table must be. Ports lead into `block`.
    pub(crate) fn open(table: String, block: Ipv4Net) -> Result<Self, NetworkError> {
        let elements = Elements::open().map_err(|source| fail("open netlink for", source))?;
        let known = Known::default();
        // The last daemon may have died before it ended connections through what it removed.
        let mut ports = Self { elements, table, block, known, has_removed: true };
        ports.read()?;
        Ok(ports)
    }

    /// Reads the map anew.
    pub(crate) fn read(&mut self) -> Result<(), NetworkError> {
        let elements = self.elements.read(set(&self.table));
        let elements = elements.map_err(|source| fail("read", source))?;
        self.known = Known::default();
        for (key, target) in elements.iter().filter_map(read_element) {
            self.known.insert(key, target);
        }
        Ok(())
    }

    /// Makes the ports of `vm` those of its record.
    pub(crate) fn set(&mut self, vm: &Vm) -> Result<(), NetworkError> {
        let wanted = wanted(vm);
        match self.try_set(vm.id, &wanted) {
            Err(NetworkError::ChangeElements { .. } | NetworkError::PortTaken { .. }) => {
                self.read()?;
                self.try_set(vm.id, &wanted)
            }
            result => result,
        }
    }

    /// Removes the ports of a Vm.
    pub(crate) fn remove(&mut self, vm: VmId) -> Result<(), NetworkError> {
        self.remove_known(|known| known.of_vm(vm))
    }

    /// Removes the ports of an Env.
    pub(crate) fn remove_env(&mut self, env: EnvId) -> Result<(), NetworkError> {
        self.remove_known(|known| known.of_env(env))
    }

    /// The Envs that have a port.
    pub(crate) fn envs(&self) -> BTreeSet<EnvId> {
        self.known.targets.values().map(|target| target.env).collect()
    }

    /// Whether other daemons have a table here.
    pub(crate) fn has_others(
        &mut self,
        is_other: impl Fn(&str) -> bool,
    ) -> Result<bool, NetworkError> {
        let tables = self.elements.tables().map_err(|source| fail("read", source))?;
        Ok(tables.iter().any(|table| is_other(table)))
    }

    fn try_set(&mut self, vm: VmId, wanted: &BTreeMap<Public, Target>) -> Result<(), NetworkError> {
        let now = &self.known.targets;
        let mut known = wanted.keys().filter_map(|key| Some((key, now.get(key)?)));
        if let Some(((protocol, port), target)) = known.find(|(_, target)| target.vm != vm) {
            return Err(NetworkError::PortTaken {
                port: *port,
                protocol: *protocol,
                env: target.env,
                vm: target.vm,
            });
        }
        let mut stale = self.known.of_vm(vm);
        stale.retain(|key| wanted.get(key) != now.get(key));
        let missing = wanted.iter().filter(|(key, target)| now.get(key) != Some(target));
        let missing = missing.map(|(key, target)| (*key, *target)).collect();
        self.commit(stale, missing)
    }

    /// Whether ports were removed since it was last asked.
    pub(crate) fn take_removed(&mut self) -> bool {
        std::mem::take(&mut self.has_removed)
    }

    /// Whether that connection came through a port that does not lead there any more.
    pub(crate) fn is_over(&self, tracked: &Tracked) -> bool {
        let public = protocol_of(tracked.protocol).map(|protocol| (protocol, tracked.public));
        let target = public.and_then(|public| self.known.targets.get(&public));
        let leads = target.map(|target| (target.addr, target.port));
        self.block.contains(&tracked.to.0) && leads != Some(tracked.to)
    }

    fn remove_known(&mut self, gone: impl Fn(&Known) -> Vec<Public>) -> Result<(), NetworkError> {
        match self.commit(gone(&self.known), Vec::new()) {
            Err(_) => {
                self.read()?;
                self.commit(gone(&self.known), Vec::new())
            }
            done => done,
        }
    }

    fn commit(
        &mut self,
        remove: Vec<Public>,
        add: Vec<(Public, Target)>,
    ) -> Result<(), NetworkError> {
        let change = Change {
            set: set(&self.table),
            remove: remove.iter().map(|key| Element::of_key(key_bytes(*key))).collect(),
            add: add.iter().map(|(key, target)| emit_element(*key, target)).collect(),
        };
        let result = self.elements.change(vec![change]);
        result.map_err(|source| fail("change", source))?;
        self.has_removed |= !remove.is_empty();
        for key in &remove {
            self.known.remove(key);
        }
        for (key, target) in add {
            self.known.insert(key, target);
        }
        Ok(())
    }
}

fn set(table: &str) -> Set<'_> {
    Set { family: NetfilterProtoFamily::Inet, table, name: PORTS }
}

fn wanted(vm: &Vm) -> BTreeMap<Public, Target> {
    let target = |port: u16| Target { env: vm.env_id, vm: vm.id, addr: vm.resource.ip_addr, port };
    let ports = vm.resource.port_map.iter();
    ports.map(|(inner, public)| ((inner.protocol, *public), target(inner.port))).collect()
}

/// `inet_proto . inet_service`.
fn key_bytes((protocol, port): Public) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn emit_element(key: Public, target: &Target) -> Element {
    let [high, low] = target.port.to_be_bytes();
    Element {
        data: Some([target.addr.octets(), [high, low, 0, 0]].concat()),
        comment: Some(format!("{}/{}", target.env, target.vm)),
        ..Element::of_key(key_bytes(key))
    }
}

/// What has no comment of ours was not made by us and is left alone.
fn read_element(element: &Element) -> Option<(Public, Target)> {
    let (env, vm) = element.comment.as_ref()?.split_once('/')?;
    let &[protocol, _, _, _, key_high, key_low, ..] = element.key.as_slice() else {
        return None;
    };
    let &[a, b, c, d, high, low, ..] = element.data.as_deref()? else {
        return None;
    };
    let protocol = protocol_of(protocol)?;
    let target = Target {
        env: env.parse().ok()?,
        vm: vm.parse().ok()?,
        addr: Ipv4Addr::new(a, b, c, d),
        port: u16::from_be_bytes([high, low]),
    };
    Some(((protocol, u16::from_be_bytes([key_high, key_low])), target))
}

fn protocol_of(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.number() == number)
}

fn fail(action: &'static str, source: io::Error) -> NetworkError {
    NetworkError::ChangeElements { action, set: PORTS, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_say_whose_they_are() {
        let target =
            Target { env: EnvId(7), vm: VmId(12), addr: Ipv4Addr::new(10, 0, 0, 2), port: 80 };
        let key = (Protocol::Udp, 20_000);
        let element = emit_element(key, &target);
        assert_eq!(element.key, [17, 0, 0, 0, 0x4e, 0x20, 0, 0]);
        assert_eq!(read_element(&element), Some((key, target)));
        let foreign = Element { comment: None, ..element };
        assert_eq!(read_element(&foreign), None);
    }

    /// On a thread in a network namespace of its own, with the host's table loaded.
    fn with_table(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let inside = || {
                let flags = rustix::thread::UnshareFlags::NEWNET;
                // SAFETY: a network namespace parts nothing that Rust relies on.
                unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
                let block = "10.0.0.0/16".parse().unwrap();
                let rules = crate::rules::host_rules(&crate::rules::HostSide {
                    table: "tt_0001",
                    edges: "tt0001e",
                    tunnel: "tt0001v",
                    tunnel_id: 1,
                    tunnel_port: 4789,
                    block,
                });
                crate::nft::load("tt_0001", &rules).unwrap().finish().unwrap();
                test();
            };
            scope.spawn(inside).join().unwrap();
        });
    }

    fn vm_with_ports(number: u64, first: u16, count: u16) -> Vm {
        let mut vm = crate::conformance::sample_vm(EnvId(1), 0);
        vm.id = VmId(number);
        let port = |port| tt_model::InnerPort { port, protocol: Protocol::Tcp };
        vm.resource.port_map = (0..count).map(|n| (port(1 + n), first + n)).collect();
        vm
    }

    #[test]
    fn a_change_behind_our_back_is_noticed() {
        with_table(|| {
            let mut ours = Ports::open("tt_0001".into(), "10.0.0.0/16".parse().unwrap()).unwrap();
            let mut theirs = Ports::open("tt_0001".into(), "10.0.0.0/16".parse().unwrap()).unwrap();
            ours.set(&vm_with_ports(1, 20_000, 600)).unwrap();
            let thief = vm_with_ports(2, 20_599, 1);
            let taken = theirs.set(&thief);
            assert!(matches!(taken, Err(NetworkError::PortTaken { vm: VmId(1), .. })), "{taken:?}");
            theirs.remove(VmId(1)).unwrap();
            theirs.set(&thief).unwrap();
            ours.remove(VmId(1)).unwrap();
            ours.set(&vm_with_ports(1, 20_000, 599)).unwrap();
            ours.read().unwrap();
            assert_eq!(ours.known.targets.len(), 600);
        });
    }
}
