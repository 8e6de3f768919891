//! What tests do with a lab: commands, and what their answers say.

use crate::hostile::Frames;
use crate::run::run;
use crate::{HOST, Lab, Must, Run, Space};
use serde_json::Value;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tt_model::{VmId, names};

/// Where the helper lies in guests.
const HELPER: &str = "/usr/local/bin/helper";

impl Lab {
    /// The program, told where the daemon is; standard streams and arguments are the caller's.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.tt);
        command.arg("--socket").arg(self.socket()).args(args).env_remove("TT_SOCKET");
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn tt(&self, args: &[&str]) -> Run {
        self.tt_with(args, b"")
    }

    /// Runs the program to its end with that input.
    #[track_caller]
    pub fn tt_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut all = vec!["--quiet"];
        all.extend(args);
        run(&mut self.command(&all), input)
    }

    /// What the program says with `--json`; it must end well.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let text = self.tt(&all).good();
        serde_json::from_str(&text).must(&text)
    }

    /// Runs a program in a guest.
    #[track_caller]
    pub fn exec(&self, vm: &str, command: &[&str]) -> Run {
        let mut all = vec!["exec", vm, "--"];
        all.extend(command);
        self.tt(&all)
    }

    /// What a shell in a guest says to a line that ends well, without white space at either end.
    #[track_caller]
    pub fn sh(&self, vm: &str, line: &str) -> String {
        self.exec(vm, &["sh", "-c", line]).good().trim().to_owned()
    }

    /// The records of an Env; nothing if there is none.
    pub fn env(&self, env: &str) -> Option<Value> {
        let answer = self.get(&format!("/v1/envs/{env}"))?;
        (answer.status == 200).then_some(answer.body)
    }

    /// The record of a member, which must be there.
    #[track_caller]
    pub fn vm(&self, env: &str, vm: &str) -> Value {
        let view = self.env(env).must(env);
        let members = view["vms"].as_array().cloned().unwrap_or_default();
        members.into_iter().find(|member| member["name"] == vm).must(vm)
    }

    /// The inner address of a member.
    #[track_caller]
    pub fn addr(&self, env: &str, vm: &str) -> Ipv4Addr {
        let vm = self.vm(env, vm);
        vm["resource"]["ip_addr"].as_str().and_then(|text| text.parse().ok()).must("an address")
    }

    /// The public port of a member's port, written as in records: `80`, `53/udp`.
    #[track_caller]
    pub fn port(&self, env: &str, vm: &str, inner: &str) -> u16 {
        let vm = self.vm(env, vm);
        let port = vm["resource"]["port_map"][inner].as_u64();
        port.and_then(|port| u16::try_from(port).ok()).must("a public port")
    }

    /// A packet socket on the host's end of a member's link: what the member sends and gets.
    #[track_caller]
    pub fn frames(&self, env: &str, vm: &str) -> Frames {
        let record = self.vm(env, vm);
        let id = |name: &str| record[name].as_u64().must(name);
        let space = Space::at(&self.run_dir().join("netns").join(id("env_id").to_string()));
        space.must("the namespace of an env").frames(&names::tap(VmId(id("id"))))
    }

    /// Waits until an Env is in `phase`, which is `gone` for one that is not there.
    #[track_caller]
    pub fn reaches_phase(&self, env: &str, phase: &str, patience: Duration) {
        crate::eventually(&format!("env {env} is {phase}"), patience, || {
            let view = self.env(env);
            let now = match (&view, self.get("/v1/envs")) {
                (Some(view), _) => view["phase"].as_str().unwrap_or("?"),
                (None, Some(_)) => "gone",
                (None, None) => "without a daemon",
            };
            if now == phase { None } else { Some(view.map_or("gone".into(), |v| v.to_string())) }
        });
    }

    /// Lets a guest echo what comes to a port by TCP and UDP.
    #[track_caller]
    pub fn serve_echo(&self, vm: &str, port: u16) {
        self.leave_helper(vm, &format!("echo {port}"));
        let listens = format!("netstat -lntu | grep -c ':{port} '");
        let settled = crate::within(Duration::from_secs(20), || {
            self.exec(vm, &["sh", "-c", &listens]).out.trim() == "2"
        });
        assert!(settled, "{vm} does not listen on {port}");
    }

    /// Lets a guest number who comes to a port by TCP, from 1.
    #[track_caller]
    pub fn serve_count(&self, vm: &str, port: u16) {
        self.leave_helper(vm, &format!("count {port}"));
        let listens = format!("netstat -lnt | grep -q ':{port} '");
        let settled = crate::within(Duration::from_secs(20), || {
            self.exec(vm, &["sh", "-c", &listens]).code == Some(0)
        });
        assert!(settled, "{vm} does not listen on {port}");
    }

    /// The next number from [`Lab::serve_count`] at a public port.
    #[track_caller]
    pub fn count(&self, public: u16) -> u64 {
        let mut stream = self.client.connect((HOST, public)).must("connect to the counter");
        let mut text = String::new();
        stream.read_to_string(&mut text).must("read a number");
        text.trim().parse().must("a number")
    }

    /// Brings the helper into a guest and lets it do something there until the guest ends.
    #[track_caller]
    pub fn leave_helper(&self, vm: &str, words: &str) {
        self.bring_helper(vm);
        self.sh(vm, &format!("setsid {HELPER} {words} </dev/null >/dev/null 2>&1 &"));
    }

    /// What tells one boot of a guest from another.
    #[track_caller]
    pub fn boot_id(&self, vm: &str) -> String {
        self.sh(vm, "cat /proc/sys/kernel/random/boot_id")
    }

    /// Puts the helper into a guest, unless it is there: what runs can not be replaced.
    #[track_caller]
    pub fn bring_helper(&self, vm: &str) {
        if self.exec(vm, &["test", "-e", HELPER]).code != Some(0) {
            self.copy(&self.programs.helper, &format!("{vm}:{HELPER}"));
        }
    }

    /// Copies from this machine.
    #[track_caller]
    pub fn copy(&self, from: &Path, to: &str) {
        self.tt(&["cp", &from.display().to_string(), to]).good();
    }

    /// What `tt verify` finds.
    #[track_caller]
    pub fn findings(&self) -> Vec<String> {
        let run = self.tt(&["--json", "verify"]);
        let report: Value = serde_json::from_str(&run.out).must(&format!("{run:?}"));
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        findings.iter().map(ToString::to_string).collect()
    }
}
