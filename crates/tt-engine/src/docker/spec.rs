//! What Docker is told of a machine: pure values.

use serde_json::{Value, json};
use std::path::Path;
use tt_docker::{Config, Limits};
use tt_guest::container::{AGENT, ARGUMENT, DOOR};
use tt_guest::entry::Entry;
use tt_model::names::{LABEL_ENTRY, LABEL_EPOCH, LABEL_INSTANCE, LABEL_VM};
use tt_model::{Layout, MachineSize, Vm};

/// Processes and threads of a container: far more than services have, far fewer than a host.
const PIDS_MAX: u32 = 4096;
/// What a container's root may do of what Linux knows: what changes users and files inside. No raw sockets, no devices.
const CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
];

/// What a container is made with. `door`: the directory that it finds its start in; `entry`: the image's process;
/// `with_size`: whether its disk is bounded.
pub(super) fn container(
    layout: &Layout,
    vm: &Vm,
    agent: &Path,
    door: &Path,
    entry: Option<&Entry>,
    with_size: bool,
) -> Value {
    let mut host = json!({
        "AutoRemove": false,
        "CapAdd": CAPABILITIES,
        "CapDrop": ["ALL"],
        "IpcMode": "private",
        // All output goes to the console, whose log is bounded.
        "LogConfig": { "Type": "none" },
        "Mounts": [mount(door, DOOR), mount(agent, AGENT)],
        "NetworkMode": "none",
        "Privileged": false,
        "RestartPolicy": { "Name": "no" },
        "SecurityOpt": ["no-new-privileges"],
    });
    for (name, value) in entries(limits(vm.machine).docker()) {
        host[name] = value;
    }
    if with_size {
        host["StorageOpt"] = json!({ "size": format!("{}M", vm.resource.disk_size) });
    }
    json!({
        "Hostname": vm.name,
        "Image": layout.docker_image(vm.id, vm.epoch),
        "Entrypoint": [AGENT, ARGUMENT],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        // Docker would have a program of its own look at a namespace in which there is nothing, half of a start's time.
        "NetworkDisabled": true,
        "Labels": {
            LABEL_INSTANCE: layout.instance.to_string(),
            LABEL_VM: vm.id.to_string(),
            LABEL_EPOCH: vm.epoch.to_string(),
            LABEL_ENTRY: json!(entry).to_string(),
        },
        "HostConfig": host,
    })
}

/// What may change while it runs.
pub(super) fn limits(size: MachineSize) -> Limits {
    Limits { mem_bytes: u64::from(size.mem_size) << 20, cpu_num: size.cpu_num, pids: PIDS_MAX }
}

/// The process of an image: of one that was made of a container of ours, what was noted then.
pub(super) fn entry(config: &Config) -> Option<Entry> {
    let labels = config.labels.as_ref();
    if let Some(noted) = labels.and_then(|labels| labels.get(LABEL_ENTRY))
        && let Ok(entry) = serde_json::from_str::<Option<Entry>>(noted)
        // Anybody's image may bring such a label.
        && entry.as_ref().is_none_or(|entry| entry.check().is_ok())
    {
        return entry;
    }
    let parts = [&config.entrypoint, &config.cmd];
    let argv: Vec<String> = parts.into_iter().flatten().flatten().cloned().collect();
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let env = config.env.iter().flatten().filter_map(|line| line.split_once('='));
    let env = env.filter(|(name, _)| !name.is_empty()).map(|(n, v)| (n.to_owned(), v.to_owned()));
    let entry = Entry {
        argv,
        env: env.collect(),
        user: some(&config.user),
        cwd: some(&config.working_dir),
    };
    entry.check().is_ok().then_some(entry)
}

fn mount(from: &Path, to: &str) -> Value {
    json!({ "Type": "bind", "Source": from.to_string_lossy(), "Target": to, "ReadOnly": true })
}

fn entries(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(entries) => entries,
        _ => serde_json::Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{StorageKind, names::Instance, sample};

    #[test]
    fn a_container_is_confined_limited_and_labelled() {
        let layout = Layout { data: "/d".into(), run: "/r".into(), instance: Instance(0x12ab) };
        let vm = Vm { epoch: 3, ..sample::vm(7, "docker", StorageKind::Docker) };
        let entry = Entry {
            argv: vec!["nginx".into()],
            env: vec![("A".into(), "b".into())],
            user: Some("web".into()),
            cwd: None,
        };
        let body = container(
            &layout,
            &vm,
            "/usr/lib/tt/tt-guest".as_ref(),
            "/r/vm/7/door".as_ref(),
            Some(&entry),
            true,
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap());
        let config: Config = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(super::entry(&config), Some(entry), "what is made of it goes on with the same");
        let without = container(&layout, &vm, "/a".as_ref(), "/b".as_ref(), None, false);
        assert!(without["HostConfig"].get("StorageOpt").is_none());
        assert_eq!(super::entry(&serde_json::from_value(without).unwrap()), None);
    }

    #[test]
    fn an_images_process_is_what_its_config_says() {
        let config = |text: &str| entry(&serde_json::from_str(text).unwrap());
        let all = r#"{"Entrypoint":["/e","x"],"Cmd":["y"],"Env":["A=b=c","BAD","=x"],"User":"u:g","WorkingDir":"/w"}"#;
        let wanted = Entry {
            argv: ["/e", "x", "y"].map(str::to_owned).to_vec(),
            env: vec![("A".into(), "b=c".into())],
            user: Some("u:g".into()),
            cwd: Some("/w".into()),
        };
        assert_eq!(config(all), Some(wanted));
        for none in ["{}", r#"{"Cmd":null}"#, r#"{"Cmd":[""]}"#, r#"{"Cmd":["a\u0000"]}"#] {
            assert_eq!(config(none), None, "{none}");
        }
        for odd in ["no json", r#"{\"argv\":[]}"#] {
            let odd = format!(r#"{{"Cmd":["a"],"Labels":{{"tt.entry":"{odd}"}}}}"#);
            assert_eq!(config(&odd).unwrap().argv, ["a"]);
        }
    }
}
