//! An engine for TT in one file: emulated PCs, by QEMU, without any of the care that the built-in driver takes.
//! docs/exec-engine.md describes what is asked and answered here.

use serde_json::{Value, json};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// What is run as a machine.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// QEMU makes this socket in the machine's directory, and removes it when it ends in good order.
const MONITOR: &str = "monitor";
/// How long QEMU's monitor may take.
const MONITOR_MAX: Duration = Duration::from_secs(5);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let (written, code) = match answer() {
        Ok(answer) => (writeln!(io::stdout(), "{answer}"), ExitCode::SUCCESS),
        Err(error) => (writeln!(io::stderr(), "{error}"), ExitCode::FAILURE),
    };
    written.map_or(ExitCode::FAILURE, |()| code)
}

fn answer() -> Outcome<Value> {
    let request: Value = serde_json::from_reader(io::stdin())?;
    if request["protocol"] != 1 {
        return Err(format!("protocol {} is not spoken here, 1 is", request["protocol"]).into());
    }
    let order = |command: &str| ask(&request, command).map(|_| json!({}));
    match text(&request, "verb")? {
        "init" => init(),
        "start" => start(&request),
        "pause" => order("stop"),
        "resume" => order("cont"),
        "shutdown" => order("system_powerdown"),
        "is_paused" => Ok(json!({"paused": ask(&request, "query-status")?["running"] == false})),
        "ended" => ended(&request),
        other => Err(format!("verb {other:?} is not known").into()),
    }
}

fn init() -> Outcome<Value> {
    let features = ["pause", "shutdown", "nat", "flat", "console", "exec"];
    let unusable = match Path::new(QEMU).exists() {
        true => Value::Null,
        false => json!(format!("there is no {QEMU}: install qemu-system-x86")),
    };
    let version = Command::new(QEMU).arg("--version").output().unwrap_or_else(|_| empty());
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let version = version.split_whitespace().nth(3).unwrap_or_default();
    Ok(json!({"version": version, "features": features, "unusable": unusable}))
}

fn empty() -> std::process::Output {
    std::process::Output { status: Default::default(), stdout: vec![], stderr: vec![] }
}

fn start(request: &Value) -> Outcome<Value> {
    let machine = &request["vm"]["machine"];
    let socket = |id: &str, fd: &Value| format!("socket,id={id},fd={fd},server=on,wait=off");
    let disk = json!({
        "driver": request["disk"]["format"], "node-name": "disk",
        "file": {"driver": "file", "filename": request["disk"]["path"]},
    });
    let nic = json!({
        "driver": "virtio-net-pci", "netdev": "net", "romfile": "",
        "mac": request["vm"]["resource"]["mac_addr"],
    });
    let mut args: Vec<String> = [
        "-nodefaults -no-user-config -display none -sandbox on -accel tcg,tb-size=128 -cpu max",
        "-machine q35,graphics=off,i8042=off -bios qboot.rom -serial chardev:console",
        "-device virtio-blk-pci,drive=disk -device virtio-serial-pci -device virtio-rng-pci",
        "-device virtserialport,chardev=agent,name=tt.agent.0",
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned))
    .collect();
    let mut pair = |option: &str, value: String| args.extend([option.to_owned(), value]);
    pair("-m", format!("{}M", machine["mem_size"]));
    pair("-smp", machine["cpu_num"].to_string());
    pair("-blockdev", disk.to_string());
    pair("-netdev", format!("tap,id=net,fd={}", request["tap_fd"]));
    pair("-device", nic.to_string());
    pair("-chardev", socket("console", &request["console_fd"]));
    pair("-chardev", socket("agent", &request["agent_fd"]));
    pair("-qmp", format!("unix:{MONITOR},server=on,wait=off"));
    if request["kernel"].is_object() {
        pair("-kernel", text(&request["kernel"], "path")?.to_owned());
        pair("-initrd", text(&request["kernel"], "initramfs")?.to_owned());
        pair("-append", "console=ttyS0 quiet panic=1 no_timer_check".to_owned());
    }
    Ok(json!({"program": QEMU, "args": args, "overhead_mb": 320}))
}

/// What QEMU has said last may be a warning; that its monitor is gone says that it ended in good order.
fn ended(request: &Value) -> Outcome<Value> {
    let clean = !monitor(request)?.exists();
    let last = text(request, "messages")?.lines().rfind(|line| line.starts_with("qemu"));
    let why = match (clean, last) {
        (true, _) => "the guest switched itself off",
        (false, Some(line)) => line,
        (false, None) => "its process was killed",
    };
    Ok(json!({"clean": clean, "why": why}))
}

/// Gives QEMU's monitor one command, and answers what it returns.
fn ask(request: &Value, command: &str) -> Outcome<Value> {
    let mut writer = UnixStream::connect(monitor(request)?)?;
    writer.set_read_timeout(Some(MONITOR_MAX))?;
    let reader = BufReader::new(writer.try_clone()?);
    for command in ["qmp_capabilities", command] {
        writer.write_all(json!({"execute": command}).to_string().as_bytes())?;
    }
    let mut returned = reader.lines().map(|line| Ok(serde_json::from_str::<Value>(&line?)?));
    let mut next = || -> Outcome<Value> {
        let answers = |message: &Outcome<Value>| {
            message.as_ref().map_or(true, |m| m.get("return").or(m.get("error")).is_some())
        };
        let message = returned.find(answers).ok_or("the monitor hung up")??;
        match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(format!("{command}: {}", message["error"]).into()),
        }
    };
    next()?;
    next()
}

fn monitor(request: &Value) -> Outcome<PathBuf> {
    Ok(Path::new(text(request, "dir")?).join(MONITOR))
}

fn text<'a>(value: &'a Value, key: &str) -> Outcome<&'a str> {
    value[key].as_str().ok_or_else(|| format!("the request has no text {key:?}").into())
}
