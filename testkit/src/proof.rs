//! Proof that nothing is left: not by the daemon's word alone, but by looking at the host.

use crate::remains::{cgroups, entries, machines, mounts, processes};
use crate::{Lab, eventually};
use std::path::Path;
use std::time::Duration;

/// How long the last of an Env may take to go.
const GOING: Duration = Duration::from_secs(20);

impl Lab {
    /// Fails the test unless `tt verify` finds nothing.
    #[track_caller]
    pub fn assert_clean(&self) {
        eventually("verify finds nothing", GOING, || {
            let findings = self.findings();
            if findings.is_empty() { None } else { Some(findings.join("\n")) }
        });
    }

    /// Fails the test unless the host is empty of Envs: no record, finding, machine, control group, namespace, link,
    /// published port or file of any Vm.
    #[track_caller]
    pub fn assert_empty(&self) {
        self.assert_clean();
        eventually("nothing is left", GOING, || {
            let left = self.left();
            if left.is_empty() { None } else { Some(left.join("\n")) }
        });
    }

    /// [`Lab::assert_empty`]; then ends the daemon, and fails the test unless all that it had for itself is gone too.
    #[track_caller]
    pub fn finish(mut self) {
        self.assert_empty();
        self.terminate();
        let mut left: Vec<String> = Vec::new();
        left.extend(mounts(self.dir()).iter().filter(|path| **path != self.data()).map(shown));
        left.extend(cgroups(self.dir()).iter().map(shown));
        left.extend(processes(self.dir()).into_iter().map(|(pid, line)| format!("{pid}: {line}")));
        left.extend(self.tables().into_iter().map(|table| format!("nft {table}")));
        assert!(left.is_empty(), "the daemon left: {}", left.join("\n"));
    }

    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = Vec::new();
        let envs = self.get("/v1/envs").map(|answer| answer.body["envs"].to_string());
        left.extend(envs.filter(|envs| envs != "[]").map(|envs| format!("records {envs}")));
        left.extend(machines(self.dir()).into_iter().map(|(pid, line)| format!("{pid}: {line}")));
        left.extend(cgroups(self.dir()).iter().filter(|path| is_vm(path)).map(shown));
        for (dir, name) in [(self.data(), "images"), (self.data(), "logs")] {
            left.extend(entries(&dir.join(name)).iter().filter(|path| is_vm(path)).map(shown));
        }
        for name in ["vm", "ram", "netns"] {
            left.extend(entries(&self.run_dir().join(name)).iter().filter(|p| is_vm(p)).map(shown));
        }
        let links = self.host.ip("-o link show");
        let edge = format!(": tt{}e", self.instance());
        let edges = links.lines().filter(|line| line.contains(&edge));
        left.extend(edges.map(str::to_owned));
        left.extend(self.published());
        left
    }

    /// The elements of the daemon's sets and maps, but for other hosts and links of others, which are no Env's.
    fn published(&self) -> Vec<String> {
        let list = |table: String| {
            let mut nft = std::process::Command::new("nft");
            let nft = nft.args(["list", "table"]).args(table.split(' '));
            let rules = self.host.run(|| crate::run::run(nft, b"")).good();
            let is_own = |set: &&str| !["peers {", "others {"].iter().any(|of| set.starts_with(of));
            let sets = rules.split("\tset ").filter(is_own);
            let elements = sets.flat_map(str::lines).filter(|line| line.contains("elements = {"));
            elements.map(|line| format!("{table}: {line}")).collect::<Vec<_>>()
        };
        self.tables().into_iter().flat_map(list).collect()
    }

    /// The daemon's tables of rules, as `nft` names them.
    fn tables(&self) -> Vec<String> {
        let mut nft = std::process::Command::new("nft");
        let tables = self.host.run(|| crate::run::run(nft.args(["list", "tables"]), b"")).good();
        let tables = tables.lines().filter_map(|line| line.strip_prefix("table "));
        let name = format!("tt_{}", self.instance());
        tables.filter(|table| table.ends_with(&name)).map(str::to_owned).collect()
    }
}

/// Whether a path is named after an id, alone or with an ending.
fn is_vm(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_digit())
        && !path.parent().is_some_and(|parent| parent.ends_with("tt"))
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}
