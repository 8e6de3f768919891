//! What can happen to a host, as random values. It decides nothing: whom a step is about is said by
//! numbers that the model resolves.

use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use tt_model::{
    AtEnd, EnvSpec, Goal, InnerPort, Protocol, SnapshotSpec, StopMode, VmId, VmSpec, VmUpdate,
};

/// The names that Envs, members and snapshots can have: few, so that they meet again.
pub(super) const ENVS: [&str; 2] = ["x", "y"];
const MEMBERS: [&str; 4] = ["a", "b", "c", "d"];
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];
/// What members publish.
const PORTS: [InnerPort; 3] = [
    InnerPort { port: 80, protocol: Protocol::Tcp },
    InnerPort { port: 53, protocol: Protocol::Udp },
    InnerPort { port: 443, protocol: Protocol::Tcp },
];

/// What a world lets happen.
#[derive(Debug)]
pub struct Scope {
    /// Members of a new Env, at most.
    pub members_max: usize,
    /// Seconds that an Env lives.
    pub lives: &'static [Option<u64>],
    /// Seconds that a snapshot lives.
    pub snapshot_lives: &'static [Option<u64>],
    /// Sizes of memory that an update may ask for, in MB.
    pub mems: &'static [u32],
    /// Numbers of CPUs that it may ask for.
    pub cpus: &'static [u16],
    /// Sizes of disks that it may ask for, in MB.
    pub disks: &'static [u32],
    /// What disks may be limited to: KiB and operations a second; 0 is no limit.
    pub disk_limits: &'static [(u32, u32)],
    /// What can be blocked.
    pub addresses: &'static [Ipv4Addr],
    /// Whether it has a clock of its own, and its power can fail.
    pub is_fake: bool,
}

/// Fakes: everything, as fast as it can be decided.
pub const FAKES: Scope = Scope {
    members_max: 3,
    lives: &[Some(100), Some(86_400), Some(86_400), Some(86_400), None],
    snapshot_lives: &[None, None, None, Some(20), Some(1000)],
    mems: &[16, 32, 48, 64, 80, 96, 112, 128],
    cpus: &[1, 2, 3, 4, 5],
    disks: &[64, 80, 96, 112, 128, 144],
    disk_limits: &[(0, 0), (1024, 0), (0, 500), (2048, 1000)],
    addresses: &[Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 2)],
    is_fake: true,
};

/// Real guests, which boot: sizes that they boot with, ends that no run gets to, and few at once.
pub const GUESTS: Scope = Scope {
    members_max: 2,
    lives: &[Some(86_400), None],
    snapshot_lives: &[None, Some(80_000)],
    mems: &[16, 112, 128, 160],
    cpus: &[1, 2, 4097],
    disks: &[64, 80, 96, 128],
    disk_limits: &[(0, 0), (65_536, 0), (65_536, 4000)],
    addresses: &[crate::CLIENT, Ipv4Addr::new(198, 51, 100, 2)],
    is_fake: false,
};

/// What happens.
#[derive(Clone, Debug)]
pub enum Action {
    /// An Env comes.
    Create(EnvSpec),
    /// It goes.
    Destroy,
    /// It lives longer, by seconds.
    Extend(u64),
    /// A member joins.
    Add(VmSpec),
    /// A member leaves.
    Rm,
    /// A member is changed.
    Update(VmUpdate),
    /// Machines rest, in a way that may be left to the daemon.
    Stop(Option<StopMode>),
    /// They go on.
    Start,
    /// They are frozen.
    Snapshot(SnapshotSpec),
    /// A snapshot goes.
    DropSnapshot(String),
    /// They are as in a snapshot.
    Apply(String),
    /// They may open connections to the outside, or not.
    Outgoing {
        /// Whether they may not.
        deny: bool,
    },
    /// A kept image goes.
    RemoveImage,
    /// Seconds.
    TimePasses(u64),
    /// Running guests change their memory.
    GuestWorks {
        /// Whether they change their disk, too.
        disk: bool,
    },
    /// Guests switch themselves off.
    GuestPowersOff,
    /// Machines end as nobody wanted.
    MachineCrashes,
    /// Every machine and everything in the kernel is gone.
    PowerFails,
    /// The store is gone and is rebuilt from the metas.
    StoreIsLost,
}

/// What goes wrong while the daemon acts on it.
#[derive(Clone, Copy, Debug)]
pub enum Mishap {
    /// Nothing.
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
    /// What happens.
    pub action: Action,
    /// What goes wrong meanwhile.
    pub mishap: Mishap,
}

/// Whom a step is about.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the Env.
    pub env: String,
    /// Name of its member; none for all of them.
    pub vm: Option<String>,
    /// The kept image; 0 if there is none.
    pub image: VmId,
}

/// A sequence. What is none was shrunk away, as good as always.
pub fn steps(
    scope: &'static Scope,
    number: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Option<Step>>> {
    proptest::collection::vec(proptest::option::weighted(0.9999, step(scope)), number)
}

fn step(scope: &'static Scope) -> impl Strategy<Value = Step> {
    let vm = prop_oneof![3 => any::<u8>().prop_map(Some), 2 => Just(None)];
    (any::<u8>(), vm, any::<u8>(), action(scope), mishap())
        .prop_map(|(env, vm, image, action, mishap)| Step { env, vm, image, action, mishap })
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        8 => Just(Mishap::None),
        2 => (1..60u32).prop_map(Mishap::DeathAt),
        1 => (1..40u32).prop_map(Mishap::FailureAt),
    ]
}

fn action(scope: &'static Scope) -> impl Strategy<Value = Action> {
    let of_env = prop_oneof![
        3 => env_spec(scope).prop_map(Action::Create),
        1 => Just(Action::Destroy),
        2 => prop_oneof![Just(50), Just(5000), Just(40 * 86_400)].prop_map(Action::Extend),
        4 => vm_spec(scope).prop_map(Action::Add),
        3 => Just(Action::Rm),
    ];
    let of_vms = prop_oneof![
        6 => update(scope).prop_map(Action::Update),
        7 => stop_mode().prop_map(Action::Stop),
        6 => Just(Action::Start),
        10 => snapshot(scope).prop_map(Action::Snapshot),
        2 => name(&SNAPSHOTS).prop_map(Action::DropSnapshot),
        8 => name(&SNAPSHOTS).prop_map(Action::Apply),
        2 => any::<bool>().prop_map(|deny| Action::Outgoing { deny }),
    ];
    let of_host = prop_oneof![
        2 => Just(Action::RemoveImage),
        9 => any::<bool>().prop_map(|disk| Action::GuestWorks { disk }),
        2 => Just(Action::GuestPowersOff),
        2 => Just(Action::MachineCrashes),
        1 => Just(Action::StoreIsLost),
    ];
    let passes = prop_oneof![Just(10), Just(30), Just(200), Just(90_000)];
    let of_fakes = prop_oneof![
        3 => passes.prop_map(Action::TimePasses),
        2 => Just(Action::PowerFails),
    ];
    let rest = match scope.is_fake {
        true => of_fakes.boxed(),
        false => Just(Action::GuestWorks { disk: true }).boxed(),
    };
    prop_oneof![13 => of_env, 41 => of_vms, 16 => of_host, 5 => rest]
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

fn snapshot(scope: &'static Scope) -> impl Strategy<Value = SnapshotSpec> {
    (name(&SNAPSHOTS), one_of(scope.snapshot_lives), any::<bool>())
        .prop_map(|(name, life_time, with_memory)| SnapshotSpec { name, life_time, with_memory })
}

/// An Env of one member or more.
pub fn env_spec(scope: &'static Scope) -> impl Strategy<Value = EnvSpec> {
    let at_end = prop_oneof![Just(AtEnd::Destroy), Just(AtEnd::Stop)];
    let vms = proptest::collection::vec(vm_spec(scope), 1..=scope.members_max);
    (vms, one_of(scope.lives), at_end, any::<bool>(), addresses(scope)).prop_map(
        |(mut vms, life_time, at_end, deny_outgoing, net_blacklist)| {
            let names = vms.iter_mut().zip(MEMBERS);
            names.for_each(|(vm, name)| vm.name = Some(name.to_owned()));
            EnvSpec { vms, life_time, at_end, deny_outgoing, net_blacklist, ..EnvSpec::default() }
        },
    )
}

fn vm_spec(scope: &'static Scope) -> impl Strategy<Value = VmSpec> {
    let image = prop_oneof![Just(None), Just(Some(VmId(0)))];
    let keep = prop_oneof![2 => Just(false), 1 => Just(true)];
    (name(&MEMBERS), ports(), keep, image, addresses(scope)).prop_map(
        |(name, ports, keep_image, image, net_blacklist)| VmSpec {
            name: Some(name),
            ports,
            keep_image,
            // Which one is resolved when it is known which there are.
            image,
            net_blacklist,
            ..VmSpec::new("micro")
        },
    )
}

fn update(scope: &'static Scope) -> impl Strategy<Value = VmUpdate> {
    let none = VmUpdate::default;
    prop_oneof![
        one_of(scope.cpus).prop_map(move |n| VmUpdate { cpu_num: Some(n), ..none() }),
        one_of(scope.mems).prop_map(move |mb| VmUpdate { mem_size: Some(mb), ..none() }),
        one_of(scope.disks).prop_map(move |mb| VmUpdate { disk_size: Some(mb), ..none() }),
        one_of(scope.disk_limits).prop_map(move |(kib, ops)| VmUpdate {
            disk_kib: Some(kib),
            disk_ops: Some(ops),
            ..none()
        }),
        ports().prop_map(move |ports| VmUpdate { ports: Some(ports), ..none() }),
        name(&MEMBERS).prop_map(move |name| VmUpdate { name: Some(name), ..none() }),
        addresses(scope).prop_map(move |list| VmUpdate { net_blacklist: Some(list), ..none() }),
        any::<bool>().prop_map(move |keep| VmUpdate { keep_image: Some(keep), ..none() }),
        any::<bool>().prop_map(move |deny| VmUpdate { deny_outgoing: Some(deny), ..none() }),
    ]
}

fn ports() -> impl Strategy<Value = Vec<InnerPort>> {
    proptest::sample::subsequence(PORTS.to_vec(), 0..=PORTS.len())
}

fn addresses(scope: &'static Scope) -> impl Strategy<Value = Vec<IpAddr>> {
    let all: Vec<IpAddr> = scope.addresses.iter().map(|addr| (*addr).into()).collect();
    proptest::sample::subsequence(all, 0..=scope.addresses.len())
}

fn name(all: &'static [&'static str]) -> impl Strategy<Value = String> {
    one_of(all).prop_map(str::to_owned)
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all)
}

/// Whether a machine exists that has reached `goal`.
pub fn has_machine(goal: Goal) -> bool {
    matches!(goal, Goal::Running | Goal::Paused)
}
