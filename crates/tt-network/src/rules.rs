//! The tables of rules as text. The rules are constant: what changes with an Env or a Vm is an element
//! of a set or map.

use crate::nft::{
    ALLOWED, ASKERS, BLACKLIST, BLOCKED, BRIDGE, DELIVERED, DENY_OUT, EDGE, ENV_TABLE, FLAT,
    GUESTS, LIMITED, MEMBERS, OTHERS, PEERS, PORTS, RATE_DOWN, RATE_UP, REACHABLE, REFUSED, RULES,
    SLOWED, TAPS,
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

/// What the host's table is made for.
#[derive(Clone, Debug)]
pub(crate) struct HostSide<'a> {
    /// Name of the table.
    pub(crate) table: &'a str,
    /// How the names of all edges begin.
    pub(crate) edges: &'a str,
    /// Name of the tunnel to other hosts.
    pub(crate) tunnel: &'a str,
    /// Its id and UDP port.
    pub(crate) tunnel_id: u32,
    pub(crate) tunnel_port: u16,
    /// Where this host's members have their addresses.
    pub(crate) block: Ipv4Net,
}

/// The host's table. Loading it again replaces the rules at one stroke and keeps the elements.
///
/// Guests reach the outside with the host's address, and neither the host itself, nor each other, nor
/// containers and machines that others keep on it, nor the link-local addresses where clouds keep
/// secrets. Members with a flat address reach each other,
/// through the tunnel those of other hosts; what comes out of it leads to such members only, and
/// nobody but the other hosts can put anything into it.
pub(crate) fn host_rules(side: &HostSide<'_>) -> String {
    format!("{}{}{}", host_sets(side.table), host_translation(side), host_filter(side))
}

/// What changes with Vms and other hosts.
fn host_sets(table: &str) -> String {
    format!(
        r#"table inet {table}
flush table inet {table}
table inet {table} {{
	map {PORTS} {{
		type inet_proto . inet_service : ipv4_addr . inet_service
	}}
	set {FLAT} {{ type ipv4_addr; }}
	set {PEERS} {{ type ipv4_addr; }}
	set {GUESTS} {{ type ipv4_addr; counter; }}
	set {OTHERS} {{ type ifname; }}
}}
"#
    )
}

/// Whose address is written on what comes and goes.
fn host_translation(side: &HostSide<'_>) -> String {
    let HostSide { table, edges, tunnel, block, .. } = side;
    format!(
        r#"table inet {table} {{
	chain from_outside {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "{tunnel}" return
		iifname != "{edges}*" fib daddr type local dnat ip to meta l4proto . th dport map @{PORTS};
	}}
	chain from_host {{
		type nat hook output priority -100; policy accept;
		fib daddr type local dnat ip to meta l4proto . th dport map @{PORTS};
	}}
	chain leave {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{edges}*" ip saddr 127.0.0.0/8 masquerade
		oifname "{tunnel}" return
		oifname != "{edges}*" ip saddr {block} masquerade
	}}
}}
"#
    )
}

/// What passes.
fn host_filter(side: &HostSide<'_>) -> String {
    let HostSide { table, edges, tunnel, tunnel_id, tunnel_port, block } = side;
    format!(
        r#"table inet {table} {{
	chain stop {{
		ip saddr @{GUESTS} drop
		drop
	}}
	chain forged {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{edges}*" fib saddr . iif oif missing goto stop
		iifname "{tunnel}" ip saddr {block} drop
	}}
	chain fit {{
		type filter hook forward priority mangle; policy accept;
		oifname "{tunnel}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{edges}*" goto from_guests
		oifname "{edges}*" ct state established,related accept
		oifname "{edges}*" ct status dnat accept
		oifname "{edges}*" ip daddr @{FLAT} accept
		oifname "{edges}*" drop
		iifname "{tunnel}" drop
	}}
	chain from_guests {{
		ct state invalid goto stop
		oifname "{edges}*" ip saddr @{FLAT} ip daddr @{FLAT} accept
		oifname "{edges}*" goto stop
		oifname "{tunnel}" ip saddr @{FLAT} accept
		oifname "{tunnel}" goto stop
		oifname @{OTHERS} goto stop
		ip daddr 169.254.0.0/16 goto stop
		ip daddr @{PEERS} udp dport {tunnel_port} goto stop
		ip saddr {block} accept
		goto stop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{edges}*" ct state established,related accept
		iifname "{edges}*" goto stop
		iifname "{tunnel}" ct state established,related accept
		iifname "{tunnel}" drop
		udp dport {tunnel_port} @th,96,24 {tunnel_id} ip saddr != @{PEERS} drop
	}}
}}
"#
    )
}

/// The tables of an Env's namespace; the same for all Envs.
///
/// The bridge lets a port send from its member's two addresses only, ARP included. Frames for
/// reserved group addresses would enter the port's own stack beside the bridge, so they are dropped
/// where they do.
///
/// Loading them again replaces rules and elements at one stroke: a member whose elements are not put
/// back sends nothing.
pub(crate) fn env_rules() -> String {
    let rules = constant_env_rules();
    let version = hash(&rules);
    format!("{rules}add element bridge {ENV_TABLE} {RULES} {{ 0x{version:08x} }}\n")
}

/// Tells the rules of one version of this program from those of another one.
pub(crate) fn version() -> u32 {
    static VERSION: LazyLock<u32> = LazyLock::new(|| hash(&constant_env_rules()));
    *VERSION
}

/// 32 bits of FNV-1a: the same in every build.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn constant_env_rules() -> String {
    format!("{}{}{}", bridge_sets(), bridge_rules(), edge_rules())
}

/// What the rules between members are about.
fn bridge_sets() -> String {
    format!(
        r#"table bridge {ENV_TABLE}
delete table bridge {ENV_TABLE}
table bridge {ENV_TABLE} {{
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
		flags dynamic
	}}
	set questions {{
		type ifname
		size 4096
		flags dynamic
	}}
	map {RATE_UP} {{
		type ifname : limit
	}}
	map {RATE_DOWN} {{
		type ifname : limit
	}}
}}
"#
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
		ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ether type arp iifname . ether saddr . arp saddr ip != @{MEMBERS} arp saddr ip != 0.0.0.0 goto block
		ether type arp iifname . arp saddr ether . arp saddr ip @{MEMBERS} accept
		ether type arp arp saddr ip 0.0.0.0 iifname . arp saddr ether @{TAPS} accept
		goto block
	}}
	chain between_members {{
		type filter hook forward priority filter; policy accept;
		ether type ip udp dport {{ 67, 68 }} goto block
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
}}
"#
    )
}

/// Between the members and the rest of the world. What members may ask their gateway is not tracked:
/// nobody fills the namespace's table with it, nor with what is dropped. Connections that the host
/// opens to them from in here are.
fn edge_rules() -> String {
    format!("{}{}", edge_sets(), edge_chains())
}

fn edge_sets() -> String {
    format!(
        r#"table inet {ENV_TABLE}
delete table inet {ENV_TABLE}
table inet {ENV_TABLE} {{
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
	set {REFUSED} {{
		type ipv4_addr
		counter
	}}
	set connections {{
		type ipv4_addr
		size 4096
		flags dynamic
	}}
}}
"#
    )
}

fn edge_chains() -> String {
    format!(
        r#"table inet {ENV_TABLE} {{
	chain refuse {{
		ip saddr @{REFUSED} drop
		drop
	}}
	chain at_gateway {{
		fib daddr type {{ local, broadcast }} notrack
	}}
	chain by_port {{
		meta l4proto {{ tcp, udp }} ip saddr . ip daddr . meta l4proto . th dport @{ALLOWED} return
		goto refuse
	}}
	chain asked {{
		type filter hook prerouting priority raw; policy accept;
		iifname != "{BRIDGE}" accept
		fib daddr oifname "{BRIDGE}" notrack
		udp dport {{ 53, 67 }} goto at_gateway
		tcp dport 53 goto at_gateway
		icmp type echo-request goto at_gateway
	}}
	chain answered {{
		type filter hook output priority raw; policy accept;
		oifname != "{BRIDGE}" accept
		udp sport {{ 53, 67 }} notrack
		tcp sport 53 notrack
		icmp type echo-reply notrack
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "{BRIDGE}" icmp type echo-request accept
		iifname "{BRIDGE}" udp dport {{ 53, 67 }} accept
		iifname "{BRIDGE}" tcp dport 53 accept
		iifname "{BRIDGE}" ct state established,related accept
		iifname "{BRIDGE}" goto refuse
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname "{EDGE}" oifname "{BRIDGE}" accept
		iifname "{BRIDGE}" oifname "{BRIDGE}" accept
		iifname != "{BRIDGE}" drop
		ct state invalid,untracked goto refuse
		ip saddr @{DENY_OUT} ct direction original goto refuse
		ip saddr @{LIMITED} ip saddr . ip daddr != @{REACHABLE} ct direction original jump by_port
		ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_PER_VM_MAX} }} goto refuse
		ct state new ct count over {CONNECTIONS_MAX} goto refuse
		oifname "{EDGE}" accept
	}}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_host() {
        let block = "10.7.0.0/16".parse().unwrap();
        insta::assert_snapshot!(host_rules(&HostSide {
            table: "tt_00ab",
            edges: "tt00abe",
            tunnel: "tt00abv",
            tunnel_id: 29_812,
            tunnel_port: 4789,
            block,
        }));
    }

    #[test]
    fn rules_of_an_env() {
        insta::assert_snapshot!(env_rules());
    }
}
