//! What a guest that was made from a container image runs once it is set up: the image's process. It is a file that the
//! template's maker writes and the agent reads. Pure.

use serde::{Deserialize, Serialize};

/// Where the agent finds it in its initial RAM file system, which the guest's own programs never see.
pub const ENTRY_FILE: &str = "/tt/entry.json";
/// Says in the same place that the root disk's own `/sbin/init` becomes the first process; the agent is a service of it.
pub const INIT_MARK: &str = "/tt/init";
/// Largest [`ENTRY_FILE`]: the arguments and environment that a kernel takes, written as JSON.
pub const ENTRY_BYTES_MAX: u64 = 8 << 20;

/// A process as an image describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The program, looked for in the `PATH` of `env`, and its arguments.
    pub argv: Vec<String>,
    /// Its environment; of two variables of one name the last one counts.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// `USER` or `USER:GROUP`, each a name or a number; numbers need not be in the guest's files. `None`: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it starts; made if it is not there. `None`: the root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

impl Entry {
    /// Whether it can be a process at all.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(&self) -> Result<(), &'static str> {
        let texts = self.argv.iter().chain(self.env.iter().flat_map(|(name, value)| [name, value]));
        if texts.chain(&self.user).chain(&self.cwd).any(|text| text.contains('\0')) {
            return Err("a text of its process holds a zero byte");
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err("its process has no program");
        }
        if self.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err("a variable of its process has no name");
        }
        Ok(())
    }

    /// What its arguments and environment take in the memory of a process.
    #[must_use]
    pub fn bytes(&self) -> usize {
        /// The zero at an end, the `=`, and the pointer to it.
        const EACH: usize = 10;
        let args = self.argv.iter().map(|arg| arg.len() + EACH);
        let env = self.env.iter().map(|(name, value)| name.len() + value.len() + EACH);
        args.chain(env).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            argv: vec!["nginx".into(), "-g".into()],
            env: vec![("A".into(), "b=c".into())],
            user: Some("web:33".into()),
            cwd: None,
        }
    }

    #[test]
    fn its_form_is_pinned() {
        let json = r#"{"argv":["nginx","-g"],"env":[["A","b=c"]],"user":"web:33"}"#;
        assert_eq!(serde_json::to_string(&entry()).unwrap(), json);
        assert_eq!(serde_json::from_str::<Entry>(json).unwrap(), entry());
    }

    #[test]
    fn what_can_not_be_a_process_is_refused() {
        assert_eq!(entry().check(), Ok(()));
        let spoils: [fn(&mut Entry); 6] = [
            |e| e.argv.clear(),
            |e| e.argv[0].clear(),
            |e| e.argv[1].push('\0'),
            |e| e.env[0].0.clear(),
            |e| e.env[0].0.push('='),
            |e| e.user = Some("a\0".into()),
        ];
        for (number, spoil) in spoils.iter().enumerate() {
            let mut entry = entry();
            spoil(&mut entry);
            assert!(entry.check().is_err(), "{number}");
        }
    }
}
