//! A Vm for tests of this crate.

use tt_model::{EnvId, StorageKind, Vm, VmId, VmTemplate, sample, template};

/// The Vm of this id, alone in the Env of the same number: one processor, 32 MB, a raw disk, booted by kernel.
pub(crate) fn vm(id: u64) -> Vm {
    let vm = sample::vm(id, "qemu", StorageKind::File);
    Vm {
        env_id: EnvId(id),
        template: VmTemplate {
            name: "beat".into(),
            path: "template".into(),
            features: vec![template::FEATURE_KERNEL.into()],
            disk_size: 1,
            ..VmTemplate::default()
        },
        resource: tt_model::VmResource { disk_size: 1, ..vm.resource },
        id: VmId(id),
        ..vm
    }
}
