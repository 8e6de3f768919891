//! A guest that has nothing to do with what dies: its uptime and an open connection prove that it runs on.

use std::net::TcpStream;
use std::time::Duration;
use testkit::{HOST, Lab, is_alive};

/// What is known of the guest `by/w`.
pub struct Bystander {
    stream: TcpStream,
    boot_id: String,
    uptime: f64,
}

impl Bystander {
    /// Boots it.
    pub fn new(lab: &Lab) -> Self {
        lab.tt(&["env", "create", "by", "--vm", "w=micro,port=7"]).good();
        lab.serve_echo("by/w", 7);
        let stream = lab.client.connect((HOST, lab.port("by", "w", "7"))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bystander = Self { stream, boot_id: boot_id(lab), uptime: 0.0 };
        bystander.runs_on(lab);
        bystander
    }

    /// Fails the test unless the connection lives. Needs no daemon.
    #[track_caller]
    pub fn is_connected(&mut self) {
        assert!(is_alive(&mut self.stream), "the bystander's connection is lost");
    }

    /// Fails the test unless the guest was not interrupted.
    #[track_caller]
    pub fn runs_on(&mut self, lab: &Lab) {
        self.is_connected();
        // A new daemon has to find the guest's agent again.
        lab.reaches_phase("by", "ready", Duration::from_secs(30));
        assert_eq!(boot_id(lab), self.boot_id, "the bystander was booted again");
        let uptime = lab.sh("by/w", "cut -d ' ' -f 1 /proc/uptime").parse().unwrap();
        assert!(
            uptime > self.uptime,
            "the bystander's uptime went from {} to {uptime}",
            self.uptime
        );
        self.uptime = uptime;
    }
}

fn boot_id(lab: &Lab) -> String {
    lab.sh("by/w", "cat /proc/sys/kernel/random/boot_id")
}
