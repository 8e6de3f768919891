//! Pure decisions: from a request and the present state to the records that are to be committed.

mod change;
mod create;
mod login;
mod member;
mod merge;
mod publish;
mod room;
mod snapshot;

pub use change::{plan_destroy, plan_end, plan_extend, plan_start, plan_stop, plan_undo};
pub use create::{EnvPlan, Needs, World, needs, plan_env};
pub use member::{AddPlan, UpdateWorld, plan_add, plan_outgoing, plan_rm, plan_update};
pub use merge::{HIDDEN_MAX, needs_merge, plan_merge, plan_merged, plan_unmerged};
pub use publish::{plan_publish, plan_publish_image, plan_published};
pub use snapshot::{
    ApplyWorld, LAYERS_MAX, plan_apply, plan_detach, plan_drop_expired, plan_drop_snapshot,
    plan_frozen, plan_made, plan_snapshot, plan_take, plan_take_failed, plan_taken,
};

use serde::{Deserialize, Serialize};

/// The administrator's choices that planning follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Lifetime of an Env that asks for none, in seconds.
    pub life_time_default: u64,
    /// Longest lifetime from now, in seconds.
    pub life_time_max: u64,
    /// Least time between two management calls on an Env, in seconds; 0 for none.
    pub mgmt_interval: u64,
    /// How long a guest that was asked to shut down may take, in seconds.
    pub shutdown_grace: u64,
    /// Virtual CPUs of a Vm that asks for no number.
    pub cpu_num_default: u16,
    /// Memory of a Vm that asks for none, in MB (2^20 bytes).
    pub mem_size_default: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            life_time_default: 24 * 3600,
            life_time_max: 30 * 24 * 3600,
            mgmt_interval: 1,
            shutdown_grace: 20,
            cpu_num_default: 1,
            mem_size_default: 128,
        }
    }
}

/// Whether `life_time` seconds are within the policy.
fn check_life_time(life_time: u64, policy: &Policy) -> Result<(), crate::Refusal> {
    if (1..=policy.life_time_max).contains(&life_time) {
        return Ok(());
    }
    Err(crate::Refusal::new(
        crate::ErrorCode::LifeTime,
        format!("lifetime of {life_time} seconds"),
        format!("the limit is {} seconds", policy.life_time_max),
        "ask for less now and extend it later",
    ))
}

/// A name for a Vm without one: the last part of its template's name, as a DNS label.
fn template_stem(template: &str) -> String {
    let last = template.rsplit('/').next().unwrap_or(template);
    let stem: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let stem = stem.trim_matches('-');
    if stem.bytes().any(|b| b.is_ascii_alphabetic()) { stem.into() } else { format!("vm-{stem}") }
}
