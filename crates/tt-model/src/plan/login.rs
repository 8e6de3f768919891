//! What a new member is given to be logged in to, and by what its guest is seen to be ready. It reads no file.

use crate::check::quoted;
use crate::login::{check_ssh_keys, takes_keys, takes_user_data};
use crate::template::{FEATURE_AGENT, FEATURE_CLOUD_INIT};
use crate::{EnvSpec, ErrorCode, Refusal, Vm, VmSpec, VmTemplate};

/// Where a guest is logged in to (IANA's `ssh`).
const SSH_PORT: u16 = 22;

/// What is given to an Env reaches a member at least.
pub(super) fn check_given(spec: &EnvSpec, vms: &[Vm]) -> Result<(), Refusal> {
    if !spec.ssh_keys.is_empty() && vms.iter().all(|vm| vm.ssh_keys.is_empty()) {
        return Err(not_taken("ssh_keys", "no member", "the agent or cloud-init"));
    }
    if spec.user_data.is_some() && vms.iter().all(|vm| vm.user_data.is_none()) {
        return Err(not_taken("user_data", "no member", "cloud-init"));
    }
    Ok(())
}

/// By which port its guest is seen to be ready.
pub(super) fn ready_port(spec: &VmSpec, template: &VmTemplate) -> Result<Option<u16>, Refusal> {
    match (template.has(FEATURE_AGENT), spec.ready_port) {
        (true, None) => Ok(None),
        (true, Some(port)) => Err(Refusal::new(
            ErrorCode::Invalid,
            format!("ready_port {port}"),
            format!("the agent of template {} says when its guest is ready", template.name),
            "leave it out",
        )),
        // A guest that is given keys is to be logged in to.
        (false, None) => Ok(template.has(FEATURE_CLOUD_INIT).then_some(SSH_PORT)),
        (false, Some(port)) => Ok(Some(port).filter(|port| *port != 0)),
    }
}

/// The keys of its Env and its own.
pub(super) fn ssh_keys(
    family: &[String],
    spec: &VmSpec,
    template: &VmTemplate,
) -> Result<Vec<String>, Refusal> {
    if !takes_keys(template) {
        let who = format!("no guest of template {}", quoted(&template.name));
        return match spec.ssh_keys.is_empty() {
            true => Ok(Vec::new()),
            false => Err(not_taken("ssh_keys", &who, "the agent or cloud-init")),
        };
    }
    let mut keys = family.to_vec();
    keys.extend(spec.ssh_keys.iter().filter(|key| !family.contains(key)).cloned());
    check_ssh_keys(&keys)?;
    Ok(keys)
}

/// Its own user data, else its Env's.
pub(super) fn user_data(
    family: Option<&String>,
    spec: &VmSpec,
    template: &VmTemplate,
) -> Result<Option<String>, Refusal> {
    if takes_user_data(template) {
        return Ok(spec.user_data.as_ref().or(family).cloned());
    }
    let who = format!("no guest of template {}", quoted(&template.name));
    match spec.user_data {
        None => Ok(None),
        Some(_) => Err(not_taken("user_data", &who, "cloud-init")),
    }
}

fn not_taken(what: &str, who: &str, needed: &str) -> Refusal {
    Refusal::new(
        ErrorCode::Unsupported,
        what,
        format!("{who} can be given it"),
        format!("choose a template with {needed}: `tt template ls` shows what each has"),
    )
}
