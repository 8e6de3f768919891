//! Rebuilds a lost store from the metas that lie beside the disks. It touches no guest: the daemon
//! that starts on the rebuilt store finds them by looking, as after any other start.

use crate::HostError;
use crate::meta::Metas;
use crate::visit::COMMIT_TRIES;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tt_model::plan::EnvPlan;
use tt_model::{Env, EnvId, Goal, Host, HostId, KeptImage, Usage, Vm, VmTemplate, names};
use tt_store::tables::{Change, Committed, Tables, TemplateRecord};

/// What was rebuilt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Names of the Envs, with how many Vms each has.
    pub envs: Vec<(String, usize)>,
    /// Disks that outlived their Vms.
    pub image_num: usize,
    /// Templates.
    pub template_num: usize,
    /// Metas that could not be used, with the reason; what they described is not in the store.
    pub refused: Vec<String>,
}

/// What the metas say.
#[derive(Debug, Default)]
struct Found {
    host: Option<Host>,
    envs: BTreeMap<EnvId, Env>,
    vms: BTreeMap<EnvId, Vec<Vm>>,
    images: Vec<KeptImage>,
    refused: Vec<String>,
}

/// Reads all metas and writes the records that they were made from into `tables`, which must hold
/// no Env. `templates` are those that the data directory has.
///
/// With `is_lenient` metas that can not be read are left out. Otherwise one of them refuses the
/// whole: the disks of a Vm without a record are strays, and are removed.
///
/// # Errors
/// [`HostError::Refused`], with nothing written; [`HostError::NotEmpty`]; the store's.
pub fn recover(
    tables: &Tables,
    metas: &Metas,
    templates: &[VmTemplate],
    is_lenient: bool,
) -> Result<Recovered, HostError> {
    if !tables.envs()?.is_empty() || !tables.vms()?.is_empty() {
        return Err(HostError::NotEmpty);
    }
    let found = read(metas)?;
    if !found.refused.is_empty() && !is_lenient {
        return Err(HostError::Refused { refused: found.refused });
    }
    let mut recovered = Recovered { refused: found.refused, ..Recovered::default() };
    let host_id = host_id(&found.host, &found.vms);
    if let Some(host) = &found.host {
        tables.commit(&Change::new().host(host)?)?;
    }
    take_ids_up_to(tables, host_id.0)?;
    for image in &found.images {
        take_ids_up_to(tables, image.id.0)?;
        tables.commit(&Change::new().new_image(image)?)?;
        recovered.image_num += 1;
    }
    for template in templates {
        let record = TemplateRecord {
            name: template.name.clone(),
            source: None,
            memo: None,
            origin: None,
            host: host_id,
            is_wanted: true,
            template: Some(template.clone()),
            step: None,
            progress: None,
            trouble: None,
            push: None,
        };
        // Known already after an earlier recovery that was cut short.
        tables.commit(&Change::new().new_template(&record)?)?;
        recovered.template_num += 1;
    }
    let mut vms = found.vms;
    for (id, env) in found.envs {
        let members = vms.remove(&id).unwrap_or_default();
        recovered.envs.push((env.name.clone(), members.len()));
        write_env(tables, host_id, env, members)?;
    }
    Ok(recovered)
}

fn read(metas: &Metas) -> Result<Found, HostError> {
    let mut found = Found::default();
    let mut orphans: Vec<Vm> = Vec::new();
    for name in metas.names()? {
        let path = PathBuf::from("meta").join(&name);
        let number = |prefix: &str| {
            let rest = name.strip_prefix(prefix)?;
            rest.strip_suffix(".json").unwrap_or(rest).parse::<u64>().ok()
        };
        if path == names::host_meta() {
            found.host = keep(&mut found.refused, metas.read(&path));
        } else if number("env-").is_some() {
            let env = keep(&mut found.refused, metas.read(&path));
            found.envs.extend(env.map(|env: Env| (env.id, env)));
        } else if number("image-").is_some() {
            found.images.extend(keep(&mut found.refused, metas.read(&path)));
        } else if let Some(id) = number("") {
            let latest = names::latest_meta(tt_model::VmId(id));
            orphans.extend(keep(&mut found.refused, metas.read(&latest)));
        }
    }
    for vm in orphans {
        match found.envs.get_mut(&vm.env_id) {
            Some(_) => found.vms.entry(vm.env_id).or_default().push(vm),
            None => {
                found.refused.push(format!("{}: its env {} has no meta", vm.full_name(), vm.env_id))
            }
        }
    }
    Ok(found)
}

fn keep<T>(refused: &mut Vec<String>, read: Result<T, crate::MetaError>) -> Option<T> {
    read.map_err(|error| refused.push(crate::layers::chain(&error))).ok()
}

/// The host's id: from its own meta, else from any member.
fn host_id(host: &Option<Host>, vms: &BTreeMap<EnvId, Vec<Vm>>) -> HostId {
    let member = || vms.values().flatten().map(|vm| vm.host).next();
    host.as_ref().map(|host| host.id).or_else(member).unwrap_or(HostId(1))
}

/// Writes an Env with the members that were found, and all that they take.
fn write_env(
    tables: &Tables,
    host: HostId,
    mut env: Env,
    mut vms: Vec<Vm>,
) -> Result<(), HostError> {
    vms.sort_by_key(|vm| vm.id);
    env.vm_set = vms.iter().map(|vm| vm.id).collect();
    // The last of an ending Env's members takes the Env along; without one nobody would.
    if vms.is_empty() {
        return Ok(());
    }
    for vm in vms.iter_mut().filter(|_| env.is_ending) {
        vm.goal = Goal::Gone;
    }
    for _ in 0..COMMIT_TRIES {
        let (usage, next_id) = (tables.usage(host)?, tables.next_id()?);
        let mut used: Usage = usage.clone().map(|row| row.value).unwrap_or_default();
        used.vm_num += u32::try_from(vms.len()).unwrap_or(u32::MAX);
        used.mem_size += vms.iter().map(|vm| u64::from(vm.resource.mem_size)).sum::<u64>();
        let largest = vms.iter().map(|vm| vm.id.0).max().unwrap_or(0).max(env.id.0);
        let known = next_id.as_ref().map_or(1, |row| row.value);
        let plan = EnvPlan {
            env: env.clone(),
            vms: vms.clone(),
            usage: used,
            next_id: known.max(largest + 1),
        };
        let change = Change::new().create_env(&plan, usage.as_ref(), next_id.as_ref())?;
        if let Committed::Done(_) = tables.commit(&change)? {
            return Ok(());
        }
    }
    Err(HostError::Contended { what: format!("env {}", env.name), tries: COMMIT_TRIES })
}

/// Makes sure that `id` and those below it are never handed out.
fn take_ids_up_to(tables: &Tables, id: u64) -> Result<(), HostError> {
    let next_id = tables.next_id()?;
    if next_id.as_ref().is_none_or(|row| row.value <= id) {
        tables.commit(&Change::new().next_id(id + 1, next_id.as_ref())?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tt_model::{AtEnd, EnvState, Instance, Layout, StorageKind, VmId, sample};
    use tt_store::memory::MemoryKv;

    fn metas() -> (tempfile::TempDir, Metas) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_owned();
        let layout = Layout { run: data.join("run"), data, instance: Instance(1) };
        let metas = Metas::new(&layout);
        (dir, metas)
    }

    fn env(id: u64) -> Env {
        Env {
            id: EnvId(id),
            name: format!("env-{id}"),
            start_timestamp: 1,
            end_timestamp: 1000,
            vm_set: [VmId(id + 1), VmId(id + 2)].into(),
            state: EnvState::default(),
            at_end: AtEnd::Destroy,
            request_key: "k".into(),
            is_created: true,
            is_ending: false,
            failure: None,
        }
    }

    fn write(metas: &Metas, id: u64) {
        metas.write(&names::env_meta(EnvId(id)), &env(id)).unwrap();
        for number in 1..3 {
            let mut vm = sample::vm(id + number, "qemu", StorageKind::Qcow2);
            vm.env_id = EnvId(id);
            vm.resource.port_map.insert("80".parse().unwrap(), 20000 + (id + number) as u16);
            metas.write(&names::latest_meta(vm.id), &vm).unwrap();
        }
    }

    #[test]
    fn the_store_is_rebuilt_as_it_was() {
        let (_dir, metas) = metas();
        metas.write(&names::host_meta(), &sample::host("qemu")).unwrap();
        [10, 20].into_iter().for_each(|id| write(&metas, id));
        let tables = Tables::new(Arc::new(MemoryKv::new()));
        let templates = [sample::template("qemu")];
        let recovered = recover(&tables, &metas, &templates, false).unwrap();
        assert_eq!(recovered.envs, [("env-10".into(), 2), ("env-20".into(), 2)]);
        assert_eq!(tables.next_id().unwrap().unwrap().value, 23);
        let usage = tables.usage(HostId(1)).unwrap().unwrap().value;
        assert_eq!((usage.vm_num, usage.mem_size), (4, 128));
        assert_eq!(tables.env_by_name("env-20").unwrap().unwrap().value, env(20));
        assert_eq!(tables.vms().unwrap().len(), 4);
        let free = tables.free_ports(&sample::host("qemu"), 20011, 1, |_| true).unwrap();
        assert_eq!(free, [20013], "ports of recovered Vms are taken");
        let again = recover(&tables, &metas, &templates, false);
        assert!(matches!(again, Err(HostError::NotEmpty)));
    }

    #[test]
    fn a_damaged_meta_refuses_the_whole_unless_it_may_be_left_out() {
        let (dir, metas) = metas();
        [10, 20].into_iter().for_each(|id| write(&metas, id));
        let damaged = dir.path().join(names::latest_meta(VmId(12)));
        std::fs::write(&damaged, "x").unwrap();
        let tables = Tables::new(Arc::new(MemoryKv::new()));
        let error = recover(&tables, &metas, &[], false).unwrap_err();
        let HostError::Refused { refused } = &error else { panic!("{error:?}") };
        assert!(refused.len() == 1 && refused[0].contains("meta/12/latest.json"), "{refused:?}");
        assert!(tables.envs().unwrap().is_empty() && tables.next_id().unwrap().is_none());
        let recovered = recover(&tables, &metas, &[], true).unwrap();
        assert_eq!(recovered.envs, [("env-10".into(), 1), ("env-20".into(), 2)]);
        assert_eq!(recovered.refused.len(), 1);
    }
}
