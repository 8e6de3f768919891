//! `tt env create` of a guest on Firecracker against the same guest without TT: Firecracker started by hand with the configuration
//! that TT gave it. It takes KVM, and a Firecracker that `TT_FIRECRACKER` names: `cargo xtask lab` has both.

use crate::by_hand::{Machine, PATIENCE, converse, set_up_of};
use crate::create::breakdown;
use crate::table::{Row, median, say};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testkit::{Lab, Must, Setup};
use tt_guest::message::{self, VSOCK_PORT};

/// Interleaved rounds.
const ROUNDS: usize = 5;
/// How much more than the program alone it may take.
const RATIO_MAX: f64 = 1.15;
/// How often the guest's agent is asked for, by hand.
const LOOK: Duration = Duration::from_millis(5);
/// The tap of the guest that is started by hand.
const TAP: &str = "ttbench1";

/// One guest until its agent has set it up, over Firecracker started by hand until the same point.
pub fn one_guest() -> Vec<Row> {
    let Some(program) = std::env::var_os("TT_FIRECRACKER").map(PathBuf::from) else {
        say("SKIPPED firecracker: TT_FIRECRACKER names no Firecracker");
        return Vec::new();
    };
    let setup = Setup::new("bench").log("info,tt_host=debug").top("storage = \"file\"");
    let setup = setup.top(&format!("firecracker.binary = {program:?}"));
    let Some(lab) = setup.start() else { return Vec::new() };
    lab.host.ip(&format!("tuntap add {TAP} mode tap"));
    lab.host.ip(&format!("link set {TAP} up"));
    create(&lab);
    let recipe = Recipe::of(&lab, program);
    destroy(&lab);
    recipe.run(&lab);
    let (mut by_tt, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_hand.push(recipe.run(&lab));
        by_tt.push(create(&lab));
        destroy(&lab);
    }
    lab.host.ip(&format!("link del {TAP}"));
    let what = "tt env create of one guest on Firecracker over Firecracker by hand";
    let mut rows = vec![Row::ratio(what, median(by_tt), median(by_hand), Some(RATIO_MAX))];
    rows.extend(breakdown(&lab.log()));
    lab.finish();
    rows
}

fn create(lab: &Lab) -> Duration {
    let begin = Instant::now();
    lab.tt(&["env", "create", "bench", "--vm", "a=micro,engine=firecracker"]).good();
    begin.elapsed()
}

fn destroy(lab: &Lab) {
    lab.tt(&["env", "destroy", "bench"]).good();
}

/// What is needed to start a guest again.
struct Recipe {
    program: PathBuf,
    config: Value,
    backing: PathBuf,
    disk_mb: u64,
    setup: message::Setup,
}

impl Recipe {
    /// Reads it off the guest that runs in the lab.
    fn of(lab: &Lab, program: PathBuf) -> Self {
        let record = lab.vm("bench", "a");
        let id = record["id"].as_u64().must("an id");
        let api = lab.run_dir().join("vm").join(id.to_string()).join("own/api");
        let mut config = config_of(&api);
        // What was not asked for.
        config.as_object_mut().must("a configuration").retain(|_, part| !part.is_null());
        let template = record["template"]["path"].as_str().must("a template");
        let template = lab.data().join(template);
        // Names of files in the root that it has under TT.
        for (path, file) in [("kernel_image_path", "kernel"), ("initrd_path", "initramfs")] {
            config["boot-source"][path] = template.join(file).display().to_string().into();
        }
        Self {
            program,
            config,
            backing: template.join("disk.raw"),
            disk_mb: record["resource"]["disk_size"].as_u64().must("a disk size"),
            setup: set_up_of(lab, "bench", "a"),
        }
    }

    /// Starts the guest, waits until it is set up, and ends it. The time of the first two.
    fn run(&self, lab: &Lab) -> Duration {
        let dir = tempfile::tempdir_in(lab.dir()).must("a directory");
        let disk = dir.path().join("disk");
        fs::copy(&self.backing, &disk).must("copy the disk");
        let grown = File::options().write(true).open(&disk);
        grown.and_then(|disk| disk.set_len(self.disk_mb << 20)).must("grow the disk");
        let mut config = self.config.clone();
        config["drives"][0]["path_on_host"] = disk.display().to_string().into();
        config["network-interfaces"][0]["host_dev_name"] = TAP.into();
        let (file, vsock) = (dir.path().join("config.json"), dir.path().join("vsock"));
        config["vsock"]["uds_path"] = vsock.display().to_string().into();
        fs::write(&file, config.to_string()).must("write the configuration");
        let begin = Instant::now();
        let mut command = Command::new(&self.program);
        command.arg("--no-api").arg("--config-file").arg(&file).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut machine = Machine(lab.host.run(|| command.spawn()).must("start Firecracker"));
        let mut agent = loop {
            match agent(&vsock) {
                Some(agent) => break agent,
                None => assert!(begin.elapsed() < PATIENCE, "its guest does not answer"),
            }
            std::thread::sleep(LOOK);
        };
        converse(&mut agent, &self.setup);
        let took = begin.elapsed();
        machine.end();
        took
    }
}

/// The channel to the agent, if it listens by now.
fn agent(vsock: &Path) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(vsock).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).must("a timeout");
    stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).ok()?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).ok()?;
    }
    Some(stream)
}

/// What a Firecracker says that its machine is, in the form in which it can be told.
fn config_of(api: &Path) -> Value {
    let mut stream = UnixStream::connect(api).must("its API");
    stream.write_all(b"GET /vm/config HTTP/1.1\r\nHost: localhost\r\n\r\n").must("ask it");
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk).must("its answer");
        assert!(length > 0, "it hung up: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..length]);
        let body = text.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(Ok(config)) = body.map(|body| serde_json::from_slice(&text[body..])) {
            return config;
        }
    }
}
