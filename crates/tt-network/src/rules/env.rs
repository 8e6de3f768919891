//! The tables of an Env's namespace as text, the same for all Envs.

use super::six;
use crate::nft::{
    ALLOWED, ASKERS, BLACKLIST, BLOCKED, BRIDGE, DELIVERED, DENY_OUT, EDGE, ENV_TABLE, LIMITED,
    MEMBERS, NAME_RULES, NAMED, NAMED_PORTS, RATE_DOWN, RATE_UP, REACHABLE, REFUSED, RULES, SLOWED,
    TAPS,
};
use std::sync::LazyLock;

/// Connections that a member may have open to the outside: a busy server's, and a small part of the
/// host's table, where the kernel counts them too.
const CONNECTIONS_PER_VM_MAX: u32 = 4096;
/// Frames to several receivers that a member may send in a second, and at once: each costs all.
const FLOOD_RATE: u32 = 200;
const FLOOD_BURST: u32 = 400;
/// Questions for names by UDP that a member may ask in a second, and at once: the resolver's socket is shared by the
/// members of an Env, and holds 277 of the smallest ones by default.
const QUESTIONS_RATE: u32 = 500;
const QUESTIONS_BURST: u32 = 64;
/// Connections that the members of an Env together may have open to the outside. The kernel counts
/// them in the host's table too, which holds 262,144 by default and must not be one guest's to fill.
const CONNECTIONS_MAX: u32 = 16_384;

/// The tables of an Env's namespace; the same for all Envs.
///
/// What is counted of a port is forgotten after a minute: of members that are gone nothing may be left that fills a set, for
/// a full one counts nobody.
///
/// The bridge lets a port send from its member's two addresses only, ARP included. Frames for
/// reserved group addresses would enter the port's own stack beside the bridge, so they are dropped
/// where they do.
pub(crate) fn env_rules() -> String {
    let rules = constant_env_rules();
    let version = hash(&rules);
    format!("{rules}add element bridge {ENV_TABLE} {RULES} {{ 0x{version:08x} }}\n")
}

/// As [`env_rules`], in place of what is there, at one stroke: a member whose elements are not put back sends nothing. In a
/// new namespace it would cost the kernel's wait for all readers of tables that never were (10 ms here).
pub(crate) fn env_rules_anew() -> String {
    let remove = |family| format!("table {family} {ENV_TABLE}\ndelete table {family} {ENV_TABLE}\n");
    format!("{}{}{}", remove("bridge"), remove("inet"), env_rules())
}

/// Tells the rules of one version of this program from those of another one.
pub(crate) fn version() -> u32 {
    static VERSION: LazyLock<u32> = LazyLock::new(|| hash(&constant_env_rules()));
    *VERSION
}

/// 32 bits of FNV-1a: the same in every build.
pub(crate) fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn constant_env_rules() -> String {
    format!("{}{}{}", bridge_sets(), bridge_rules(), edge_rules())
}

/// What the rules between members are about.
fn bridge_sets() -> String {
    format!(
        r#"table bridge {ENV_TABLE} {{
	set {RULES} {{
		type mark
	}}
	set {ASKERS} {{
		typeof iifname . @th,288,48
	}}
	set {TAPS} {{
		type ifname . ether_addr
	}}
	set {MEMBERS} {{
		type ifname . ether_addr . ipv4_addr
		counter
	}}
	set {BLACKLIST} {{
		type ipv4_addr . ipv4_addr
	}}
	set {DELIVERED} {{
		type ifname
		counter
	}}
	set {BLOCKED} {{
		type ifname
		counter
	}}
	set {SLOWED} {{
		type ifname
		counter
	}}
	set floods {{
		type ifname
		size 4096
		flags dynamic,timeout
		timeout 1m
	}}
	set questions {{
		type ifname
		size 4096
		flags dynamic,timeout
		timeout 1m
	}}
	map {RATE_UP} {{
		type ifname : limit
	}}
	map {RATE_DOWN} {{
		type ifname : limit
	}}
{six}}}
"#,
        six = six::bridge_sets()
    )
}

/// Between the members.
fn bridge_rules() -> String {
    format!(
        r#"table bridge {ENV_TABLE} {{
	chain block {{
		iifname @{BLOCKED} drop
		drop
	}}
	chain slow {{
		iifname @{SLOWED} drop
		drop
	}}
	chain slow_down {{
		oifname @{SLOWED} drop
		drop
	}}
	chain from_members {{
		type filter hook prerouting priority filter; policy drop;
		iifname . ether saddr != @{TAPS} goto block
		limit name iifname map @{RATE_UP} goto slow
		ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 add @floods {{ iifname limit rate over {FLOOD_RATE}/second burst {FLOOD_BURST} packets }} goto slow
		ether type ip ip daddr 127.0.0.0/8 goto block
		ether type ip ip saddr . ip daddr @{BLACKLIST} goto block
		ether type ip udp dport 67 ip frag-off & 0x3fff != 0 goto block
		ether type ip udp dport 67 iifname . @th,288,48 != @{ASKERS} goto block
		ether type ip iifname . ether saddr . ip saddr @{MEMBERS} accept
		ether type ip6 goto six
		ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ether type arp iifname . ether saddr . arp saddr ip != @{MEMBERS} arp saddr ip != 0.0.0.0 goto block
		ether type arp iifname . arp saddr ether . arp saddr ip @{MEMBERS} accept
		ether type arp arp saddr ip 0.0.0.0 iifname . arp saddr ether @{TAPS} accept
		goto block
	}}
	chain between_members {{
		type filter hook forward priority filter; policy accept;
		ether type ip udp dport {{ 67, 68 }} goto block
		ether type ip6 icmpv6 type 133 drop
	}}
	chain to_members {{
		type filter hook postrouting priority filter; policy accept;
		limit name oifname map @{RATE_DOWN} goto slow_down
		oifname @{DELIVERED} accept
	}}
	chain beside_bridge {{
		type filter hook input priority filter; policy accept;
		ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto block
		ether type ip udp dport 53 add @questions {{ iifname limit rate over {QUESTIONS_RATE}/second burst {QUESTIONS_BURST} packets }} goto slow
	}}
{six}}}
"#,
        six = six::bridge_chains()
    )
}

/// Between the members and the rest of the world. A connection that was let out under a name is marked with
/// the rule that named it: it goes on when the answer is out of date, and ends with the rule. What members may ask their gateway is not tracked:
/// nobody fills the namespace's table with it, nor with what is dropped. Connections that the host
/// opens to them from in here are.
fn edge_rules() -> String {
    format!("{}{}", edge_sets(), edge_chains())
}

fn edge_sets() -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	set {DENY_OUT} {{
		type ipv4_addr
	}}
	set {LIMITED} {{
		type ipv4_addr
	}}
	set {ALLOWED} {{
		type ipv4_addr . ipv4_addr . inet_proto . inet_service
		flags interval
	}}
	set {REACHABLE} {{
		type ipv4_addr . ipv4_addr
		flags interval
	}}
	map {NAMED} {{
		type ipv4_addr . ipv4_addr : mark
		flags timeout
	}}
	map {NAMED_PORTS} {{
		type ipv4_addr . ipv4_addr . inet_proto . inet_service : mark
		flags timeout
	}}
	set {NAME_RULES} {{
		type ipv4_addr . mark
	}}
	set {REFUSED} {{
		type ipv4_addr
		counter
	}}
	set connections {{
		type ipv4_addr
		size 4096
		flags dynamic
	}}
{six}}}
"#,
        six = six::edge_sets()
    )
}

fn edge_chains() -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	chain refuse {{
		ip saddr @{REFUSED} drop
		meta nfproto ipv6 goto refuse_six
		drop
	}}
	chain at_gateway {{
		fib daddr type {{ local, broadcast, anycast }} notrack
	}}
	chain by_rule {{
		meta l4proto {{ tcp, udp }} ip saddr . ip daddr . meta l4proto . th dport @{ALLOWED} return
		ip saddr . ct mark @{NAME_RULES} return
		ct mark set ip saddr . ip daddr map @{NAMED}
		ip saddr . ct mark @{NAME_RULES} return
		meta l4proto {{ tcp, udp }} ct mark set ip saddr . ip daddr . meta l4proto . th dport map @{NAMED_PORTS}
		ip saddr . ct mark @{NAME_RULES} return
		goto refuse
	}}
	chain asked {{
		type filter hook prerouting priority raw; policy accept;
		iifname != "{BRIDGE}" accept
		fib daddr oifname "{BRIDGE}" notrack
		udp dport {{ 53, 67 }} goto at_gateway
		tcp dport 53 goto at_gateway
		icmp type echo-request goto at_gateway
		icmpv6 type echo-request goto at_gateway
	}}
	chain answered {{
		type filter hook output priority raw; policy accept;
		oifname != "{BRIDGE}" accept
		udp sport {{ 53, 67 }} notrack
		tcp sport 53 notrack
		icmp type echo-reply notrack
		icmpv6 type echo-reply notrack
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "{BRIDGE}" icmp type echo-request accept
		iifname "{BRIDGE}" icmpv6 type {{ 128, 133, 135, 136 }} accept
		iifname "{BRIDGE}" udp dport {{ 53, 67 }} accept
		iifname "{BRIDGE}" tcp dport 53 accept
		iifname "{BRIDGE}" ct state established,related accept
		iifname "{BRIDGE}" goto refuse
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname "{EDGE}" oifname "{BRIDGE}" accept
		iifname "{BRIDGE}" oifname "{BRIDGE}" meta nfproto ipv4 accept
		iifname != "{BRIDGE}" drop
		ct state invalid,untracked goto refuse
		meta nfproto ipv6 jump out_six
		ip saddr @{DENY_OUT} ct direction original goto refuse
		ip saddr @{LIMITED} ip saddr . ip daddr != @{REACHABLE} ct direction original jump by_rule
		ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_PER_VM_MAX} }} goto refuse
		ct state new ct count over {CONNECTIONS_MAX} goto refuse
		oifname "{EDGE}" accept
	}}
{six}}}
"#,
        six = six::edge_chains(CONNECTIONS_PER_VM_MAX)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_an_env() {
        insta::assert_snapshot!(env_rules());
    }
}
