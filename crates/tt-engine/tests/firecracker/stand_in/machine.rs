//! The machine behind the API. It opens what Firecracker opens and at the same moment, so what is missing is found likewise.

use super::http::{Answer, Request, fault};
use super::{VERSION, lock};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

/// Where the guest counts in its memory, in bytes.
const COUNTER: u64 = 0x180_0000;
/// How often the guest says that it is alive.
const BEAT: Duration = Duration::from_millis(1);
/// What is refused once the machine runs, and what before, in Firecracker's words.
const TOO_LATE: &str = "The requested operation is not supported after starting the microVM.";
const TOO_EARLY: &str = "The requested operation is not supported before starting the microVM.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    NotStarted,
    Running,
    Paused,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    id: String,
    does: Does,
    /// What it was told of each of its parts, by the path of the request.
    parts: Vec<(String, Value)>,
    /// Kept open as long as it lives.
    files: Vec<File>,
    counter: u64,
    is_asked_to_end: bool,
}

/// The fields that each part knows, all of them: others are refused.
const PARTS: [(&str, &[&str]); 7] = [
    ("/boot-source", &["kernel_image_path", "initrd_path", "boot_args"]),
    ("/machine-config", &["vcpu_count", "mem_size_mib", "smt", "track_dirty_pages"]),
    ("/drives/disk", DRIVE),
    ("/drives/seed", DRIVE),
    ("/network-interfaces/net", &["iface_id", "host_dev_name", "guest_mac"]),
    ("/vsock", &["guest_cid", "uds_path"]),
    ("/entropy", &[]),
];
const DRIVE: &[&str] = &[
    "drive_id",
    "path_on_host",
    "is_root_device",
    "is_read_only",
    "cache_type",
    "io_engine",
    "rate_limiter",
];

impl Machine {
    pub fn new(id: String) -> Self {
        Self {
            id,
            does: Does::NotStarted,
            parts: Vec::new(),
            files: Vec::new(),
            counter: 0,
            is_asked_to_end: false,
        }
    }

    /// Does what is asked for.
    pub fn answer(&mut self, request: &Request) -> Answer {
        let answer = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/") => return (200, Some(self.describe())),
            ("PUT", "/actions") => self.act(&request.body),
            ("PATCH", "/vm") => self.turn(&request.body),
            ("GET", "/vm/config") => return (200, Some(self.config())),
            ("PATCH", "/drives/disk") if self.does != Does::NotStarted => {
                self.change_disk(&request.body)
            }
            ("PUT", "/snapshot/create") => self.save(&request.body),
            ("PUT", "/snapshot/load") => self.load(&request.body),
            ("PUT", path) => self.configure(path, &request.body),
            (method, path) => Err(format!("Invalid request method and/or path: {method} {path}.")),
        };
        match answer {
            Ok(()) => (204, None),
            Err(message) => fault(message),
        }
    }

    fn describe(&self) -> Value {
        let state = match self.does {
            Does::NotStarted => "Not started",
            Does::Running => "Running",
            Does::Paused => "Paused",
        };
        json!({"app_name": "Firecracker", "id": self.id, "state": state, "vmm_version": VERSION})
    }

    /// Of what it is made, as far as tests ask.
    fn config(&self) -> Value {
        let drives = self.parts.iter().filter(|(path, _)| path.starts_with("/drives/"));
        json!({"drives": drives.map(|(_, drive)| drive).collect::<Vec<_>>()})
    }

    fn configure(&mut self, path: &str, body: &Value) -> Result<(), String> {
        let part = PARTS.iter().find(|(name, _)| *name == path);
        let (_, fields) =
            part.ok_or_else(|| format!("Invalid request method and/or path: {path}"))?;
        let body = body.as_object().ok_or("The body is no object.")?;
        if let Some(odd) = body.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(format!("unknown field `{odd}`, expected one of {fields:?}"));
        }
        if self.does != Does::NotStarted {
            return Err(TOO_LATE.into());
        }
        self.parts.retain(|(name, _)| name != path);
        self.parts.push((path.to_owned(), Value::Object(body.clone())));
        Ok(())
    }

    fn part(&self, path: &str, field: &str) -> Option<&Value> {
        self.parts.iter().find(|(name, _)| name == path)?.1.get(field)
    }

    fn text(&self, path: &str, field: &str) -> Result<String, String> {
        let value = self.part(path, field).and_then(Value::as_str);
        value.map(str::to_owned).ok_or_else(|| format!("{path} has no {field}"))
    }

    fn mem_bytes(&self) -> u64 {
        self.part("/machine-config", "mem_size_mib").and_then(Value::as_u64).unwrap_or(128) << 20
    }

    fn act(&mut self, body: &Value) -> Result<(), String> {
        match body["action_type"].as_str() {
            Some("InstanceStart") if self.does == Does::NotStarted => {
                let kernel = self.text("/boot-source", "kernel_image_path")?;
                let mut magic = [0; 4];
                let opened = File::open(&kernel).and_then(|mut f| f.read_exact(&mut magic));
                opened.map_err(|e| format!("Cannot load kernel: {e}"))?;
                if &magic != b"\x7fELF" {
                    return Err("Cannot load kernel due to invalid memory configuration".into());
                }
                self.make_devices()?;
                self.does = Does::Running;
                Ok(())
            }
            Some("InstanceStart") => Err(TOO_LATE.into()),
            Some("SendCtrlAltDel") if self.does == Does::NotStarted => Err(TOO_EARLY.into()),
            Some("SendCtrlAltDel") => {
                self.is_asked_to_end = true;
                Ok(())
            }
            other => Err(format!("unknown variant {other:?}")),
        }
    }

    fn turn(&mut self, body: &Value) -> Result<(), String> {
        self.does = match (self.does, body["state"].as_str()) {
            (Does::NotStarted, _) => return Err(TOO_EARLY.into()),
            (_, Some("Paused")) => Does::Paused,
            (_, Some("Resumed")) => Does::Running,
            (_, other) => return Err(format!("unknown variant {other:?}")),
        };
        Ok(())
    }

    /// Opens what the devices are made from.
    fn make_devices(&mut self) -> Result<(), String> {
        self.reopen_disk()?;
        if self.part("/drives/seed", "path_on_host").is_some() {
            let seed = self.text("/drives/seed", "path_on_host")?;
            self.files.push(File::open(&seed).map_err(|e| format!("{seed}: {e}"))?);
        }
        let tap = self.text("/network-interfaces/net", "host_dev_name")?;
        self.files.push(open_tap(&tap).map_err(|e| format!("Open tap device failed: {tap}: {e}"))?);
        let vsock = self.text("/vsock", "uds_path")?;
        let listener = UnixListener::bind(&vsock);
        let listener =
            listener.map_err(|e| format!("Error binding to the host-side socket: {e}"))?;
        thread::spawn(move || serve_vsock(&listener));
        Ok(())
    }

    /// A bucket of no size limits nothing, and a missing one stays as it is.
    fn change_disk(&mut self, body: &Value) -> Result<(), String> {
        if let Some(buckets) = body["rate_limiter"].as_object() {
            let disk = self.parts.iter_mut().find(|(path, _)| path == "/drives/disk");
            let (_, disk) = disk.ok_or("Invalid block device ID!")?;
            for (name, bucket) in buckets {
                let is_none = bucket["size"] == 0 || bucket["refill_time"] == 0;
                disk["rate_limiter"][name] = if is_none { Value::Null } else { bucket.clone() };
            }
        }
        match body.get("path_on_host") {
            Some(_) => self.reopen_disk(),
            None => Ok(()),
        }
    }

    fn reopen_disk(&mut self) -> Result<(), String> {
        let disk = self.text("/drives/disk", "path_on_host")?;
        let file = OpenOptions::new().read(true).write(true).open(&disk);
        self.files.push(file.map_err(|e| format!("Unable to open the disk {disk}: {e}"))?);
        Ok(())
    }

    fn save(&mut self, body: &Value) -> Result<(), String> {
        if self.does != Does::Paused {
            return Err("Cannot create a snapshot: the microVM is not paused.".into());
        }
        let path = |field: &str| body[field].as_str().ok_or(format!("missing field `{field}`"));
        let (state, ram) = (path("snapshot_path")?, path("mem_file_path")?);
        let state_text = json!({ "parts": self.parts }).to_string();
        std::fs::write(state, state_text).map_err(|e| format!("Cannot write {state}: {e}"))?;
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(ram)?;
            file.set_len(self.mem_bytes())?;
            file.write_all_at(&self.counter.to_le_bytes(), COUNTER)?;
            file.sync_all()
        };
        write().map_err(|e| format!("Cannot perform write on the memory backing file: {e}"))
    }

    fn load(&mut self, body: &Value) -> Result<(), String> {
        if self.does != Does::NotStarted || !self.parts.is_empty() {
            return Err("Loading a microVM snapshot not allowed after configuring boot-specific \
                        resources."
                .into());
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let state = std::fs::read_to_string(text(&body["snapshot_path"]));
        let state = state.map_err(|e| format!("Failed to open snapshot state file: {e}"))?;
        let state: Value = serde_json::from_str(&state).map_err(|e| format!("bad state: {e}"))?;
        self.parts = serde_json::from_value(state["parts"].clone()).map_err(|e| e.to_string())?;
        for tap in body["network_overrides"].as_array().into_iter().flatten() {
            for (path, part) in &mut self.parts {
                if *path == format!("/network-interfaces/{}", text(&tap["iface_id"])) {
                    part["host_dev_name"] = tap["host_dev_name"].clone();
                }
            }
        }
        let ram = File::open(text(&body["mem_backend"]["backend_path"]));
        let ram = ram.map_err(|e| format!("Error opening memory file: {e}"))?;
        let mut counter = [0; 8];
        let read = ram.read_exact_at(&mut counter, COUNTER);
        read.map_err(|e| format!("Error loading memory: {e}"))?;
        self.counter = u64::from_le_bytes(counter);
        self.make_devices()?;
        self.does = if body["resume_vm"] == true { Does::Running } else { Does::Paused };
        Ok(())
    }

    /// One step of the guest's life. False once it has reset the machine.
    fn step(&mut self) -> bool {
        if self.does != Does::Running {
            return true;
        }
        let mut out = vec![b'.'];
        for byte in read_typed() {
            match byte {
                b'q' => return false,
                b't' => self.counter += 1,
                b'n' => {}
                _ => continue,
            }
            out.push(b'a' + (self.counter & 15) as u8);
        }
        // As a serial port does that nobody empties: what is not taken is lost.
        let _ = io::stdout().write_all(&out).and_then(|()| io::stdout().flush());
        !self.is_asked_to_end
    }
}

/// Lives until the guest resets the machine.
pub fn live(machine: &Mutex<Machine>) {
    // SAFETY: standard output is open, and only its flags change.
    unsafe { libc::fcntl(1, libc::F_SETFL, libc::O_NONBLOCK | libc::O_RDWR) };
    while lock(machine).step() {
        thread::sleep(BEAT);
    }
}

/// What was typed, without waiting.
fn read_typed() -> Vec<u8> {
    let mut poll = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
    // SAFETY: the kernel reads and writes one `pollfd`.
    let is_there = unsafe { libc::poll(&raw mut poll, 1, 0) } == 1;
    let mut bytes = vec![0; 256];
    let count = if is_there { io::stdin().read(&mut bytes).unwrap_or(0) } else { 0 };
    bytes.truncate(count);
    bytes
}

/// The guest's side listens on port 1024 and says again what it hears; other ports hang up.
fn serve_vsock(listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || -> io::Result<()> {
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line != "CONNECT 1024\n" {
                return Ok(());
            }
            let mut writer = stream;
            writer.write_all(b"OK 1073741824\n")?;
            io::copy(&mut reader, &mut writer).map(drop)
        });
    }
}

/// Attaches to a tap by name, in this process's network namespace and with its rights.
fn open_tap(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) } {
        0 => Ok(tun),
        _ => Err(io::Error::last_os_error()),
    }
}
