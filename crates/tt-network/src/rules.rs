//! The tables of rules as text. The rules are constant: what changes with an Env or a Vm is an element
//! of a set or map.

use crate::nft::{FLAT, GUESTS, GUESTS_SIX, OTHERS, PEERS, PORTS};
use ipnet::Ipv4Net;
use tt_model::six::NETWORK;

mod env;
mod six;

pub(crate) use env::{env_rules, env_rules_anew, hash, version};
pub(crate) use six::NEVER as NEVER_SIX;

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
	set {GUESTS_SIX} {{ type ipv6_addr; counter; }}
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
		oifname != "{edges}*" ip6 saddr {NETWORK} masquerade
	}}
}}
"#
    )
}

/// What passes. What is established has passed by the rules behind; those before it are about what may change meanwhile.
fn host_filter(side: &HostSide<'_>) -> String {
    let HostSide { table, edges, tunnel, tunnel_id, tunnel_port, block } = side;
    format!(
        r#"table inet {table} {{
	chain stop {{
		ip saddr @{GUESTS} drop
		ip6 saddr @{GUESTS_SIX} drop
		drop
	}}
	chain forged {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{edges}*" fib saddr . iif oif missing goto stop
		iifname "{tunnel}" ip saddr {block} drop
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		oifname "{tunnel}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		iifname "{edges}*" goto from_guests
		oifname "{edges}*" ct state established,related accept
		oifname "{edges}*" ct status dnat accept
		oifname "{edges}*" ip daddr @{FLAT} accept
		oifname "{edges}*" drop
		iifname "{tunnel}" drop
	}}
	chain from_guests {{
		oifname "{edges}*" goto to_guests
		oifname "{tunnel}" goto to_peers
		oifname @{OTHERS} goto stop
		udp dport {tunnel_port} ip daddr @{PEERS} goto stop
		ct state established accept
		ct state invalid goto stop
		ip daddr 169.254.0.0/16 goto stop
		ip saddr {block} accept
		ip6 daddr {{ {NEVER_SIX} }} goto stop
		ip6 saddr {NETWORK} accept
		goto stop
	}}
	chain to_guests {{
		ct state invalid goto stop
		ip saddr @{FLAT} ip daddr @{FLAT} accept
		goto stop
	}}
	chain to_peers {{
		ct state invalid goto stop
		ip saddr @{FLAT} accept
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
}
