//! Planning a new Env: every id, name, address and port is decided here.

use super::room::{check_disk, check_memory, check_sizes, exhausted, storage_for, unable, wanted};
use super::{LAYERS_MAX, Policy, check_life_time, login, template_stem};
use crate::check::{check_env, check_name, check_request_key, quoted};
use crate::names::{latest_meta, runtime_image};
use crate::vm::{Disk, MachineSize};
use crate::{
    Env, EnvId, EnvSpec, EnvState, ErrorCode, Goal, Host, KeptImage, MacAddr, NetKind, PortMap,
    Refusal, Usage, Vm, VmId, VmResource, VmSpec, VmState, VmTemplate,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The present state, as far as a plan depends on it.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// Seconds since the epoch.
    pub now: u64,
    /// The administrator's choices.
    pub policy: &'a Policy,
    /// The host that is to carry the Env.
    pub host: &'a Host,
    /// How much of it is handed out.
    pub usage: &'a Usage,
    /// The next unused id.
    pub next_id: u64,
    /// By name, at least those that the request names and that exist.
    pub templates: &'a BTreeMap<String, VmTemplate>,
    /// By id, at least those that the request names and that exist.
    pub images: &'a BTreeMap<VmId, KeptImage>,
    /// Free addresses, at least [`Needs::addresses`] of them if there are so many.
    pub free_addresses: &'a [Ipv4Addr],
    /// Ports free for both protocols, at least [`Needs::ports`] of them if there are so many.
    pub free_ports: &'a [u16],
    /// Random bytes, [`Needs::random_bytes`] of them.
    pub random: &'a [u8],
}

/// What has to be brought to [`plan_env`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Free addresses.
    pub addresses: usize,
    /// Free public ports.
    pub ports: usize,
    /// Random bytes.
    pub random_bytes: usize,
}

/// What is to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvPlan {
    /// The new Env.
    pub env: Env,
    /// Its members.
    pub vms: Vec<Vm>,
    /// The host's usage with them.
    pub usage: Usage,
    /// The next unused id after them.
    pub next_id: u64,
}

/// Bytes of a machine-id (machine-id(5)).
const MACHINE_ID_BYTES: usize = 16;

/// What [`plan_env`] and [`plan_add`](super::plan_add) need for Vms that
/// [`check_vm`](crate::check::check_vm) has passed.
pub fn needs(specs: &[VmSpec]) -> Needs {
    let of = |vm: &VmSpec| vm.count.unwrap_or(1) as usize;
    let vms = specs.iter().map(of).sum();
    let ports = specs.iter().map(|vm| of(vm) * vm.ports.len()).sum();
    Needs { addresses: vms, ports, random_bytes: vms * MACHINE_ID_BYTES }
}

/// Plans a new Env, or says why it can not be.
pub fn plan_env(
    name: &str,
    request_key: &str,
    spec: &EnvSpec,
    world: &World<'_>,
) -> Result<EnvPlan, Refusal> {
    check_name("env", name)?;
    check_request_key(request_key)?;
    check_env(spec)?;
    let life_time = spec.life_time.unwrap_or(world.policy.life_time_default);
    check_life_time(life_time, world.policy)?;
    let env_id = EnvId(world.next_id);
    let family = Family {
        env_id,
        env_name: name,
        deny_outgoing: spec.deny_outgoing,
        net_blacklist: &spec.net_blacklist,
        request_key: None,
        ssh_keys: &spec.ssh_keys,
        user_data: spec.user_data.as_ref(),
    };
    let mut builder = Builder::new(world, family, world.next_id + 1);
    let mut vms = Vec::new();
    for (name, vm) in member_names(&spec.vms, BTreeSet::new())? {
        vms.push(builder.vm(name, vm)?);
    }
    login::check_given(spec, &vms)?;
    let env = Env {
        id: env_id,
        name: name.to_owned(),
        start_timestamp: world.now,
        end_timestamp: world.now + life_time,
        vm_set: vms.iter().map(|vm| vm.id).collect(),
        state: EnvState { deny_outgoing: spec.deny_outgoing, ..EnvState::default() },
        at_end: spec.at_end,
        request_key: request_key.to_owned(),
        is_created: false,
        is_ending: false,
        failure: None,
    };
    Ok(EnvPlan { env, vms, usage: builder.usage, next_id: builder.next_id })
}

/// The name of every member with what it is to be, in the order of the request.
pub(super) fn member_names(
    specs: &[VmSpec],
    mut taken: BTreeSet<String>,
) -> Result<Vec<(String, &VmSpec)>, Refusal> {
    let mut members = Vec::new();
    let explicit: BTreeSet<&str> = specs.iter().filter_map(|vm| vm.name.as_deref()).collect();
    for vm in specs {
        let count = vm.count.unwrap_or(1);
        let stem = vm.name.clone().unwrap_or_else(|| template_stem(&vm.template));
        for index in 1..=count {
            let mut name = if count == 1 { stem.clone() } else { format!("{stem}-{index}") };
            if vm.name.is_none() {
                let mut suffix = index.max(2);
                while taken.contains(&name) || (explicit.contains(name.as_str())) {
                    name = format!("{stem}-{suffix}");
                    suffix += 1;
                }
            }
            check_name("vm", &name)?;
            if !taken.insert(name.clone()) {
                return Err(Refusal::new(
                    ErrorCode::Invalid,
                    format!("vm {}", quoted(&name)),
                    "two members have this name",
                    "give each its own",
                ));
            }
            members.push((name, vm));
        }
    }
    Ok(members)
}

/// What a new member has from its Env.
#[derive(Clone, Copy)]
pub(super) struct Family<'a> {
    pub(super) env_id: EnvId,
    pub(super) env_name: &'a str,
    pub(super) deny_outgoing: bool,
    pub(super) net_blacklist: &'a [IpAddr],
    /// Of the request that adds it to an Env that exists.
    pub(super) request_key: Option<&'a str>,
    pub(super) ssh_keys: &'a [String],
    pub(super) user_data: Option<&'a String>,
}

/// Plans members one after the other.
pub(super) struct Builder<'a> {
    world: &'a World<'a>,
    family: Family<'a>,
    pub(super) next_id: u64,
    addresses: std::slice::Iter<'a, Ipv4Addr>,
    ports: std::slice::Iter<'a, u16>,
    random: std::slice::ChunksExact<'a, u8>,
    pub(super) usage: Usage,
}

impl<'a> Builder<'a> {
    pub(super) fn new(world: &'a World<'a>, family: Family<'a>, next_id: u64) -> Self {
        Self {
            world,
            family,
            next_id,
            addresses: world.free_addresses.iter(),
            ports: world.free_ports.iter(),
            random: world.random.chunks_exact(MACHINE_ID_BYTES),
            usage: world.usage.clone(),
        }
    }

    pub(super) fn vm(&mut self, name: String, spec: &VmSpec) -> Result<Vm, Refusal> {
        let template = self.template(&spec.template)?;
        let base = self.base(spec, template)?;
        let engine = self.engine(spec, template, base)?;
        let least = base.map_or(template.disk_size, |image| image.disk_size);
        let (cpu_num, mem_size, disk_size) = self.sizes(spec, template, least)?;
        let ip_addr = *self.addresses.next().ok_or_else(|| self.exhausted("addresses"))?;
        let port_map = self.port_map(spec)?;
        self.usage.addr_cursor = u32::from(ip_addr).wrapping_add(1);
        self.usage.vm_num += 1;
        self.usage.mem_size += u64::from(mem_size);
        let id = VmId(self.next_id);
        self.next_id += 1;
        let storage = base.map_or_else(|| storage_for(self.world.host, &engine), |i| i.storage);
        Ok(Vm {
            id,
            env_id: self.family.env_id,
            env_name: self.family.env_name.to_owned(),
            name,
            host: self.world.host.id,
            engine,
            template: template.clone(),
            storage,
            epoch: 0,
            runtime_image: runtime_image(storage, id, 0),
            disks: BTreeMap::from([(0, Disk::default())]),
            merge: None,
            next_epoch: 1,
            made_epoch: None,
            base: base.map(|image| image.runtime_image.clone()),
            base_layers: base.map_or(0, KeptImage::layers),
            incarnation: 0,
            memory: None,
            machine: MachineSize { cpu_num, mem_size },
            net_kind: spec.net_kind,
            snapshots: BTreeMap::new(),
            latest_meta: Some(latest_meta(id)),
            state: VmState {
                during_stop: false,
                keep_image: spec.keep_image,
                rand_uuid: spec.rand_uuid,
                net_blacklist: self.blacklist(spec),
                net_allowlist: super::member::unique(&spec.net_allowlist),
            },
            resource: VmResource {
                cpu_num,
                mem_size,
                disk_size,
                ip_addr,
                mac_addr: MacAddr::of_ip(ip_addr),
                port_map,
                up_kbit: spec.up_kbit,
                down_kbit: spec.down_kbit,
                disk_kib: spec.disk_kib,
                disk_ops: spec.disk_ops,
            },
            addr: match spec.net_kind {
                NetKind::Nat => self.world.host.public_addr.to_string(),
                NetKind::Flatten => ip_addr.to_string(),
            },
            machine_id: self.machine_id(spec)?,
            ssh_keys: login::ssh_keys(self.family.ssh_keys, spec, template)?,
            user_data: login::user_data(self.family.user_data, spec, template)?,
            ready_port: login::ready_port(spec, template)?,
            deny_outgoing: self.family.deny_outgoing,
            goal: Goal::Running,
            kill_timestamp: 0,
            request_key: self.family.request_key.map(str::to_owned),
            generation: 1,
        })
    }

    fn template(&self, name: &str) -> Result<&'a VmTemplate, Refusal> {
        self.world.templates.get(name).ok_or_else(|| {
            Refusal::new(
                ErrorCode::NotFound,
                format!("template {}", quoted(name)),
                "this host has no such template",
                "see `tt template ls`; `tt template build micro` makes the built-in one",
            )
        })
    }

    /// The kept image that its disk is a clone of, if it names one.
    fn base(&self, spec: &VmSpec, template: &VmTemplate) -> Result<Option<&'a KeptImage>, Refusal> {
        let Some(id) = spec.image else { return Ok(None) };
        let refuse = |code, problem: String, remedy| {
            Err(Refusal::new(code, format!("image {id}"), problem, remedy))
        };
        match self.world.images.get(&id) {
            None => refuse(
                ErrorCode::NotFound,
                "there is no such kept image".into(),
                "see `tt image ls`",
            ),
            Some(image) if image.template.digest != template.digest => refuse(
                ErrorCode::Invalid,
                format!("it was made from another template than {}", quoted(&template.name)),
                "name the template that `tt image ls` shows",
            ),
            Some(image) if image.layers() as usize >= LAYERS_MAX => refuse(
                ErrorCode::InUse,
                format!("its disk has {LAYERS_MAX} layers, and a Vm's comes on top"),
                "publish it as a template, and make the Vm from that",
            ),
            Some(image) => Ok(Some(image)),
        }
    }

    /// The engine asked for, else the host's first one that can.
    fn engine(
        &self,
        spec: &VmSpec,
        template: &VmTemplate,
        base: Option<&KeptImage>,
    ) -> Result<String, Refusal> {
        let wanted = wanted(spec, template);
        let engines = &self.world.host.engines;
        let mut reasons = Vec::new();
        for engine in engines.iter().filter(|e| spec.engine.as_ref().is_none_or(|n| *n == e.name)) {
            match unable(engine, template, base, wanted) {
                None => return Ok(engine.name.clone()),
                Some(reason) => reasons.push(format!("{}: {reason}", engine.name)),
            }
        }
        let what = match &spec.engine {
            Some(name) => format!("engine {}", quoted(name)),
            None => format!("template {}", quoted(&template.name)),
        };
        if reasons.is_empty() {
            let known: Vec<_> = engines.iter().map(|e| e.name.as_str()).collect();
            let remedy = format!("this host has: {}", known.join(", "));
            return Err(Refusal::new(
                ErrorCode::Unsupported,
                what,
                "there is no such engine",
                remedy,
            ));
        }
        Err(Refusal::new(
            ErrorCode::Unsupported,
            what,
            reasons.join("; "),
            "see `tt host show` for what this host can do",
        ))
    }

    fn sizes(
        &self,
        spec: &VmSpec,
        template: &VmTemplate,
        disk_size_min: u32,
    ) -> Result<(u16, u32, u32), Refusal> {
        let host = self.world.host;
        let cpu_num = spec.cpu_num.unwrap_or(self.world.policy.cpu_num_default);
        let mem_size = spec.mem_size.unwrap_or(self.world.policy.mem_size_default);
        let disk_size = spec.disk_size.unwrap_or(disk_size_min);
        check_sizes(host, cpu_num, mem_size, disk_size)?;
        check_disk(disk_size, disk_size_min, template)?;
        check_memory(host, &self.usage, mem_size)?;
        Ok((cpu_num, mem_size, disk_size))
    }

    fn port_map(&mut self, spec: &VmSpec) -> Result<PortMap, Refusal> {
        if spec.net_kind == NetKind::Flatten {
            if spec.ports.is_empty() {
                return Ok(PortMap::new());
            }
            return Err(Refusal::new(
                ErrorCode::Invalid,
                "ports",
                "a Vm with a flat address has all its ports open",
                "leave the ports out, or choose `nat`",
            ));
        }
        let mut map = PortMap::new();
        for inner in &spec.ports {
            let public = *self.ports.next().ok_or_else(|| self.exhausted("public ports"))?;
            self.usage.port_cursor = public.wrapping_add(1);
            map.insert(*inner, public);
        }
        Ok(map)
    }

    fn blacklist(&self, spec: &VmSpec) -> Vec<IpAddr> {
        let all = self.family.net_blacklist.iter().chain(&spec.net_blacklist);
        all.copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn machine_id(&mut self, spec: &VmSpec) -> Result<Option<String>, Refusal> {
        let bytes = self.random.next().ok_or_else(|| self.exhausted("random bytes"))?;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        Ok(spec.rand_uuid.then(|| hex(bytes)))
    }

    fn exhausted(&self, what: &str) -> Refusal {
        exhausted(self.world.host, what)
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
pub(super) mod tests;
