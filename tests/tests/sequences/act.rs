//! Does on a real host what a step says: asks the API, or acts as guests and fate do.

use serde::Serialize;
use serde_json::json;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};
use testkit::sequence::{Action, Model, Target};
use testkit::{Lab, run};
use tt_model::{Goal, VmId};

/// Most guests at once: they are emulated where there is no KVM.
const GUESTS_MAX: usize = 4;
/// How near to the end of its time to shut down nobody can say what a guest that powers off does, in seconds.
const DOUBT: u64 = 5;

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Whether the host can carry it, and the model can say how it ends.
pub fn is_possible(model: &Model, at: &Target, action: &Action) -> bool {
    let guests: usize = model.envs.values().map(|env| env.vms.len()).sum();
    match action {
        Action::Create(spec) => guests + spec.vms.len() <= GUESTS_MAX,
        Action::Add(_) => guests < GUESTS_MAX,
        Action::GuestPowersOff => model.envs.get(&at.env).is_some_and(|env| {
            let asked = env.ids(at).into_iter().map(|id| &env.vms[&id]);
            let mut asked = asked.filter(|vm| vm.goal == Goal::Running);
            asked.all(|vm| vm.grace_end + DOUBT < model.now)
        }),
        _ => true,
    }
}

/// Does it; answers whether it was accepted. `model` has done it already.
pub fn act(lab: &mut Lab, model: &Model, at: &Target, action: &Action) -> bool {
    let env = format!("/v1/envs/{}", at.env);
    let those = at.vm.as_ref().map_or_else(|| env.clone(), |vm| format!("{env}/vms/{vm}"));
    let ask = |method, path: String, body: &dyn Body| asked(lab, method, &path, &body.text());
    match action {
        Action::Create(spec) => ask("PUT", env, spec),
        Action::Destroy => ask("DELETE", env, &()),
        Action::Extend(more) => ask("POST", format!("{env}/extend"), &json!({ "life_time": more })),
        Action::Add(spec) => ask("POST", format!("{env}/vms"), spec),
        Action::Rm => ask("DELETE", those, &()),
        Action::Update(update) => ask("PATCH", those, update),
        Action::Stop(mode) => ask("POST", format!("{those}/stop"), &json!({ "mode": mode })),
        Action::Start => ask("POST", format!("{those}/start"), &()),
        Action::Snapshot(spec) => ask("POST", format!("{those}/snapshots"), spec),
        Action::DropSnapshot(name) => ask("DELETE", format!("{those}/snapshots/{name}"), &()),
        Action::Apply(name) => ask("POST", format!("{those}/snapshots/{name}/apply"), &()),
        Action::Outgoing { deny: true } => ask("POST", format!("{those}/deny-outgoing"), &()),
        Action::Outgoing { deny: false } => ask("POST", format!("{those}/allow-outgoing"), &()),
        Action::RemoveImage => ask("DELETE", format!("/v1/images/{}", at.image), &()),
        outside => {
            befall(lab, model, at, outside);
            true
        }
    }
}

/// What is sent: nothing, or JSON.
trait Body {
    fn text(&self) -> String;
}

impl<T: Serialize> Body for T {
    fn text(&self) -> String {
        let text = serde_json::to_string(self).unwrap();
        if text == "null" { String::new() } else { text }
    }
}

fn asked(lab: &Lab, method: &str, path: &str, body: &str) -> bool {
    // Each step asks for something of its own, even where the body is the same.
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let key = format!("Idempotency-Key: step-{}\r\n", ASKED.fetch_add(1, Ordering::Relaxed));
    let answer = lab.ask(method, path, &key, body);
    println!("    {method} {path} {body}: {}", answer.status);
    match answer.status {
        200..=299 => true,
        400..=499 => false,
        _ => panic!("{method} {path} {body}: {}", answer.text),
    }
}

/// What happens without anybody asking the API.
fn befall(lab: &mut Lab, model: &Model, at: &Target, action: &Action) {
    let members = model.envs.get(&at.env).map(|env| {
        let those = env.ids(at).into_iter().map(|id| (id, &env.vms[&id]));
        those.collect::<Vec<_>>()
    });
    let members = members.unwrap_or_default();
    let full_name = |name: &str| format!("{}/{name}", at.env);
    match action {
        Action::GuestWorks { disk } => thread::scope(|scope| {
            for (_, vm) in members.iter().filter(|(_, vm)| vm.goal == Goal::Running) {
                let (tick, content) = (vm.now.memory.unwrap_or_default(), vm.now.disk);
                let mut line = format!("echo {tick} >/run/tick");
                if *disk {
                    line += &format!("; echo {content} >/root/content; sync");
                }
                let name = full_name(&vm.name);
                let lab = &*lab;
                scope.spawn(move || lab.sh(&name, &line));
            }
        }),
        Action::GuestPowersOff => {
            // The model has stopped them already.
            for (_, vm) in &members {
                // It may go before it says how the program ended; one that is at rest refuses.
                lab.exec(&full_name(&vm.name), &["poweroff"]);
            }
        }
        Action::MachineCrashes => members.iter().for_each(|(id, _)| kill_machine(lab, *id)),
        Action::StoreIsLost => lose_store(lab),
        _ => panic!("{action:?} does not happen on real hosts"),
    }
}

fn kill_machine(lab: &Lab, id: VmId) {
    for (_, pid) in lab.machine_ids().into_iter().filter(|(of, _)| *of == id.0) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // It may have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn lose_store(lab: &mut Lab) {
    lab.kill9();
    fs::remove_dir_all(lab.data().join("store")).unwrap();
    let mut recover = lab.command(&["recover", "--config", &lab.config()]);
    lab.host.run(|| run(&mut recover, b"")).good();
    lab.restart();
}
