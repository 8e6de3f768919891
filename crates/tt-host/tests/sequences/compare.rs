//! Compares a [`World`] with the [`Model`]: everything that is there is looked at, and nothing else
//! may be there.

use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use testkit::sequence::{Chosen, Content, Model, compare_records, has_machine, same};
use tt_engine::Machine;
use tt_model::{Env, Goal, Phase, Usage, Vm, names};
use tt_network::fake::{FakePort, FakeWorld as FakeNets};
use tt_store::Kv;

/// What the model leaves open and the world then keeps to.
#[derive(Debug, Default)]
pub struct Facts {
    /// The storage's number for each content.
    contents: BTreeMap<Content, u64>,
    chosen: Chosen,
}

/// Says where the world is not as the model.
pub fn compare(world: &World, model: &Model, facts: &mut Facts) -> Result<(), String> {
    let tables = world.tables();
    let envs: Vec<Env> = tables.envs().unwrap().into_iter().map(|row| row.value).collect();
    let vms: Vec<Vm> = tables.vms().unwrap().into_iter().map(|row| row.value).collect();
    compare_records(model, &envs, &vms, &mut facts.chosen, 0)?;
    for vm in &vms {
        let compared = disks(world, model, vm, facts).and_then(|()| machine(world, model, vm));
        compared.map_err(|problem| format!("{}: {problem}", vm.full_name()))?;
    }
    images(world, model, facts)?;
    memories(world, model, &vms)?;
    network(world, &envs, &vms)?;
    store(world, model, &envs, &vms)?;
    metas(world, model, &vms)
}

fn disks(world: &World, model: &Model, vm: &Vm, facts: &mut Facts) -> Result<(), String> {
    let expected = model.of(vm);
    let images = world.disk.images_of(vm.id);
    same("disks", images.keys().collect::<Vec<_>>(), vm.disks.keys().collect())?;
    let mut needed = BTreeSet::new();
    for root in vm.snapshots.values().filter_map(|s| s.epoch).chain([vm.epoch]) {
        let mut next = Some(root);
        while let Some(epoch) = next.filter(|epoch| needed.insert(*epoch)) {
            next = vm.disks[&epoch].parent;
        }
    }
    same("needed disks", vm.disks.keys().copied().collect(), needed)?;
    same("merge under way", vm.merge, None)?;
    let is_whole = |image: &tt_storage::fake::FakeImage| image.complete;
    same("complete disks", images.values().all(is_whole), true)?;
    let runtime = &images[&vm.epoch];
    same(
        "runtime image: size, frozen",
        (runtime.size_mb, runtime.frozen),
        (expected.now.disk_mb, false),
    )?;
    facts.content("disk", expected.now.disk, world.disk.content(vm.id, vm.epoch))?;
    for snapshot in vm.snapshots.values() {
        let moment = &expected.snapshots[&snapshot.name].moment;
        let epoch = snapshot.epoch.ok_or("a snapshot without a disk")?;
        facts.content("disk of a snapshot", moment.disk, world.disk.content(vm.id, epoch))?;
        same("its size", images[&epoch].size_mb, moment.disk_mb)?;
    }
    Ok(())
}

fn machine(world: &World, model: &Model, vm: &Vm) -> Result<(), String> {
    let expected = model.of(vm);
    let (seen, phase) = match expected.goal {
        Goal::Running => (Machine::Running, Phase::Ready),
        Goal::Paused => (Machine::Paused, Phase::Paused),
        _ => (Machine::Absent, Phase::Stopped),
    };
    same("machine", world.machines.machine(vm.id), seen)?;
    let status = world.tables().status(vm.id).unwrap().ok_or("it has no status")?.value;
    same(
        "status",
        (status.phase, status.generation, status.trouble),
        (phase, vm.generation, None),
    )?;
    if !has_machine(expected.goal) {
        return Ok(());
    }
    let machines = &world.machines;
    same("memory", machines.content(vm.id), expected.now.memory)?;
    same("size", machines.size(vm.id), Some(expected.now.machine))?;
    same("incarnation", machines.incarnation(vm.id), Some(vm.incarnation))?;
    same("open disk", machines.image(vm.id), Some(vm.runtime_image.clone()))?;
    same("size of the open disk", machines.disk_mb(vm.id), Some(expected.now.disk_mb))?;
    let limit = machines.disk_limit(vm.id).unwrap_or_default();
    let limit = (limit.0.unwrap_or_default(), limit.1.unwrap_or_default());
    same("limit of the open disk", limit, expected.now.disk_limit)
}

fn images(world: &World, model: &Model, facts: &mut Facts) -> Result<(), String> {
    let rows = world.tables().images().unwrap();
    same(
        "kept images",
        rows.iter().map(|row| row.value.id).collect(),
        model.images.keys().copied().collect::<BTreeSet<_>>(),
    )?;
    for image in rows.iter().map(|row| &row.value) {
        let expected = &model.images[&image.id];
        let found = world.disk.images_of(image.id);
        same(
            "disks of a kept image",
            found.keys().collect::<Vec<_>>(),
            image.disks.keys().collect(),
        )?;
        let file = image.runtime_image.rsplit('/').next().unwrap_or_default();
        let epoch = file.split('.').next().unwrap_or_default().parse().unwrap();
        facts.content("kept image", expected.disk, world.disk.content(image.id, epoch))?;
        same(
            "its size",
            (image.disk_size, found[&epoch].size_mb),
            (expected.disk_mb, expected.disk_mb),
        )?;
    }
    Ok(())
}

/// What lies in `memory/`, with its content.
fn memories(world: &World, model: &Model, vms: &[Vm]) -> Result<(), String> {
    let mut expected = BTreeMap::new();
    let found = world.machines.memories();
    for vm in vms {
        let is = model.of(vm);
        for snapshot in vm.snapshots.values() {
            let content = is.snapshots[&snapshot.name].moment.memory;
            expected.extend(snapshot.memory.clone().zip(content));
        }
        if is.goal == Goal::Suspended {
            expected.extend(is.now.memory.map(|m| (names::suspended(vm.id, vm.incarnation), m)));
        }
        // It may be of a snapshot that was dropped since: what it was is not known any more.
        let begun = vm.memory.clone().filter(|path| !expected.contains_key(path));
        expected.extend(
            begun.and_then(|path| found.get_key_value(&path)).map(|(p, c)| (p.clone(), *c)),
        );
    }
    same("memory on disk", found, expected)
}

fn network(world: &World, envs: &[Env], vms: &[Vm]) -> Result<(), String> {
    let mut expected = FakeNets { host: true, ..FakeNets::default() };
    let mut told: crate::world::Names = BTreeMap::new();
    for env in envs {
        expected.namespaces.insert(env.id, env.vm_set.clone());
        expected.edges.insert(env.id);
        let members = vms.iter().filter(|vm| vm.env_id == env.id);
        told.insert(env.id, members.map(|vm| (vm.name.clone(), vm.resource.ip_addr)).collect());
    }
    for vm in vms {
        let addr = vm.resource.ip_addr;
        expected.routes.insert(addr, vm.env_id);
        for (inner, public) in &vm.resource.port_map {
            let target = FakePort { env: vm.env_id, vm: vm.id, addr, port: inner.port };
            expected.ports.insert((inner.protocol, *public), target);
        }
        if vm.deny_outgoing {
            expected.denied.insert(vm.id);
        }
        if !vm.state.net_blacklist.is_empty() {
            let list = vm.state.net_blacklist.iter().copied().collect();
            expected.blacklists.insert(vm.id, list);
        }
    }
    same("network", &*world.nets.lock().unwrap(), &expected)?;
    same("names", &*world.names.lock().unwrap(), &told)
}

/// The records beside those of Envs and Vms.
fn store(world: &World, model: &Model, envs: &[Env], vms: &[Vm]) -> Result<(), String> {
    use tt_store::tables::Key;
    let tables = world.tables();
    let host = world.host.id;
    let mut keys = vec![Key::Host(host)];
    for env in envs {
        keys.extend([Key::Env(env.id), Key::EnvName(env.name.clone())]);
    }
    for vm in vms {
        keys.extend([Key::Vm(vm.id), Key::Status(vm.id)]);
        keys.push(Key::Address(host, vm.resource.ip_addr));
        let public: BTreeSet<u16> = vm.resource.port_map.values().copied().collect();
        keys.extend(public.into_iter().map(|port| Key::Port(host, port)));
    }
    keys.extend(model.images.keys().map(|id| Key::Image(*id)));
    let mut expected: Vec<String> = keys.iter().map(Key::path).collect();
    let counts = tables.usage(host).unwrap();
    expected.extend(counts.iter().map(|_| Key::Usage(host).path()));
    expected.push(Key::NextId.path());
    expected.sort();
    let entries = world.kv.range("", None, 10_000).unwrap().entries;
    same("keys", entries.into_iter().map(|entry| entry.key).collect(), expected)?;
    same("next id", tables.next_id().unwrap().map(|row| row.value), Some(model.next_id))?;
    let members = model.envs.values().flat_map(|env| env.vms.values());
    let sizes = members.map(|vm| u64::from(vm.now.size.mem_size));
    let Usage { vm_num, mem_size, .. } = counts.map(|row| row.value).unwrap_or_default();
    same("usage", (vm_num as usize, mem_size), (vms.len(), sizes.sum()))
}

/// Which files there are; that they say what the records say is seen when a store is rebuilt.
fn metas(world: &World, model: &Model, vms: &[Vm]) -> Result<(), String> {
    let mut expected: BTreeSet<String> = BTreeSet::new();
    let mut expect = |path: &Path| expected.insert(path.display().to_string());
    for env in model.envs.values() {
        expect(&names::env_meta(env.id));
        env.vms.keys().for_each(|id| {
            expect(&names::latest_meta(*id));
        });
    }
    for snapshot in vms.iter().flat_map(|vm| vm.snapshots.values()) {
        expect(&snapshot.meta_path);
    }
    model.images.keys().for_each(|id| {
        expect(&names::image_meta(*id));
    });
    let mut found = BTreeSet::new();
    list(world.dir.path(), Path::new("meta"), &mut found);
    same("metas", found, expected)
}

fn list(data: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(data.join(below)).into_iter().flatten() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => list(data, &path, found),
            false => drop(found.insert(path.display().to_string())),
        }
    }
}

impl Facts {
    /// Equal contents are equal numbers, others are others.
    fn content(&mut self, what: &str, content: Content, found: Option<u64>) -> Result<(), String> {
        let found = found.ok_or(format!("{what}: it is not there"))?;
        let known = *self.contents.entry(content).or_insert(found);
        let others = self.contents.iter().filter(|(other, _)| **other != content);
        let mix_up = others.into_iter().find(|(_, number)| **number == found);
        match mix_up {
            Some((other, _)) => Err(format!("{what}: has content {other}, should have {content}")),
            None => same(&format!("{what} of content {content}"), found, known),
        }
    }
}
