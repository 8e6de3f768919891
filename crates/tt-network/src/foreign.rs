//! Somebody else's firewall that drops what is forwarded, as Docker's does: accepting in our own
//! table is not enough then, every table has its say. Our edges are let through there, and nothing
//! else is touched.

use crate::NetworkError;
use std::process::{Command, Stdio};

/// Where Docker, and others that use iptables, drop by policy.
const CHAIN: [&str; 4] = ["chain", "ip", "filter", "FORWARD"];

/// Lets what comes from and goes to our edges through a forward chain that drops. Our own table
/// says what of that may pass.
pub(crate) fn pass(edges: &str) -> Result<(), NetworkError> {
    let Some(chain) = list()? else {
        return Ok(());
    };
    if !chain.contains("policy drop") {
        return Ok(());
    }
    for direction in ["iifname", "oifname"] {
        if handles(&chain, direction, edges).is_empty() {
            let name = format!("{edges}*");
            let rule = ["insert", "rule", "ip", "filter", "FORWARD", direction, &name, "accept"];
            nft(&rule)?;
            tracing::info!(direction, edges, "let our edges through the dropping FORWARD chain");
        }
    }
    Ok(())
}

/// Takes [`pass`] back.
pub(crate) fn forget(edges: &str) -> Result<(), NetworkError> {
    let Some(chain) = list()? else {
        return Ok(());
    };
    for direction in ["iifname", "oifname"] {
        for handle in handles(&chain, direction, edges) {
            nft(&["delete", "rule", "ip", "filter", "FORWARD", "handle", handle])?;
        }
    }
    Ok(())
}

/// The chain as text with the handles of its rules; none if there is none.
fn list() -> Result<Option<String>, NetworkError> {
    let output = Command::new("nft")
        .args(["-a", "-t", "list"])
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
        table: "ip filter".to_owned(),
        reason: reason.trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
