//! Dropping the record of a Vm of which the host has nothing any more. The record goes last.

use crate::HostError;
use crate::cache::MetaCache;
use crate::visit::COMMIT_TRIES;
use tt_model::{KeptImage, VmId};
use tt_store::tables::{Change, Committed, Tables};

/// Removes the Vm's record with everything it takes, and its Env's with the last member. Returns
/// whether the Env went too. `kept`: what is recorded in its place, if its disk outlives it.
pub(crate) fn erase(
    tables: &Tables,
    id: VmId,
    kept: Option<&KeptImage>,
    metas: &MetaCache,
) -> Result<bool, HostError> {
    for _ in 0..COMMIT_TRIES {
        let Some(vm) = tables.vm(id)? else { return Ok(false) };
        let env = tables.env(vm.value.env_id)?;
        let usage = tables.usage(vm.value.host)?;
        let (Some(mut env), Some(mut usage)) = (env, usage) else {
            // All three are committed together, so this is a damaged store.
            return Err(HostError::Incomplete { id });
        };
        env.value.vm_set.remove(&id);
        usage.value.vm_num = usage.value.vm_num.saturating_sub(1);
        let mem_size = u64::from(vm.value.resource.mem_size);
        usage.value.mem_size = usage.value.mem_size.saturating_sub(mem_size);
        if env.value.is_ending && env.value.vm_set.is_empty() {
            metas.forget_env(env.value.id)?;
        }
        let change = Change::new().erase_vm(&vm, &env, &usage, kept)?;
        if let Committed::Done(_) = tables.commit(&change)? {
            return Ok(env.value.is_ending && env.value.vm_set.is_empty());
        }
    }
    Err(HostError::Contended { what: format!("vm {id}"), tries: COMMIT_TRIES })
}
