//! Tests of planning a new Env.

use super::*;
use crate::feat;
use crate::{ENGINE_EXEC, EngineFacts};
use proptest::prelude::*;

pub fn host() -> Host {
    let mut host = Host { mem_size: 8192, disk_size: 100_000, ..crate::sample::host("qemu") };
    host.engines[0].features =
        feat::NAT | feat::FLAT | feat::PAUSE | feat::SHUTDOWN | feat::DISK_LIMIT;
    host
}

fn templates() -> BTreeMap<String, VmTemplate> {
    let micro = VmTemplate {
        name: "micro".into(),
        path: "templates/x".into(),
        compatible_engines: vec!["qemu".into()],
        disk_size: 64,
        ..VmTemplate::default()
    };
    let other = VmTemplate { compatible_engines: vec!["docker".into()], ..micro.clone() };
    let with = |feature: &str| VmTemplate { features: vec![feature.into()], ..micro.clone() };
    BTreeMap::from([
        ("cloud".into(), with("cloud-init")),
        ("uefi".into(), with("uefi")),
        ("agent".into(), with("agent")),
        ("disk".into(), with("disk")),
        ("micro".into(), micro),
        ("github.com/a/box_1".into(), other),
    ])
}

/// An Env of `number` members without ports.
pub fn planned(number: u32) -> (Env, Vec<Vm>) {
    let spec = env(vec![VmSpec { count: Some(number), ..VmSpec::new("micro") }]);
    let plan = plan(&spec).unwrap();
    (plan.env, plan.vms)
}

fn plan(spec: &EnvSpec) -> Result<EnvPlan, Refusal> {
    plan_with(spec, &Usage::default(), &host())
}

fn plan_with(spec: &EnvSpec, usage: &Usage, host: &Host) -> Result<EnvPlan, Refusal> {
    plan_from(spec, usage, host, &BTreeMap::new())
}

fn plan_from(
    spec: &EnvSpec,
    usage: &Usage,
    host: &Host,
    images: &BTreeMap<VmId, KeptImage>,
) -> Result<EnvPlan, Refusal> {
    let addresses: Vec<_> = (2..=250).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
    let ports: Vec<_> = (20000..20400).collect();
    let random: Vec<u8> = (0..4096_u32).map(|n| (n % 251) as u8).collect();
    let world = World {
        now: 1000,
        policy: &Policy::default(),
        host,
        usage,
        next_id: 7,
        templates: &templates(),
        images,
        free_addresses: &addresses,
        free_ports: &ports,
        random: &random,
    };
    plan_env("shop", "key-1", spec, &world)
}

fn env(vms: Vec<VmSpec>) -> EnvSpec {
    EnvSpec { vms, ..EnvSpec::default() }
}

#[test]
fn layers_of_kept_images_are_counted_and_bounded() {
    // Each is made from the one before and has four layers of its own.
    let mut images = BTreeMap::new();
    let (mut base, mut base_layers) = (None, 0);
    for id in 100..100 + LAYERS_MAX as u64 / 4 {
        let mut vm = crate::sample::vm(id, "qemu", crate::StorageKind::Qcow2);
        vm.template = templates()["micro"].clone();
        (vm.base, vm.base_layers) = (base, base_layers);
        (1..4).for_each(|epoch| vm.turn_to_disk(epoch, Some(epoch - 1)));
        base = Some(vm.runtime_image.clone());
        let image = KeptImage::of(&vm, 1);
        base_layers = image.layers();
        images.insert(vm.id, image);
    }
    let made_from = |images: &BTreeMap<VmId, KeptImage>, id: u64| {
        let spec = env(vec![VmSpec { image: Some(VmId(id)), ..VmSpec::new("micro") }]);
        plan_from(&spec, &Usage::default(), &host(), images)
    };
    assert_eq!(made_from(&images, 100).unwrap().vms[0].base_layers, 4);
    assert_eq!(made_from(&images, 101).unwrap().vms[0].base_layers, 8);
    let last = 99 + LAYERS_MAX as u64 / 4;
    assert_eq!(made_from(&images, last - 1).unwrap().vms[0].base_layers, 60);
    assert_eq!(made_from(&images, last).unwrap_err().code, ErrorCode::InUse);
}

#[test]
fn everything_is_decided() {
    let web = VmSpec {
        name: Some("web".into()),
        ports: vec!["80".parse().unwrap(), "53/udp".parse().unwrap()],
        ..VmSpec::new("micro")
    };
    let db = VmSpec { rand_uuid: false, disk_size: Some(100), ..VmSpec::new("micro") };
    let plan = plan(&env(vec![web, db])).unwrap();
    assert_eq!((plan.env.id, plan.next_id), (EnvId(7), 10));
    assert_eq!(plan.env.end_timestamp, 1000 + 24 * 3600);
    let [web, db] = &plan.vms[..] else { panic!("two members") };
    assert_eq!((web.id, web.name.as_str(), db.name.as_str()), (VmId(8), "web", "micro"));
    assert_eq!(web.runtime_image, "images/8/0.raw");
    assert_eq!(web.resource.ip_addr, Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!(web.resource.mac_addr.to_string(), "82:17:0d:00:00:02");
    assert_eq!(web.resource.port_map.values().copied().collect::<Vec<_>>(), [20001, 20000]);
    assert_eq!(web.machine_id.as_ref().unwrap().len(), 32);
    assert_eq!((db.machine_id.as_ref(), db.resource.disk_size), (None, 100));
    assert_eq!((plan.usage.vm_num, plan.usage.mem_size), (2, 256));
}

#[test]
fn members_without_a_name_get_one() {
    let counted = VmSpec { count: Some(3), ..VmSpec::new("micro") };
    let named = VmSpec { name: Some("micro-2".into()), ..VmSpec::new("micro") };
    let plan = plan(&env(vec![counted, named, VmSpec::new("micro")])).unwrap();
    let names: Vec<_> = plan.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["micro-1", "micro-3", "micro-4", "micro-2", "micro"]);
}

#[test]
fn a_flat_member_is_reached_at_its_own_address() {
    let spec = VmSpec { net_kind: NetKind::Flatten, ..VmSpec::new("micro") };
    let plan = plan(&env(vec![spec, VmSpec::new("micro")])).unwrap();
    let [flat, nat] = &plan.vms[..] else { panic!() };
    assert_eq!((flat.net_kind, nat.net_kind), (NetKind::Flatten, NetKind::Nat));
    assert_eq!(flat.addr, flat.resource.ip_addr.to_string());
    assert!(flat.resource.port_map.is_empty());
    assert_eq!(nat.addr, host().public_addr.to_string());
    let (_, last) = host().addresses();
    assert_eq!(u32::from(last) + 1, u32::from(crate::host::tunnel_addr(host().block)));
    let mut unable = host();
    unable.engines[0].features = feat::NAT;
    let spec = env(vec![VmSpec { net_kind: NetKind::Flatten, ..VmSpec::new("micro") }]);
    let refusal = plan_with(&spec, &Usage::default(), &unable).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported, "{refusal}");
}

#[test]
fn a_program_of_others_gets_every_disk_and_comes_last() {
    let mut host = host();
    let exec = EngineFacts { name: ENGINE_EXEC.into(), ..host.engines[0].clone() };
    host.engines.push(exec);
    let engine = |asked: Option<&str>| {
        let spec = VmSpec { engine: asked.map(str::to_owned), ..VmSpec::new("disk") };
        plan_with(&env(vec![spec]), &Usage::default(), &host).map(|plan| plan.vms[0].engine.clone())
    };
    assert_eq!(engine(Some(ENGINE_EXEC)).unwrap(), ENGINE_EXEC);
    assert_ne!(engine(None).unwrap(), ENGINE_EXEC);
    let container =
        VmSpec { engine: Some(ENGINE_EXEC.into()), ..VmSpec::new("github.com/a/box_1") };
    let refusal = plan_with(&env(vec![container]), &Usage::default(), &host).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported, "{refusal}");
}

#[test]
fn what_can_not_be_is_refused_by_name() {
    let base = VmSpec::new("micro");
    let named = |name: &str| VmSpec { name: Some(name.into()), ..base.clone() };
    let flat = |ports: &[&str]| VmSpec {
        net_kind: NetKind::Flatten,
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        ..base.clone()
    };
    let cases = [
        (env(vec![VmSpec::new("none")]), ErrorCode::NotFound),
        (env(vec![VmSpec { engine: Some("xen".into()), ..base.clone() }]), ErrorCode::Unsupported),
        (env(vec![VmSpec::new("github.com/a/box_1")]), ErrorCode::Unsupported),
        (env(vec![flat(&["80"])]), ErrorCode::Invalid),
        (env(vec![VmSpec { cpu_num: Some(5), ..base.clone() }]), ErrorCode::Invalid),
        (env(vec![VmSpec { mem_size: Some(u32::MAX), ..base.clone() }]), ErrorCode::Invalid),
        (env(vec![VmSpec { disk_size: Some(63), ..base.clone() }]), ErrorCode::Invalid),
        (env(vec![VmSpec { disk_size: Some(u32::MAX), ..base.clone() }]), ErrorCode::Invalid),
        (env(vec![VmSpec { count: Some(100), ..base.clone() }]), ErrorCode::NoRoom),
        (env(vec![named("a"), named("a")]), ErrorCode::Invalid),
        (EnvSpec { life_time: Some(u64::MAX), ..env(vec![base.clone()]) }, ErrorCode::LifeTime),
    ];
    for (spec, code) in cases {
        let refusal = plan(&spec).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
    }
    let full = Usage { mem_size: 8192 - 127, ..Usage::default() };
    let refusal = plan_with(&env(vec![base.clone()]), &full, &host()).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NoRoom);
    let mut broken = host();
    broken.engines[0].unusable = Some("install qemu-system-x86".into());
    let refusal = plan_with(&env(vec![base]), &Usage::default(), &broken).unwrap_err();
    assert!(refusal.to_string().contains("install qemu-system-x86"), "{refusal}");
}

const KEYS: [&str; 2] = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBPb7VJ+7BUBqjXSCGEHKNYvXdD/0zfYWVhGTaFOxAZB a",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBPb7VJ+7BUBqjXSCGEHKNYvXdD/0zfYWVhGTaFOxAZB b",
];

#[test]
fn keys_and_user_data_reach_the_members_that_can_be_given_them() {
    let (user, own) = (Some("#!/bin/sh\n".to_owned()), Some("#cloud-config\n".to_owned()));
    let keys = |keys: &[&str]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let cloud =
        VmSpec { ssh_keys: keys(&KEYS[..]), user_data: own.clone(), ..VmSpec::new("cloud") };
    let vms = vec![VmSpec::new("cloud"), cloud.clone(), VmSpec::new("micro")];
    let given = EnvSpec { ssh_keys: keys(&KEYS[..1]), user_data: user.clone(), ..env(vms) };
    let plan_of = plan(&given).unwrap();
    let has: Vec<_> =
        plan_of.vms.iter().map(|vm| (vm.ssh_keys.len(), vm.user_data.clone())).collect();
    assert_eq!(has, [(1, user.clone()), (2, own.clone()), (0, None)]);
    assert_eq!(plan_of.vms.iter().map(Vm::has_seed).collect::<Vec<_>>(), [true, true, false]);

    let micro = VmSpec::new("micro");
    for spec in [
        EnvSpec { ssh_keys: keys(&KEYS), ..env(vec![micro.clone()]) },
        EnvSpec { user_data: user.clone(), ..env(vec![micro.clone()]) },
        env(vec![VmSpec { ssh_keys: keys(&KEYS), ..micro.clone() }]),
        env(vec![VmSpec { user_data: user, ..micro }]),
    ] {
        let refusal = plan(&spec).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unsupported, "{refusal}");
    }
    let wrong = VmSpec { ssh_keys: vec!["x".into()], ..cloud };
    assert_eq!(plan(&env(vec![wrong])).unwrap_err().code, ErrorCode::Invalid);
}

#[test]
fn a_guest_without_the_agent_is_seen_by_a_port() {
    let with =
        |template: &str, ready_port| env(vec![VmSpec { ready_port, ..VmSpec::new(template) }]);
    for (template, asked, decided) in [
        ("cloud", None, Some(22)),
        ("cloud", Some(8080), Some(8080)),
        ("cloud", Some(0), None),
        ("micro", None, None),
        ("micro", Some(80), Some(80)),
        ("agent", None, None),
    ] {
        let plan = plan(&with(template, asked)).unwrap();
        assert_eq!(plan.vms[0].ready_port, decided, "{template} {asked:?}");
    }
    assert_eq!(plan(&with("agent", Some(22))).unwrap_err().code, ErrorCode::Invalid);
}

#[test]
fn a_limit_for_the_disk_needs_an_engine_with_it() {
    let mut host = host();
    let limited = env(vec![VmSpec { disk_ops: Some(100), ..VmSpec::new("micro") }]);
    let plan = plan_with(&limited, &Usage::default(), &host).unwrap();
    assert_eq!(plan.vms[0].resource.disk_ops, Some(100));
    host.engines[0].features &= !feat::DISK_LIMIT;
    let refusal = plan_with(&limited, &Usage::default(), &host).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported);
    assert!(refusal.problem.contains("disk_limit"), "{}", refusal.problem);
}

#[test]
fn a_template_runs_where_it_has_a_form_for() {
    let mut host = host();
    let other = EngineFacts { name: "firecracker".into(), ..host.engines[0].clone() };
    let first = host.engines[0].name.clone();
    host.engines.insert(0, other);
    let planned = |engine: Option<&str>| {
        let engine = engine.map(str::to_owned);
        let spec = env(vec![VmSpec { engine, ..VmSpec::new("disk") }]);
        plan_with(&spec, &Usage::default(), &host).map(|plan| plan.vms[0].engine.clone())
    };
    assert_eq!(planned(None).unwrap(), first, "the host's first engine can not");
    assert_eq!(planned(Some(&first)).unwrap(), first);
    let refusal = planned(Some("firecracker")).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported);
    assert!(refusal.problem.contains("firecracker: template micro is for: qemu"), "{refusal}");
}

#[test]
fn a_disk_for_uefi_needs_an_engine_with_it() {
    let mut host = host();
    let spec = env(vec![VmSpec::new("uefi")]);
    let refusal = plan_with(&spec, &Usage::default(), &host).unwrap_err();
    assert!(refusal.to_string().contains("`ovmf`"), "{refusal}");
    host.engines[0].features |= feat::UEFI;
    plan_with(&spec, &Usage::default(), &host).unwrap();
}

proptest! {
    #[test]
    fn a_plan_never_hands_out_twice(
        counts in prop::collection::vec((1_u32..20, 0_u16..8), 1..6),
    ) {
        let vms = counts.iter().map(|(count, ports)| VmSpec {
            count: Some(*count),
            mem_size: Some(32),
            ports: (1..=*ports).map(|p| p.to_string().parse().unwrap()).collect(),
            ..VmSpec::new("micro")
        });
        let spec = env(vms.collect());
        if let Ok(plan) = plan(&spec) {
            let wanted = needs(&spec.vms);
            prop_assert_eq!(plan.vms.len(), wanted.addresses);
            let ids: BTreeSet<_> = plan.vms.iter().map(|vm| vm.id.0).collect();
            let names: BTreeSet<_> = plan.vms.iter().map(|vm| &vm.name).collect();
            let ips: BTreeSet<_> = plan.vms.iter().map(|vm| vm.resource.ip_addr).collect();
            let ports: BTreeSet<_> =
                plan.vms.iter().flat_map(|vm| vm.resource.port_map.values()).collect();
            prop_assert_eq!(ids.len(), plan.vms.len());
            prop_assert_eq!(names.len(), plan.vms.len());
            prop_assert_eq!(ips.len(), plan.vms.len());
            prop_assert_eq!(ports.len(), wanted.ports);
            prop_assert!(ids.iter().all(|id| (8..plan.next_id).contains(id)));
        }
    }
}
