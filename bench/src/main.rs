//! Ratios of TT's times to those of the bare primitive, measured in one run: absolute times belong
//! to one machine, a ratio carries over. `cargo xtask bench [NAME..]` builds and runs it.

mod begin;
mod by_hand;
mod container;
mod create;
mod disks;
mod docker;
mod firecracker;
mod freeze;
mod list;
mod many;
mod mount;
mod net;
mod pause;
mod plane;
mod ports;
mod pulse;
mod table;

use std::process::ExitCode;
use table::Row;

/// A bench, by name.
type Bench = (&'static str, fn() -> Vec<Row>);

/// All benches, in the order in which they run: those that need a quiet machine first.
const BENCHES: [Bench; 14] = [
    ("create", create::one_guest),
    ("container", container::over_docker),
    ("firecracker", firecracker::one_guest),
    ("begin", begin::from_memory),
    ("pause", pause::silence_by_memory),
    ("ten", create::ten_guests),
    ("freeze", freeze::ten_gib),
    ("disks", disks::create_image),
    ("net", net::set_up),
    ("flow", net::throughput),
    ("connect", ports::connections_among_many),
    ("ports", ports::one_among_many),
    ("many", many::three_hundred_envs),
    ("list", list::ten_thousand_vms),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = wanted.iter().find(|name| !BENCHES.iter().any(|(known, _)| known == name)) {
        let known = BENCHES.map(|(name, _)| name).join(", ");
        table::say(&format!("there is no bench {name:?}; there are: {known}"));
        return ExitCode::from(2);
    }
    let mut rows = Vec::new();
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            table::say(&format!("bench {name} …"));
            rows.extend(bench());
        }
    }
    table::print(&rows);
    if rows.iter().all(Row::is_within) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
