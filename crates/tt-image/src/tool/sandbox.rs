//! What a program is shut in by before it runs.

use rustix::fs::{Gid, Uid};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Processes and threads of a box: `qemu-img` takes 64 for its reads and writes, and two imports may have the same user.
const PROCESSES_MAX: u64 = 256;

/// A box for a program that reads what a stranger made: a user of its own without any rights, no network, bounded memory,
/// time and output. It reaches these open files, by `/proc/self/fd/N`, and what everybody on the host may read.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Its user and group.
    pub(crate) user: u32,
    /// Stay open in the program, under their numbers.
    pub(crate) files: Vec<Arc<File>>,
    /// Most address space.
    pub(crate) memory_bytes: u64,
    /// Largest file that it can write.
    pub(crate) file_bytes: u64,
    /// Most time of a processor.
    pub(crate) cpu: Duration,
}

/// Ends the calling process, which is about to become the program, with the thread that started it and waits for it: a
/// killed daemon leaves no program behind.
pub(super) fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
}

impl Sandbox {
    /// Shuts the calling process in; it is about to become the program.
    pub(super) fn enter(&self) -> io::Result<()> {
        for file in &self.files {
            fcntl_setfd(file, FdFlags::empty())?;
        }
        let apart = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        // SAFETY: the process has one thread and shares nothing of these with it.
        unsafe { unshare_unsafe(apart)? };
        let bound =
            |what, most: u64| setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) });
        bound(Resource::As, self.memory_bytes)?;
        bound(Resource::Fsize, self.file_bytes)?;
        bound(Resource::Cpu, self.cpu.as_secs())?;
        bound(Resource::Core, 0)?;
        bound(Resource::Nofile, 64)?;
        // Counted for its user, who has nothing else; threads count, too.
        bound(Resource::Nproc, PROCESSES_MAX)?;
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        set_no_new_privs(true)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Tool;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};
    use std::process::{Command, Stdio};

    /// Set in the child that a test kills.
    const KILLED: &str = "TT_IMAGE_TEST_KILLED";

    fn boxed(tool: Tool, files: Vec<Arc<File>>) -> Tool {
        let (memory_bytes, file_bytes, cpu) = (1 << 30, 1 << 20, Duration::from_secs(60));
        tool.sandbox(Sandbox { user: 0x6eff_0000, files, memory_bytes, file_bytes, cpu })
    }

    #[test]
    fn no_program_outlives_who_waits_for_it() {
        if std::env::var_os(KILLED).is_some() {
            // The child: it is killed in here. Its program has its output, too.
            let output = Arc::new(File::from(io::stdout().as_fd().try_clone_to_owned().unwrap()));
            let script = format!("echo begun >&{}; exec sleep 1000", output.as_raw_fd());
            let tool = Tool::new("bash", "bash", Duration::from_secs(600)).args(["-c", &script]);
            let _ = boxed(tool, vec![output]).run();
            return;
        }
        let (mut output, writer) = io::pipe().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tool::sandbox::tests::no_program_outlives_who_waits_for_it",
                "--nocapture",
            ])
            .env(KILLED, "1")
            .stdout(writer)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"begun\n") {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // It ends when nobody has the other side open any more.
        output.read_to_end(&mut said).unwrap();
    }

    #[test]
    fn a_box_holds_so_many_processes_and_leaves_none() {
        let script = "i=0; while [ $i -lt 400 ]; do sleep 100 & i=$((i+1)); done";
        let tool = Tool::new("sh", "dash", Duration::from_secs(60)).args(["-c", script]);
        let error = boxed(tool, Vec::new()).run().unwrap_err().to_string();
        assert!(error.contains("annot fork"), "{error}");
    }
}
