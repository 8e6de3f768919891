//! Somebody else's firewall that drops what is forwarded, as Docker's does: accepting in our own
//! table is not enough then, every table has its say. Our edges are let through there, and nothing
//! else is touched. What that firewall kept from strangers, the networks of others on this host, our
//! own table keeps from guests.

use crate::NetworkError;
use crate::elements::{Change, Element, Elements, Set};
use crate::link::Links;
use crate::member::name_bytes;
use crate::nft::OTHERS;
use netlink_packet_netfilter::NetfilterProtoFamily;
use std::collections::BTreeSet;
use std::io;
use std::process::{Command, Stdio};

/// Where Docker, and others that use iptables, drop by policy: a chain of each of these families.
const FAMILIES: [&str; 2] = ["ip", "ip6"];
const CHAIN: [&str; 2] = ["filter", "FORWARD"];

/// How the names of links begin behind which others keep containers and machines: Docker, libvirt,
/// LXC, LXD, Incus, Podman, CNI.
const KEEPERS: [&str; 8] =
    ["docker", "virbr", "lxcbr", "lxdbr", "incusbr", "podman", "cni", "flannel"];
/// A network of Docker's that a user made: this, and as many digits of its id.
const DOCKER_BRIDGE: (&str, usize) = ("br-", 12);

/// Makes the set of links that no guest is led through those of others that are there now.
pub(crate) fn close_others(table: &str, links: &mut Links) -> Result<(), NetworkError> {
    let fail = |action| {
        move |source: io::Error| NetworkError::ChangeElements { action, set: OTHERS, source }
    };
    let names = links.all()?.into_iter().map(|link| link.name);
    let wanted =
        names.filter(|name| is_of_others(name)).map(|name| Element::of_key(name_bytes(&name)));
    let wanted: BTreeSet<Element> = wanted.collect();
    let set = Set { family: NetfilterProtoFamily::Inet, table, name: OTHERS };
    let mut elements = Elements::open().map_err(fail("open netlink for"))?;
    let now: BTreeSet<Element> = elements.read(set).map_err(fail("read"))?.into_iter().collect();
    let change = Change {
        set,
        remove: now.difference(&wanted).cloned().collect(),
        add: wanted.difference(&now).cloned().collect(),
    };
    elements.change(vec![change]).map_err(fail("change"))
}

/// Whether a link leads to containers or machines that others keep.
pub(crate) fn is_of_others(name: &str) -> bool {
    let (begin, digits) = DOCKER_BRIDGE;
    let is_id = |rest: &str| rest.len() == digits && rest.bytes().all(|b| b.is_ascii_hexdigit());
    KEEPERS.iter().any(|keeper| name.starts_with(keeper))
        || name.strip_prefix(begin).is_some_and(is_id)
}

/// Lets what comes from and goes to our edges through a forward chain that drops. Our own table
/// says what of that may pass.
pub(crate) fn pass(edges: &str) -> Result<(), NetworkError> {
    for family in FAMILIES {
        let Some(chain) = list(family)?.filter(|chain| chain.contains("policy drop")) else {
            continue;
        };
        for direction in ["iifname", "oifname"] {
            if handles(&chain, direction, edges).is_empty() {
                let (name, [table, chain]) = (format!("{edges}*"), CHAIN);
                nft(&["insert", "rule", family, table, chain, direction, &name, "accept"])?;
                tracing::info!(
                    family,
                    direction,
                    edges,
                    "let our edges through a dropping FORWARD chain"
                );
            }
        }
    }
    Ok(())
}

/// Takes [`pass`] back.
pub(crate) fn forget(edges: &str) -> Result<(), NetworkError> {
    for family in FAMILIES {
        let Some(chain) = list(family)? else { continue };
        for direction in ["iifname", "oifname"] {
            for handle in handles(&chain, direction, edges) {
                let [table, chain] = CHAIN;
                nft(&["delete", "rule", family, table, chain, "handle", handle])?;
            }
        }
    }
    Ok(())
}

/// The chain as text with the handles of its rules; none if there is none.
fn list(family: &str) -> Result<Option<String>, NetworkError> {
    let output = Command::new("nft")
        .args(["-a", "-t", "list", "chain", family])
        .args(CHAIN)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| NetworkError::RunNft { source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(text))
}

/// Handles of our rules. A line is `iifname "tt…*" accept # handle 7`; iptables adds a counter.
fn handles<'a>(chain: &'a str, direction: &str, edges: &str) -> Vec<&'a str> {
    let ours = format!("{direction} \"{edges}*\" ");
    let lines = chain.lines().filter(|line| line.trim_start().starts_with(&ours));
    lines.filter_map(|line| Some(line.rsplit_once("# handle ")?.1)).collect()
}

fn nft(arguments: &[&str]) -> Result<(), NetworkError> {
    let output = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| NetworkError::RunNft { source })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::LoadRules {
        action: "change",
        table: "filter".to_owned(),
        reason: reason.trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_others_are_known_by_name() {
        for name in ["docker0", "docker_gwbridge", "br-0123456789ab", "virbr0", "lxdbr1", "podman0"]
        {
            assert!(is_of_others(name), "{name}");
        }
        for name in ["br-lan", "br-ex", "br0", "br-0123456789xy", "eth0", "bond0", "tt0001e1"] {
            assert!(!is_of_others(name), "{name}");
        }
    }

    #[test]
    fn our_rules_are_found_among_others() {
        let chain = "table ip filter {\n\
            \tchain FORWARD { # handle 2\n\
            \t\ttype filter hook forward priority filter; policy drop;\n\
            \t\tiifname \"tt0001e*\" accept # handle 7\n\
            \t\toifname \"tt0001e*\" counter packets 1 bytes 2 accept # handle 8\n\
            \t\tiifname \"tt0002e*\" accept # handle 9\n\t}\n}\n";
        assert_eq!(handles(chain, "iifname", "tt0001e"), ["7"]);
        assert_eq!(handles(chain, "oifname", "tt0001e"), ["8"]);
        assert!(handles(chain, "oifname", "tt0002e").is_empty());
    }
}
