//! The rules for IPv6 in an Env's namespace as text: what stands beside those for IPv4 in the tables of `env.rs`.
//!
//! A member sends from its own two addresses only, the one that is derived from its IPv4 address and the one of its
//! link. It says of nobody else where he is (RFC 4861), is no router and lends no addresses. It sends TCP, UDP and the
//! part of ICMP that is named here: nothing in parts, and no headers between, for behind those no rule could look
//! for a port.

use crate::nft::{
    ALLOWED_SIX, ASKERS, BLACKLIST_SIX, BLOCKED, DENY_OUT_SIX, LIMITED_SIX, MEMBERS_SIX,
    NAME_RULES_SIX, NAMED_PORTS_SIX, NAMED_SIX, REACHABLE_SIX, REFUSED_SIX, TARGETS,
};

/// Where no guest gets by IPv6: other Envs and ends of edges (`tt_model::six::SITE`), its host's links, where clouds keep
/// secrets, and what stands for addresses of IPv4 (RFC 4291 2.5.5, RFC 6052, RFC 8215, RFC 4380, RFC 3056), for which a
/// guest has IPv4, with rules of its own. The Env refuses it at once, its host once more.
pub(crate) const NEVER: &str = "fd74:7465:6e76::/48, fe80::/10, fd00:ec2::/32, fd20:ce::/32, \
    fd00:c1::/32, fd00:42::/32, fd00:a9fe::/32, ::/96, ::ffff:0:0/96, \
    64:ff9b::/96, 64:ff9b:1::/48, 2001::/32, 2002::/16";

/// Sets of the bridge's table.
pub(super) fn bridge_sets() -> String {
    format!(
        "	set {TARGETS} {{
		typeof iifname . @th,64,128
	}}
	set {MEMBERS_SIX} {{
		type ifname . ether_addr . ipv6_addr
		counter
	}}
	set {BLACKLIST_SIX} {{
		type ifname . ipv6_addr
	}}
"
    )
}

/// Chains of the bridge's table: from members. What a guest's kernel says of groups that it is in (MLD) is of no use
/// here and no offence.
pub(super) fn bridge_chains() -> String {
    format!(
        "	chain six {{
		ip6 nexthdr 0 ip6 daddr ff02::16 drop
		ip6 nexthdr != {{ tcp, udp, icmpv6 }} goto block
		ip6 daddr {{ ::, ::1, ::ffff:0:0/96 }} goto block
		iifname . ip6 daddr @{BLACKLIST_SIX} goto block
		ip6 nexthdr icmpv6 goto six_icmp
		udp dport {{ 546, 547 }} goto block
		iifname . ether saddr . ip6 saddr @{MEMBERS_SIX} accept
		goto block
	}}
	chain six_icmp {{
		icmpv6 type {{ 1, 2, 3, 4, 128, 129 }} goto six_own
		ip6 hoplimit != 255 goto block
		icmpv6 code != 0 goto block
		icmpv6 type 133 goto six_router
		ip6 length > 32 goto block
		ip6 length 32 @th,192,8 {{ 1, 2 }} iifname . @th,208,48 != @{ASKERS} goto block
		icmpv6 type 135 ip6 saddr :: iifname . @th,64,128 @{TARGETS} accept
		icmpv6 type 135 goto six_own
		icmpv6 type 136 iifname . @th,64,128 @{TARGETS} goto six_own
		goto block
	}}
	chain six_router {{
		ether daddr != 33:33:00:00:00:02 goto block
		ip6 daddr != ff02::2 goto block
		ip6 length {{ 8, 16 }} ip6 saddr :: accept
		ip6 length 16 iifname . @th,80,48 != @{ASKERS} goto block
		ip6 length {{ 8, 16 }} goto six_own
		goto block
	}}
	chain six_own {{
		iifname . ether saddr . ip6 saddr @{MEMBERS_SIX} accept
		iifname @{BLOCKED} drop
		drop
	}}
"
    )
}

/// Sets of the table at the edge.
pub(super) fn edge_sets() -> String {
    format!(
        "	set {DENY_OUT_SIX} {{
		type ipv6_addr
	}}
	set {LIMITED_SIX} {{
		type ipv6_addr
	}}
	set {ALLOWED_SIX} {{
		type ipv6_addr . ipv6_addr . inet_proto . inet_service
		flags interval
	}}
	set {REACHABLE_SIX} {{
		type ipv6_addr . ipv6_addr
		flags interval
	}}
	map {NAMED_SIX} {{
		type ipv6_addr . ipv6_addr : mark
		flags timeout
	}}
	map {NAMED_PORTS_SIX} {{
		type ipv6_addr . ipv6_addr . inet_proto . inet_service : mark
		flags timeout
	}}
	set {NAME_RULES_SIX} {{
		type ipv6_addr . mark
	}}
	set {REFUSED_SIX} {{
		type ipv6_addr
		counter
	}}
	set connections6 {{
		type ipv6_addr
		flags dynamic
	}}
"
    )
}

/// Chains of the table at the edge: as for IPv4, but that a guest is told at once, for it goes on by IPv4 then.
pub(super) fn edge_chains(connections_max: u32) -> String {
    format!(
        "	chain refuse_six {{
		ip6 saddr @{REFUSED_SIX} reject with icmpv6 type admin-prohibited
		drop
	}}
	chain by_rule_six {{
		meta l4proto {{ tcp, udp }} ip6 saddr . ip6 daddr . meta l4proto . th dport @{ALLOWED_SIX} return
		ip6 saddr . ct mark @{NAME_RULES_SIX} return
		ct mark set ip6 saddr . ip6 daddr map @{NAMED_SIX}
		ip6 saddr . ct mark @{NAME_RULES_SIX} return
		meta l4proto {{ tcp, udp }} ct mark set ip6 saddr . ip6 daddr . meta l4proto . th dport map @{NAMED_PORTS_SIX}
		ip6 saddr . ct mark @{NAME_RULES_SIX} return
		goto refuse_six
	}}
	chain out_six {{
		ct state new ip6 daddr {{ {NEVER} }} goto refuse_six
		ip6 saddr @{DENY_OUT_SIX} ct direction original goto refuse_six
		ip6 saddr @{LIMITED_SIX} ip6 saddr . ip6 daddr != @{REACHABLE_SIX} ct direction original jump by_rule_six
		ct state new add @connections6 {{ ip6 saddr ct count over {connections_max} }} goto refuse_six
	}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_gets_to_what_is_ours() {
        assert!(NEVER.starts_with(&tt_model::six::SITE.to_string()));
    }
}
