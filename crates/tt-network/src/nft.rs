//! Names of tables, sets and links, and `nft`, which loads tables of rules as text (`rules.rs`). What
//! changes with an Env or a Vm is an element of a set or map and never comes here.

use crate::NetworkError;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

/// Name of the tables in an Env's namespace.
pub(crate) const ENV_TABLE: &str = "tt";
/// The bridge in an Env's namespace.
pub(crate) const BRIDGE: &str = "br0";
/// The inner end of an Env's edge.
pub(crate) const EDGE: &str = "edge0";

/// Map of the host's table: protocol and public port to address and inner port.
pub(crate) const PORTS: &str = "ports";
/// Set of the host's table: members that are reached at their own address.
pub(crate) const FLAT: &str = "flat";
/// Set of the host's table: the other hosts.
pub(crate) const PEERS: &str = "peers";
/// Set of the host's table: links to containers and machines that others keep on this host.
pub(crate) const OTHERS: &str = "others";
/// Set in the namespace: port of the bridge and the one hardware address behind it.
pub(crate) const TAPS: &str = "taps";
/// Set in the namespace: as [`TAPS`], for the hardware address that a question by DHCP names.
pub(crate) const ASKERS: &str = "askers";
/// Set in the namespace: the version of the rules.
pub(crate) const RULES: &str = "rules";
/// Map in the namespace: port of the bridge, hardware address, and the one IPv4 address behind it, to the chain that what
/// comes from there meets: [`FREE`], or [`CURBED`] by a limit or a blacklist.
pub(crate) const MEMBERS: &str = "members";
/// Set in the namespace: member, and an address that it can not reach.
pub(crate) const BLACKLIST: &str = "blacklist";
/// Set in the namespace that counts what reaches a member, by its port of the bridge.
pub(crate) const DELIVERED: &str = "delivered";
/// Set in the namespace that counts what a member's port was not allowed to send.
pub(crate) const BLOCKED: &str = "blocked";
/// Set in the namespace that counts what was too much, from or to a member's port.
pub(crate) const SLOWED: &str = "slowed";
/// Maps in the namespace: a member's port to the limit of what it sends, of what it receives.
pub(crate) const RATE_UP: &str = "rate_up";
pub(crate) const RATE_DOWN: &str = "rate_down";
/// Map in the namespace: a member that may not connect to everywhere, to the chain that its connections meet: [`DENIED`] if
/// it may open none, [`LIMITED`] if some.
pub(crate) const OUT: &str = "out_rules";
/// Sets in the namespace: member, and a range of destinations that it may connect to, at all ports
/// and at one.
pub(crate) const REACHABLE: &str = "reachable";
pub(crate) const ALLOWED: &str = "allowed";
/// Maps in the namespace: member and an address that the resolver has told it, to the rule that lets it
/// connect there, at all ports and at one; for as long as the answer lives.
pub(crate) const NAMED: &str = "named";
pub(crate) const NAMED_PORTS: &str = "named_ports";
/// Set in the namespace: member and the rules with names that it has.
pub(crate) const NAME_RULES: &str = "name_rules";
/// Set in the namespace that counts what of a member's may not leave.
pub(crate) const REFUSED: &str = "refused";
/// Set of the host's table that counts what of a member's the host stopped.
pub(crate) const GUESTS: &str = "guests";
/// Chains that maps lead to.
pub(crate) const FREE: &str = "free";
pub(crate) const CURBED: &str = "curbed";
pub(crate) const DENIED: &str = "denied";
pub(crate) const LIMITED: &str = "limited";

/// Set in the namespace: port of the bridge, and the addresses that a member may say are its own.
pub(crate) const TARGETS: &str = "targets";
/// As [`MEMBERS`], for both IPv6 addresses of a member.
pub(crate) const MEMBERS_SIX: &str = "members6";
/// Set in the namespace: port of the bridge, and an address that its member can not reach.
pub(crate) const BLACKLIST_SIX: &str = "blacklist6";
/// Sets in the namespace: addresses of members that may connect to some destinations only, and of those that may to none.
pub(crate) const LIMITED_SIX: &str = "limited6";
pub(crate) const NAMED_SIX: &str = "named6";
pub(crate) const NAMED_PORTS_SIX: &str = "named_ports6";
pub(crate) const NAME_RULES_SIX: &str = "name_rules6";
pub(crate) const DENY_OUT_SIX: &str = "deny_out6";
/// As those without the digit, for IPv6.
pub(crate) const REACHABLE_SIX: &str = "reachable6";
pub(crate) const ALLOWED_SIX: &str = "allowed6";
pub(crate) const REFUSED_SIX: &str = "refused6";
pub(crate) const GUESTS_SIX: &str = "guests6";

/// `nft` at work on a table.
#[derive(Debug)]
pub(crate) struct Loading {
    child: Child,
    action: &'static str,
    table: String,
}

/// Starts `nft` on `rules` in the calling thread's namespace.
pub(crate) fn load(table: &str, rules: &str) -> Result<Loading, NetworkError> {
    run("load", table, &["-f", "-"], rules)
}

/// Removes a table with everything in it.
pub(crate) fn remove(table: &str) -> Result<(), NetworkError> {
    // Naming it first makes it, so that removing an absent one succeeds.
    let rules = format!("table inet {table}\ndelete table inet {table}\n");
    run("remove", table, &["-f", "-"], &rules)?.finish()
}

impl Loading {
    /// Waits for its end.
    pub(crate) fn finish(self) -> Result<(), NetworkError> {
        let output =
            self.child.wait_with_output().map_err(|source| NetworkError::RunNft { source })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(NetworkError::LoadRules {
            action: self.action,
            table: self.table,
            reason: reason.trim_end().to_owned(),
        })
    }
}

fn run(
    action: &'static str,
    table: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Loading, NetworkError> {
    let fail = |source| NetworkError::RunNft { source };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    // The text is smaller than a pipe's buffer, so this never waits for `nft`; its early end is
    // reported with its reason by `finish`.
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    match written {
        Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(fail(error)),
        _ => Ok(Loading { child, action, table: table.to_owned() }),
    }
}
