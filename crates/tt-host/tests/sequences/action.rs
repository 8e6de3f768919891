//! What can happen to a host, as random values. It decides nothing: whom a step is about is said by
//! numbers that the model resolves.

use proptest::prelude::*;
use std::net::Ipv4Addr;
use tt_model::{
    AtEnd, EnvSpec, Goal, InnerPort, SnapshotSpec, StopMode, VmId, VmSpec, VmUpdate, sample,
};

/// The names that Envs, members and snapshots can have: few, so that they meet again.
pub const ENVS: [&str; 2] = ["x", "y"];
const MEMBERS: [&str; 4] = ["a", "b", "c", "d"];
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];

/// What happens.
#[derive(Clone, Debug)]
pub enum Action {
    Create(EnvSpec),
    Destroy,
    Extend(u64),
    Add(VmSpec),
    Rm,
    Update(VmUpdate),
    Stop(Option<StopMode>),
    Start,
    Snapshot(SnapshotSpec),
    DropSnapshot(String),
    Apply(String),
    Outgoing {
        deny: bool,
    },
    RemoveImage,
    /// Seconds.
    TimePasses(u64),
    /// Running guests change their memory and, if so, their disk.
    GuestWorks {
        disk: bool,
    },
    GuestPowersOff,
    MachineCrashes,
    /// Every machine and everything in the kernel is gone.
    PowerFails,
    /// The store is gone and is rebuilt from the metas.
    StoreIsLost,
}

/// What goes wrong while the daemon acts on it.
#[derive(Clone, Copy, Debug)]
pub enum Mishap {
    None,
    /// The daemon dies at that side of an effect; another one follows.
    DeathAt(u32),
    /// That effect fails, once.
    FailureAt(u32),
}

/// One thing that happens, to whom, and how well it goes.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which of the living Envs.
    pub env: u8,
    /// Which of its members; none for all of them.
    pub vm: Option<u8>,
    /// Which of the kept images, where there is a choice.
    pub image: u8,
    pub action: Action,
    pub mishap: Mishap,
}

/// Whom a step is about.
#[derive(Clone, Debug)]
pub struct Target {
    pub env: String,
    pub vm: Option<String>,
    pub image: VmId,
}

/// A sequence. What is none was shrunk away, as good as always.
pub fn steps(number: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Option<Step>>> {
    proptest::collection::vec(proptest::option::weighted(0.9999, step()), number)
}

fn step() -> impl Strategy<Value = Step> {
    let vm = prop_oneof![3 => any::<u8>().prop_map(Some), 2 => Just(None)];
    (any::<u8>(), vm, any::<u8>(), action(), mishap())
        .prop_map(|(env, vm, image, action, mishap)| Step { env, vm, image, action, mishap })
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        8 => Just(Mishap::None),
        2 => (1..60u32).prop_map(Mishap::DeathAt),
        1 => (1..40u32).prop_map(Mishap::FailureAt),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let of_env = prop_oneof![
        3 => env_spec().prop_map(Action::Create),
        1 => Just(Action::Destroy),
        2 => prop_oneof![Just(50), Just(5000), Just(40 * 86_400)].prop_map(Action::Extend),
        4 => vm_spec().prop_map(Action::Add),
        3 => Just(Action::Rm),
    ];
    let of_vms = prop_oneof![
        6 => update().prop_map(Action::Update),
        7 => stop_mode().prop_map(Action::Stop),
        6 => Just(Action::Start),
        10 => snapshot().prop_map(Action::Snapshot),
        2 => name(&SNAPSHOTS).prop_map(Action::DropSnapshot),
        8 => name(&SNAPSHOTS).prop_map(Action::Apply),
        2 => any::<bool>().prop_map(|deny| Action::Outgoing { deny }),
    ];
    let of_host = prop_oneof![
        2 => Just(Action::RemoveImage),
        3 => prop_oneof![Just(10), Just(30), Just(200), Just(90_000)].prop_map(Action::TimePasses),
        9 => any::<bool>().prop_map(|disk| Action::GuestWorks { disk }),
        2 => Just(Action::GuestPowersOff),
        2 => Just(Action::MachineCrashes),
        2 => Just(Action::PowerFails),
        1 => Just(Action::StoreIsLost),
    ];
    prop_oneof![13 => of_env, 41 => of_vms, 21 => of_host]
}

fn stop_mode() -> impl Strategy<Value = Option<StopMode>> {
    prop_oneof![
        Just(None),
        Just(Some(StopMode::Kill)),
        Just(Some(StopMode::Shutdown)),
        Just(Some(StopMode::Pause)),
        Just(Some(StopMode::Suspend)),
    ]
}

fn snapshot() -> impl Strategy<Value = SnapshotSpec> {
    let life_time = prop_oneof![3 => Just(None), 1 => Just(Some(20)), 1 => Just(Some(1000))];
    (name(&SNAPSHOTS), life_time, any::<bool>())
        .prop_map(|(name, life_time, with_memory)| SnapshotSpec { name, life_time, with_memory })
}

/// An Env of one to three members.
pub fn env_spec() -> impl Strategy<Value = EnvSpec> {
    let life_time = prop_oneof![1 => Just(Some(100)), 4 => Just(Some(86_400)), 1 => Just(None)];
    let at_end = prop_oneof![Just(AtEnd::Destroy), Just(AtEnd::Stop)];
    let vms = proptest::collection::vec(vm_spec(), 1..4);
    (vms, life_time, at_end, any::<bool>(), addresses()).prop_map(
        |(mut vms, life_time, at_end, deny_outgoing, net_blacklist)| {
            let names = vms.iter_mut().zip(MEMBERS);
            names.for_each(|(vm, name)| vm.name = Some(name.to_owned()));
            EnvSpec { vms, life_time, at_end, deny_outgoing, net_blacklist }
        },
    )
}

fn vm_spec() -> impl Strategy<Value = VmSpec> {
    let image = prop_oneof![Just(None), Just(Some(VmId(0)))];
    let keep = prop_oneof![2 => Just(false), 1 => Just(true)];
    (name(&MEMBERS), ports(), keep, image, addresses()).prop_map(
        |(name, ports, keep_image, image, net_blacklist)| VmSpec {
            name: Some(name),
            ports,
            keep_image,
            // Which one is resolved when it is known which there are.
            image,
            net_blacklist,
            ..VmSpec::new(sample::template("fake").name)
        },
    )
}

fn update() -> impl Strategy<Value = VmUpdate> {
    let none = VmUpdate::default;
    prop_oneof![
        (1..6u16).prop_map(move |n| VmUpdate { cpu_num: Some(n), ..none() }),
        (1..9u32).prop_map(move |n| VmUpdate { mem_size: Some(16 * n), ..none() }),
        (4..10u32).prop_map(move |n| VmUpdate { disk_size: Some(16 * n), ..none() }),
        ports().prop_map(move |ports| VmUpdate { ports: Some(ports), ..none() }),
        name(&MEMBERS).prop_map(move |name| VmUpdate { name: Some(name), ..none() }),
        addresses().prop_map(move |list| VmUpdate { net_blacklist: Some(list), ..none() }),
        any::<bool>().prop_map(move |keep| VmUpdate { keep_image: Some(keep), ..none() }),
        any::<bool>().prop_map(move |deny| VmUpdate { deny_outgoing: Some(deny), ..none() }),
    ]
}

fn ports() -> impl Strategy<Value = Vec<InnerPort>> {
    let all: Vec<InnerPort> = ["80", "53/udp", "443"].map(|port| port.parse().unwrap()).into();
    proptest::sample::subsequence(all, 0..=3)
}

fn addresses() -> impl Strategy<Value = Vec<Ipv4Addr>> {
    let all = vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 2)];
    proptest::sample::subsequence(all, 0..=2)
}

fn name(all: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::select(all).prop_map(str::to_owned)
}

/// Whether a machine exists that has reached `goal`.
pub fn has_machine(goal: Goal) -> bool {
    matches!(goal, Goal::Running | Goal::Paused)
}
