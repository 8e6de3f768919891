//! A test that is killed leaves nothing: the guard beside it takes its lab down.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod guard {
    use rustix::mount::{UnmountFlags, unmount};
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    /// A process that names the lab, and a mount in it.
    struct Remains {
        dir: PathBuf,
        process: Child,
    }

    impl Remains {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("ttlab-{}-{name}", std::process::id()));
            std::fs::create_dir_all(dir.join("mount")).unwrap();
            std::fs::write(dir.join("file"), "").unwrap();
            let mut mount = Command::new("mount");
            let mount =
                mount.args(["-t", "tmpfs", "tmpfs"]).arg(dir.join("mount")).status().unwrap();
            assert!(mount.success());
            let process = Command::new("tail").arg("-f").arg(dir.join("file")).spawn().unwrap();
            Self { dir, process }
        }

        fn is_mounted(&self) -> bool {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.contains(self.dir.to_str().unwrap())
        }
    }

    impl Drop for Remains {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
            // In a good run the guard was here before.
            let _ = unmount(self.dir.join("mount"), UnmountFlags::DETACH);
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    /// What a test's end is for its guard, after the test has sent `words`.
    fn the_test_ends(words: &[u8]) {
        let mut guard = Command::new(env!("CARGO_BIN_EXE_lab-guard"));
        let mut guard = guard.stdin(Stdio::piped()).spawn().unwrap();
        guard.stdin.take().unwrap().write_all(words).unwrap();
        assert!(guard.wait().unwrap().success());
    }

    #[test]
    fn what_a_killed_test_leaves_is_cleared() {
        if !rustix::process::geteuid().is_root() {
            return testkit::skip("what_a_killed_test_leaves_is_cleared", "it needs root");
        }
        let (mut left, mut other) = (Remains::new("left"), Remains::new("other"));
        the_test_ends(left.dir.as_os_str().as_encoded_bytes());
        assert!(!left.process.wait().unwrap().success(), "the process was not killed");
        assert!(!left.is_mounted());
        assert!(!left.dir.exists());
        // Nothing of another test's.
        assert!(other.process.try_wait().unwrap().is_none() && other.is_mounted());
        // A test that has cleaned up says so, and then nothing is touched.
        the_test_ends(&[other.dir.as_os_str().as_encoded_bytes(), &[0]].concat());
        assert!(other.process.try_wait().unwrap().is_none() && other.is_mounted());
    }
}
