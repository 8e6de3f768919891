//! Asks a machine's monitor, beside its driver.

use crate::rig::Rig;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tt_model::Vm;

/// A conversation with the monitor.
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    pub fn new(rig: &Rig, vm: &Vm) -> Self {
        let stream = UnixStream::connect(rig.layout.vm_dir(vm.id).join("qmp.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.ask("qmp_capabilities", json!({}));
        monitor
    }

    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        writeln!(self.0.get_mut(), "{}", json!({"execute": command, "arguments": arguments}))
            .unwrap();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the monitor hung up");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(answer.get("error"), None, "{command}");
            if let Some(result) = answer.get("return") {
                return result.clone();
            }
        }
    }
}
