//! The grammar of `--vm`: `[NAME=]TEMPLATE[,engine=..][,cpu=N][,mem=SIZE][,disk=SIZE][,port=P[/udp]]..[,net=nat|flat]
//! [,count=N][,image=ID][,ready=P|running][,keep-image][,no-rand-uuid]`. A pure function of the text; what a host can do with the result is not decided here.

use std::str::FromStr;
use tt_model::check::{DISK_LIMIT_MAX, RATE_KBIT_MAX};
use tt_model::check::{check_vm, quoted};
use tt_model::units::parse_size_mb;
use tt_model::{NetKind, Refusal, VmId, VmSpec};

/// The options, as they are listed in errors.
const OPTIONS: &str = "engine=NAME, cpu=N, mem=SIZE, disk=SIZE, disk-kib=KIB, disk-ops=N, port=PORT, net=nat|flat, \
                       allow=NET|NAME, up=KBIT, down=KBIT, count=N, image=ID, ready=PORT|running, keep-image and no-rand-uuid";

/// Options that are followed by `=` and a value.
const KEYS: [&str; 14] = [
    "engine", "cpu", "mem", "disk", "disk-kib", "disk-ops", "port", "net", "allow", "up", "down",
    "count", "image", "ready",
];
/// Those that may be said several times.
const LISTS: [&str; 2] = ["port", "allow"];

/// The option for a machine-id that is empty.
const NO_RAND_UUID: &str = "no-rand-uuid";
/// The option for a disk that outlives its Vm.
const KEEP_IMAGE: &str = "keep-image";
/// Options without a value.
const SWITCHES: [&str; 2] = [NO_RAND_UUID, KEEP_IMAGE];

/// A text that is no `--vm`. Writing the same again never helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmSpecError {
    /// The first part is no template.
    #[error("{} stands where the template belongs; begin with TEMPLATE or NAME=TEMPLATE", quoted(.found))]
    FindTemplate {
        /// The first part.
        found: String,
    },
    /// There is a comma with nothing behind it.
    #[error("an option is empty; take the comma away or write one of {OPTIONS}")]
    FindOption,
    /// No such option.
    #[error("{} is no option; use {OPTIONS}", quoted(.found))]
    KnowOption {
        /// What was given.
        found: String,
    },
    /// An option lacks its value.
    #[error("{key} has no value; write {key}={right}")]
    FindValue {
        /// The option.
        key: &'static str,
        /// What a value looks like.
        right: &'static str,
    },
    /// An option has a value that it does not take.
    #[error("{switch} takes no value, but has {}; write it alone", quoted(.value))]
    RefuseValue {
        /// The option.
        switch: &'static str,
        /// The value.
        value: String,
    },
    /// An option is given twice.
    #[error("{key} is given twice; give it once")]
    AcceptOnce {
        /// The option.
        key: &'static str,
    },
    /// An option's value can not be read.
    #[error("{key}={}: {right}", shown(.value))]
    ReadValue {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        right: String,
    },
    /// All parts can be read, but the whole is refused.
    #[error(transparent)]
    Accept(#[from] Refusal),
}

/// Reads one `--vm`.
///
/// # Errors
/// [`VmSpecError`] names the first part that is wrong, and what would be right.
pub fn parse_vm_spec(text: &str) -> Result<VmSpec, VmSpecError> {
    let mut parts = text.split(',');
    let mut spec = head(parts.next().unwrap_or_default())?;
    let mut seen = Vec::new();
    for part in parts {
        let key = option(&mut spec, part)?;
        // Ports add up; a port given twice is found by the check of the whole.
        if !LISTS.contains(&key) && seen.contains(&key) {
            return Err(VmSpecError::AcceptOnce { key });
        }
        seen.push(key);
    }
    check_vm(&spec)?;
    Ok(spec)
}

fn head(part: &str) -> Result<VmSpec, VmSpecError> {
    let (name, template) = match part.split_once('=') {
        Some((name, template)) => (Some(name), template),
        None => (None, part),
    };
    let is_option = |word: &str| KEYS.contains(&word) || SWITCHES.contains(&word);
    if template.is_empty() || is_option(name.unwrap_or(template)) {
        return Err(VmSpecError::FindTemplate { found: part.to_owned() });
    }
    let mut spec = VmSpec::new(template);
    spec.name = name.map(str::to_owned);
    Ok(spec)
}

/// Applies one option to `spec` and returns its key.
fn option(spec: &mut VmSpec, part: &str) -> Result<&'static str, VmSpecError> {
    let (word, value) = match part.split_once('=') {
        Some((word, value)) => (word, Some(value)),
        None => (part, None),
    };
    if let Some(switch) = SWITCHES.into_iter().find(|switch| *switch == word) {
        if let Some(value) = value {
            return Err(VmSpecError::RefuseValue { switch, value: value.to_owned() });
        }
        match switch {
            KEEP_IMAGE => spec.keep_image = true,
            _ => spec.rand_uuid = false,
        }
        return Ok(switch);
    }
    let Some(key) = KEYS.into_iter().find(|key| *key == word) else {
        let empty = part.is_empty();
        let unknown = || VmSpecError::KnowOption { found: part.to_owned() };
        return Err(if empty { VmSpecError::FindOption } else { unknown() });
    };
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Err(VmSpecError::FindValue { key, right: example(key) });
    };
    let refuse = |right: String| VmSpecError::ReadValue { key, value: value.to_owned(), right };
    match key {
        "engine" => spec.engine = Some(engine(value).map_err(refuse)?),
        "cpu" => spec.cpu_num = Some(number(value, u16::MAX).map_err(refuse)?),
        "mem" => spec.mem_size = Some(size(value).map_err(refuse)?),
        "disk" => spec.disk_size = Some(size(value).map_err(refuse)?),
        "port" => spec.ports.push(value.parse().map_err(|error| refuse(format!("{error}")))?),
        "net" => spec.net_kind = net(value).map_err(refuse)?,
        "allow" => spec.net_allowlist.push(value.parse().map_err(|e| refuse(format!("{e}")))?),
        "up" => spec.up_kbit = Some(number(value, RATE_KBIT_MAX).map_err(refuse)?),
        "disk-kib" => spec.disk_kib = Some(number(value, DISK_LIMIT_MAX).map_err(refuse)?),
        "disk-ops" => spec.disk_ops = Some(number(value, DISK_LIMIT_MAX).map_err(refuse)?),
        "down" => spec.down_kbit = Some(number(value, RATE_KBIT_MAX).map_err(refuse)?),
        "image" => spec.image = Some(VmId(number(value, u64::MAX).map_err(refuse)?)),
        "ready" => spec.ready_port = Some(ready(value).map_err(refuse)?),
        _ => spec.count = Some(number(value, u32::MAX).map_err(refuse)?),
    }
    Ok(key)
}

fn example(key: &str) -> &'static str {
    match key {
        "engine" => "qemu",
        "cpu" => "2",
        "mem" => "512M",
        "disk" => "10G",
        "port" => "80",
        "net" => "nat",
        "allow" => "192.0.2.0/24:443",
        "up" | "down" | "disk-kib" => "10000",
        "disk-ops" => "500",
        "image" => "7",
        "ready" => "22",
        _ => "3",
    }
}

fn engine(value: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if value.bytes().all(allowed) {
        return Ok(value.to_owned());
    }
    Err("it is no engine; write a name such as qemu (see `tt host show`)".into())
}

/// A whole number from 1 to `max`, in digits only.
fn number<T: FromStr + std::fmt::Display + PartialEq + From<u8>>(
    value: &str,
    max: T,
) -> Result<T, String> {
    let refuse = || format!("it is no number; write a whole one from 1 to {max}");
    if !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    value.parse().ok().filter(|number| *number != T::from(0)).ok_or_else(refuse)
}

/// The port by which a guest is seen to be ready; 0 for none.
fn ready(value: &str) -> Result<u16, String> {
    if value == "running" {
        return Ok(0);
    }
    number(value, u16::MAX).map_err(|_| "write a TCP port, or running".into())
}

fn size(value: &str) -> Result<u32, String> {
    parse_size_mb(value).map_err(|error| error.to_string())
}

fn net(value: &str) -> Result<NetKind, String> {
    match value {
        "nat" => Ok(NetKind::Nat),
        "flat" => Ok(NetKind::Flatten),
        _ => Err("it is no kind of network; write nat or flat".into()),
    }
}

/// A value as it may be shown, without marks around it.
fn shown(text: &str) -> String {
    quoted(text).trim_matches('`').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tt_model::{InnerPort, Protocol};

    #[test]
    fn a_template_alone_is_enough() {
        assert_eq!(parse_vm_spec("micro"), Ok(VmSpec::new("micro")));
        assert_eq!(
            parse_vm_spec("github.com/ktmlm/alpine"),
            Ok(VmSpec::new("github.com/ktmlm/alpine"))
        );
    }

    #[test]
    fn every_option_lands_in_its_field() {
        let spec = parse_vm_spec(
            "web=micro,engine=qemu,cpu=2,mem=1G,disk=10G,port=80,port=53/udp,net=flat,allow=192.0.2.0/24:443,\
             allow=*.example.org:443,up=1000,down=2000,disk-kib=4096,disk-ops=100,count=3,image=7,ready=80,keep-image,no-rand-uuid",
        );
        let port = |port, protocol| InnerPort { port, protocol };
        assert_eq!(
            spec,
            Ok(VmSpec {
                name: Some("web".into()),
                engine: Some("qemu".into()),
                cpu_num: Some(2),
                mem_size: Some(1024),
                disk_size: Some(10240),
                ports: vec![port(80, Protocol::Tcp), port(53, Protocol::Udp)],
                net_kind: NetKind::Flatten,
                net_allowlist: ["192.0.2.0/24:443", "*.example.org:443"]
                    .map(|r| r.parse().unwrap())
                    .into(),
                up_kbit: Some(1000),
                down_kbit: Some(2000),
                disk_kib: Some(4096),
                disk_ops: Some(100),
                count: Some(3),
                rand_uuid: false,
                keep_image: true,
                image: Some(VmId(7)),
                ready_port: Some(80),
                ..VmSpec::new("micro")
            })
        );
        assert_eq!(parse_vm_spec("micro,ready=running").unwrap().ready_port, Some(0));
        assert_eq!(parse_vm_spec("micro,net=nat").unwrap().net_kind, NetKind::Nat);
        assert_eq!(parse_vm_spec("micro,mem=512").unwrap().mem_size, Some(512));
        assert_eq!(parse_vm_spec("micro,cpu=65535").unwrap().cpu_num, Some(65535));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (text, expected) in [
            ("", "`` stands where the template belongs; begin with TEMPLATE or NAME=TEMPLATE"),
            ("web=", "`web=` stands where the template belongs"),
            ("cpu=2", "`cpu=2` stands where the template belongs"),
            ("no-rand-uuid", "`no-rand-uuid` stands where the template belongs"),
            (",cpu=2", "`` stands where the template belongs"),
            ("=micro", "vm ``: it is empty; use 1 to 58"),
            ("Web=micro", "vm `Web`: it has characters that are not allowed"),
            ("web=Micro", "template `Micro`: it is no template name"),
            ("a=b=c", "template `b=c`: it is no template name"),
            ("micro,", "an option is empty; take the comma away or write one of engine=NAME"),
            ("micro,,cpu=2", "an option is empty"),
            ("micro,color=red", "`color=red` is no option; use engine=NAME, cpu=N, mem=SIZE"),
            ("keep-image", "`keep-image` stands where the template belongs"),
            ("image=7", "`image=7` stands where the template belongs"),
            ("micro,keep-image=yes", "keep-image takes no value, but has `yes`; write it alone"),
            ("micro,keep-image,keep-image", "keep-image is given twice"),
            ("micro,image", "image has no value; write image=7"),
            ("micro,image=web", "image=web: it is no number; write a whole one from 1"),
            ("micro,keep-images", "`keep-images` is no option"),
            ("micro,CPU=2", "`CPU=2` is no option"),
            ("micro,cpu", "cpu has no value; write cpu=2"),
            ("micro,mem=", "mem has no value; write mem=512M"),
            ("micro,port=", "port has no value; write port=80"),
            ("micro,no-rand-uuid=1", "no-rand-uuid takes no value, but has `1`; write it alone"),
            ("micro,cpu=1,cpu=2", "cpu is given twice; give it once"),
            ("micro,no-rand-uuid,no-rand-uuid", "no-rand-uuid is given twice"),
            ("micro,cpu=0", "cpu=0: it is no number; write a whole one from 1 to 65535"),
            ("micro,cpu=-1", "cpu=-1: it is no number"),
            ("micro,cpu=+1", "cpu=+1: it is no number"),
            ("micro,cpu=1.5", "cpu=1.5: it is no number"),
            ("micro,cpu=65536", "cpu=65536: it is no number; write a whole one from 1 to 65535"),
            ("micro,count=0", "count=0: it is no number; write a whole one from 1 to 4294967295"),
            ("micro,mem=1GB", "mem=1GB: \"1GB\" is no size; write a whole number of MB"),
            ("micro,mem=4096T", "is no size"),
            ("micro,mem=1", "mem_size 1: no guest boots in so little memory; give at least 32"),
            ("micro,disk=0", "disk=0: \"0\" is no size"),
            ("micro,port=0", "port=0: \"0\" is no port; write a number from 1 to 65535"),
            ("micro,port=80/sctp", "is no port"),
            ("micro,port=80:8080", "is no port"),
            ("micro,port=80,port=80", "port 80: it is given twice; give it once"),
            ("micro,net=bridge", "net=bridge: it is no kind of network; write nat or flat"),
            ("micro,engine=QEMU", "engine=QEMU: it is no engine; write a name such as qemu"),
            ("micro,engine=a/../b", "it is no engine"),
            ("micro cpu=2", "vm `micro cpu`: it has characters that are not allowed"),
        ] {
            let error = parse_vm_spec(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn errors_stay_short_and_on_one_line() {
        for text in
            ["a".repeat(10_000), format!("micro,{}\n", "x".repeat(10_000)), "mi\0cro".into()]
        {
            let error = parse_vm_spec(&text).unwrap_err().to_string();
            assert!(error.len() < 500 && !error.contains(['\n', '\0']), "{error}");
        }
    }
}
