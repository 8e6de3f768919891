//! Compares a real host with the model: records, machines, kept images, guests, and what `tt verify` finds.

use super::inside;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;
use testkit::sequence::{Chosen, Model, compare_records, has_machine, same};
use testkit::{Lab, eventually};
use tt_model::{Env, Goal, KeptImage, Phase, Vm, VmId};

/// How long a host may take to be as the model: some guests boot, each after others have shut down, beside other tests.
const CONVERGES: Duration = Duration::from_secs(240);
/// How far times in records may be from those of the model, in seconds: it is asked first, and both count whole ones.
const SLACK: u64 = 5;

/// What the model leaves open and the host then keeps to.
#[derive(Debug, Default)]
pub struct World {
    chosen: Chosen,
}

/// Waits until all is as the model says.
pub fn converge(lab: &Lab, model: &Model, world: &mut World) {
    eventually("the host is as the model", CONVERGES, || compare(lab, model, world).err());
}

fn compare(lab: &Lab, model: &Model, world: &mut World) -> Result<(), String> {
    let answer = lab.get("/v1/envs").ok_or("nobody answers")?.body;
    let views = answer["envs"].as_array().ok_or("no list of Envs")?;
    let envs: Vec<Env> = views.iter().map(|view| Env::deserialize(view).unwrap()).collect();
    let members: Vec<&Value> =
        views.iter().flat_map(|view| view["vms"].as_array().into_iter().flatten()).collect();
    let vms: Vec<Vm> = members.iter().map(|view| Vm::deserialize(*view).unwrap()).collect();
    compare_records(model, &envs, &vms, &mut world.chosen, SLACK)?;
    for (vm, view) in vms.iter().zip(members) {
        status(model, vm, view).map_err(|problem| format!("{}: {problem}", vm.full_name()))?;
    }
    machines(lab, model)?;
    images(lab, model)?;
    guests(lab, model, &vms)?;
    let findings = lab.findings();
    if findings.is_empty() { Ok(()) } else { Err(format!("verify finds {findings:?}")) }
}

fn status(model: &Model, vm: &Vm, view: &Value) -> Result<(), String> {
    let phase = match model.of(vm).goal {
        Goal::Running => Phase::Ready,
        Goal::Paused => Phase::Paused,
        _ => Phase::Stopped,
    };
    let status = &view["status"];
    same("phase", &status["phase"], &phase.name().into())?;
    same("trouble", &status["trouble"], &Value::Null)?;
    same("settled", &view["is_settled"], &true.into())?;
    let waits = model.of(vm).now.machine != model.of(vm).now.size && vm.goal != Goal::Stopped;
    same("needs a restart", &view["needs_restart"], &waits.into())
}

/// Which members have a process.
fn machines(lab: &Lab, model: &Model) -> Result<(), String> {
    let members = model.envs.values().flat_map(|env| &env.vms);
    let expected = members.filter(|(_, vm)| has_machine(vm.goal)).map(|(id, _)| *id);
    let machines = lab.machine_ids();
    let found: BTreeSet<VmId> = machines.iter().map(|(id, _)| VmId(*id)).collect();
    same("machines", &found, &expected.collect())?;
    same("processes", machines.len(), found.len())
}

fn images(lab: &Lab, model: &Model) -> Result<(), String> {
    let answer = lab.get("/v1/images").ok_or("nobody answers")?.body;
    let images: Vec<KeptImage> = Vec::deserialize(&answer["images"]).unwrap();
    let found = images.iter().map(|image| (image.id, image.disk_size, image.is_wanted));
    let expected = model.images.iter().map(|(id, image)| (*id, image.disk_mb, true));
    same("kept images", found.collect::<Vec<_>>(), expected.collect())
}

/// What running guests see, all at once.
fn guests(lab: &Lab, model: &Model, vms: &[Vm]) -> Result<(), String> {
    let running = vms.iter().filter(|vm| model.of(vm).goal == Goal::Running);
    let look = |vm: &Vm| {
        let seen = inside::compare(lab, model, vm, vms);
        seen.map_err(|problem| format!("{}: {problem}", vm.full_name()))
    };
    thread::scope(|scope| {
        let looks: Vec<_> = running.map(|vm| scope.spawn(move || look(vm))).collect();
        looks.into_iter().try_for_each(|look| look.join().unwrap())
    })
}
