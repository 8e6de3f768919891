//! How members are named on the command line: `ENV/VM`, and `ENV/VM:PATH` for a path in a guest. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use tt_model::check::{check_name, quoted};

/// A member, written `ENV/VM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmTarget {
    /// Name of the Env.
    pub env: String,
    /// Name of the Vm in it.
    pub vm: String,
}

impl FromStr for VmTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((env, vm)) = text.split_once('/') else {
            return Err(format!("{} names no Vm; write ENV/VM", quoted(text)));
        };
        check_name("env", env).map_err(|refusal| refusal.to_string())?;
        check_name("vm", vm).map_err(|refusal| refusal.to_string())?;
        Ok(Self { env: env.to_owned(), vm: vm.to_owned() })
    }
}

impl fmt::Display for VmTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.env, self.vm)
    }
}

/// An Env or a member of one, written `ENV` or `ENV/VM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the Env.
    pub env: String,
    /// Name of the Vm in it, if one is meant.
    pub vm: Option<String>,
}

impl Target {
    /// Whether a member of that name is meant.
    pub fn means(&self, vm: &str) -> bool {
        self.vm.as_ref().is_none_or(|name| name == vm)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains('/') {
            return Ok(Self { env: parse_env_name(text)?, vm: None });
        }
        let VmTarget { env, vm } = text.parse()?;
        Ok(Self { env, vm: Some(vm) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.vm {
            Some(vm) => write!(f, "{}/{vm}", self.env),
            None => f.write_str(&self.env),
        }
    }
}

/// Reads the name of a Vm.
///
/// # Errors
/// The text names the value and what would be right.
pub fn parse_vm_name(text: &str) -> Result<String, String> {
    check_name("vm", text).map_err(|refusal| refusal.to_string())?;
    Ok(text.to_owned())
}

/// Reads the name of a snapshot.
///
/// # Errors
/// The text names the value and what would be right.
pub fn parse_snapshot_name(text: &str) -> Result<String, String> {
    check_name("snapshot", text).map_err(|refusal| refusal.to_string())?;
    Ok(text.to_owned())
}

/// Reads the name of an Env.
///
/// # Errors
/// The text names the value and what would be right.
pub fn parse_env_name(text: &str) -> Result<String, String> {
    check_name("env", text).map_err(|refusal| refusal.to_string())?;
    Ok(text.to_owned())
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path on this machine.
    Local(PathBuf),
    /// A path in a guest, written `ENV/VM:PATH`.
    Guest {
        /// Which guest.
        target: VmTarget,
        /// Absolute.
        path: String,
    },
}

impl FromStr for CopyEnd {
    type Err = String;

    /// A text is a path in a guest if what stands before its first colon is `ENV/VM`; a file of this machine with such
    /// a name is written `./ENV/VM:PATH`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("a path is empty; write a path of this machine, or ENV/VM:PATH".into());
        }
        let Some((target, path)) =
            text.split_once(':').and_then(|(target, path)| Some((target.parse().ok()?, path)))
        else {
            return Ok(Self::Local(text.into()));
        };
        if !path.starts_with('/') {
            let path = quoted(path);
            return Err(format!("path {path} in {target}: it must be absolute; begin it with `/`"));
        }
        Ok(Self::Guest { target, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop_web() -> VmTarget {
        VmTarget { env: "shop".into(), vm: "web".into() }
    }

    #[test]
    fn members_are_an_env_and_a_vm() {
        assert_eq!("shop/web".parse(), Ok(shop_web()));
        for (text, expected) in [
            ("shop", "`shop` names no Vm; write ENV/VM"),
            ("", "names no Vm"),
            ("shop/", "vm ``: it is empty"),
            ("/web", "env ``: it is empty"),
            ("shop/web/x", "vm `web/x`: it has characters that are not allowed"),
            ("../web", "env `..`"),
        ] {
            let error = text.parse::<VmTarget>().unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_target_is_an_env_or_a_member() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(target("shop"), Ok(Target { env: "shop".into(), vm: None }));
        let web = Target { env: "shop".into(), vm: Some("web".into()) };
        assert_eq!(target("shop/web"), Ok(web.clone()));
        assert!(web.means("web") && !web.means("db") && target("shop").unwrap().means("db"));
        for text in ["", "Shop", "shop/", "/web", "shop/web/x"] {
            assert!(target(text).is_err(), "{text:?}");
        }
        assert!(parse_snapshot_name("before-upgrade").is_ok());
        assert!(parse_snapshot_name("a/b").unwrap_err().contains("snapshot `a/b`"));
    }

    #[test]
    fn only_a_member_before_a_colon_makes_a_path_a_guest_s() {
        let guest = CopyEnd::Guest { target: shop_web(), path: "/etc/a:b".into() };
        assert_eq!("shop/web:/etc/a:b".parse(), Ok(guest));
        for local in ["a", "./shop/web:/etc", "/tmp/a:b", "a:b", "Shop/web:/etc", "shop/web"] {
            assert_eq!(local.parse(), Ok(CopyEnd::Local(local.into())), "{local:?}");
        }
        for (text, expected) in [
            ("", "a path is empty"),
            ("shop/web:", "path `` in shop/web: it must be absolute"),
            ("shop/web:etc", "path `etc` in shop/web: it must be absolute; begin it with `/`"),
        ] {
            let error = text.parse::<CopyEnd>().unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
