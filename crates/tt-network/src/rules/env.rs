//! The tables of an Env's namespace as text, the same for all Envs.

use super::six;
use crate::nft::{
    ALLOWED, ASKERS, BLACKLIST, BLOCKED, BRIDGE, CURBED, DELIVERED, DENIED, EDGE, ENV_TABLE, FREE,
    LIMITED, MEMBERS, NAME_RULES, NAMED, NAMED_PORTS, OUT, RATE_DOWN, RATE_UP, REACHABLE, REFUSED,
    RULES, SLOWED, TAPS,
};
use ipnet::Ipv4Net;
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

/// The tables of an Env's namespace; the same for all Envs of a host, whose members have their addresses in `range`.
///
/// What is counted of a port is forgotten after a minute: of members that are gone nothing may be left that fills a set (65,535
/// elements), for a full one counts nobody. No set says how large it is to be: the kernel would take that memory at once, 64 KiB
/// for 4096 elements, in each Env.
///
/// The bridge lets a port send from its member's two addresses only, ARP included. Frames for
/// reserved group addresses would enter the port's own stack beside the bridge, so they are dropped
/// where they do.
pub(crate) fn env_rules(range: Ipv4Net) -> String {
    let (rules, version) = (without_version(range), version(range));
    format!("{rules}add element bridge {ENV_TABLE} {RULES} {{ 0x{version:08x} }}\n")
}

/// As [`env_rules`], in place of what is there, at one stroke: a member whose elements are not put back sends nothing. In a
/// new namespace it would cost the kernel's wait for all readers of tables that never were (10 ms here).
pub(crate) fn env_rules_anew(range: Ipv4Net) -> String {
    let remove =
        |family| format!("table {family} {ENV_TABLE}\ndelete table {family} {ENV_TABLE}\n");
    format!("{}{}{}", remove("bridge"), remove("inet"), env_rules(range))
}

/// Tells the rules of one version of this program, and of one range, from those of another one.
pub(crate) fn version(range: Ipv4Net) -> u32 {
    static PROGRAM: LazyLock<u32> = LazyLock::new(|| hash(&without_version(Ipv4Net::default())));
    *PROGRAM ^ hash(&range.to_string())
}

/// 32 bits of FNV-1a: the same in every build.
pub(crate) fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn without_version(range: Ipv4Net) -> String {
    [bridge_sets(), bridge_rules(), edge_sets(), way_out(), at_gateway(range)].concat()
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
	map {MEMBERS} {{
		type ifname . ether_addr . ipv4_addr : verdict
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
		flags dynamic,timeout
		timeout 1m
	}}
	set questions {{
		type ifname
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
	chain {FREE} {{
		accept
	}}
	chain {CURBED} {{
		limit name iifname map @{RATE_UP} goto slow
		ip saddr . ip daddr @{BLACKLIST} goto block
		accept
	}}
	chain from_members {{
		type filter hook prerouting priority filter; policy drop;
		ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 add @floods {{ iifname limit rate over {FLOOD_RATE}/second burst {FLOOD_BURST} packets }} goto slow
		ether type ip goto four
		iifname . ether saddr != @{TAPS} goto block
		limit name iifname map @{RATE_UP} goto slow
		ether type ip6 goto six
		ether type arp iifname . arp saddr ether . arp saddr ip vmap @{MEMBERS}
		ether type arp arp saddr ip 0.0.0.0 iifname . arp saddr ether @{TAPS} accept
		goto block
	}}
	chain four {{
		ip daddr 127.0.0.0/8 goto block
		udp dport 67 jump question
		iifname . ether saddr . ip saddr vmap @{MEMBERS}
		udp dport 67 ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 iifname . ether saddr @{TAPS} accept
		goto block
	}}
	chain question {{
		ip frag-off & 0x3fff != 0 goto block
		iifname . @th,288,48 != @{ASKERS} goto block
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

/// What the rules between members and the rest of the world are about.
fn edge_sets() -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	map {OUT} {{
		type ipv4_addr : verdict
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
		flags dynamic
	}}
{six}}}
"#,
        six = six::edge_sets()
    )
}

/// What members may ask their gateway is not tracked: nobody fills the namespace's table with it, nor with what is dropped.
/// Connections that the host opens to them from in here are. Most packets are of TCP and to the outside, so they are let
/// go first.
fn at_gateway(range: Ipv4Net) -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	chain at_gateway {{
		fib daddr type {{ local, broadcast, anycast }} notrack
	}}
	chain asked {{
		type filter hook prerouting priority raw; policy accept;
		iifname != "{BRIDGE}" accept
		ip daddr {range} fib daddr oifname "{BRIDGE}" notrack
		meta nfproto ipv6 fib daddr oifname "{BRIDGE}" notrack
		tcp dport != 53 accept
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
}}
"#
    )
}

/// What of the members leads out, most of it of connections that are let out already. One that was let out under a name is
/// marked with the rule that named it: it goes on when the answer is out of date, and ends with the rule.
fn way_out() -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	chain refuse {{
		ip saddr @{REFUSED} drop
		meta nfproto ipv6 goto refuse_six
		drop
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
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname "{EDGE}" oifname "{BRIDGE}" accept
		iifname != "{BRIDGE}" drop
		oifname "{EDGE}" goto out
		oifname "{BRIDGE}" meta nfproto ipv4 accept
		goto refuse
	}}
	chain out {{
		ct state invalid,untracked goto refuse
		meta nfproto ipv6 jump out_six
		ip saddr vmap @{OUT}
		goto counted
	}}
	chain {DENIED} {{
		ct direction original goto refuse
		accept
	}}
	chain {LIMITED} {{
		ip saddr . ip daddr != @{REACHABLE} ct direction original jump by_rule
		goto counted
	}}
	chain counted {{
		ct state != new accept
		add @connections {{ ip saddr ct count over {CONNECTIONS_PER_VM_MAX} }} goto refuse
		ct count over {CONNECTIONS_MAX} goto refuse
		accept
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
        insta::assert_snapshot!(env_rules_anew(Ipv4Net::new_assert([10, 0, 0, 0].into(), 8)));
    }
}
