//! Ends what an earlier launcher left running in a data directory.
//!
//! A launcher that is killed leaves its postmaster; a postmaster that is killed
//! leaves its backends for a moment, and Postgres does not start until they are gone.
//! Process ids are reused, so nothing is signalled that is not known to be a
//! Postgres of this very cluster.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Error;

const POLL: Duration = Duration::from_millis(20);

/// A cluster whose processes are to be told from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterProcesses<'a> {
    /// The canonical path of the data.
    pub(crate) data: &'a Path,
    /// The `cluster_name` our postmasters give it.
    pub(crate) name: &'a str,
    /// The user its processes run as.
    pub(crate) uid: u32,
}

impl ClusterProcesses<'_> {
    /// Ends every process of this cluster and makes way for a new postmaster. The
    /// caller holds the lock on the data directory.
    pub(crate) fn clear(self) -> Result<(), Error> {
        let lock_file = self.data.join("postmaster.pid");
        let recorded = postmaster_pid(&lock_file);
        if let Some(pid) = recorded.filter(|&pid| self.owns(pid)) {
            tracing::warn!(
                pid,
                "ending a postmaster that an earlier process left behind"
            );
            signal(pid, Signal::SIGINT);
            self.wait_until_gone(Duration::from_secs(10));
        }
        for end in [Signal::SIGQUIT, Signal::SIGKILL] {
            for pid in self.processes() {
                tracing::warn!(pid, signal = %end, "ending a left-over postgres process");
                signal(pid, end);
            }
            self.wait_until_gone(Duration::from_secs(5));
        }
        if let Some(&pid) = self.processes().first() {
            return Err(Error::StillRunning {
                pid,
                directory: self.data.to_owned(),
            });
        }
        // Postgres removes the file of a dead process itself, but takes any program
        // that has the number by now for a postmaster.
        if recorded.is_some_and(|pid| is_alive(pid) && !is_postgres(pid)) {
            match fs::remove_file(&lock_file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("remove", &lock_file)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The processes of this cluster; zombies are not among them.
    fn processes(self) -> Vec<u32> {
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| self.owns(pid))
            .collect()
    }

    /// Whether `pid` is a Postgres of this cluster.
    ///
    /// All of them work in the data directory. In a container even root may not ask
    /// for another user's working directory (it takes CAP_SYS_PTRACE), but everyone
    /// may read command lines, which name the directory or the cluster.
    fn owns(self, pid: u32) -> bool {
        let Ok(metadata) = process(pid).metadata() else {
            return false;
        };
        if metadata.uid() != self.uid || !is_postgres(pid) {
            return false;
        }
        match fs::read_link(process(pid).join("cwd")) {
            Ok(directory) => directory == self.data,
            Err(_) => self.is_named_by(&fs::read(process(pid).join("cmdline")).unwrap_or_default()),
        }
    }

    /// Whether a command line is one of this cluster's: `postgres -D <data> …` of a
    /// postmaster, or `postgres: <name>: checkpointer` and the like.
    fn is_named_by(self, command_line: &[u8]) -> bool {
        let mut arguments = command_line.split(|&byte| byte == 0);
        let title = format!("postgres: {}: ", self.name);
        command_line.starts_with(title.as_bytes())
            || arguments.any(|argument| argument == b"-D")
                && arguments.next() == Some(self.data.as_os_str().as_encoded_bytes())
    }

    fn wait_until_gone(self, bound: Duration) {
        let deadline = Instant::now() + bound;
        while !self.processes().is_empty() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }
}

/// The process id in a `postmaster.pid` file.
pub(crate) fn postmaster_pid(lock_file: &Path) -> Option<u32> {
    fs::read_to_string(lock_file)
        .ok()?
        .lines()
        .next()?
        .parse()
        .ok()
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// Whether `pid` is a running Postgres. A zombie is not: it has a name, but no command
/// line any more, and where nobody reaps (a container without an init) it stays for good.
fn is_postgres(pid: u32) -> bool {
    let read = |name: &str| fs::read(process(pid).join(name)).unwrap_or_default();
    read("comm").trim_ascii() == b"postgres" && !read("cmdline").is_empty()
}

fn is_alive(pid: u32) -> bool {
    process(pid).exists()
}

/// Signals a process that the caller knows; it may be gone already.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("the kernel's process ids fit an i32"));
    if let Err(error) = kill(pid, signal) {
        tracing::debug!(%pid, %signal, %error, "cannot signal");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;

    fn cluster(data: &Path) -> ClusterProcesses<'_> {
        ClusterProcesses {
            data,
            name: "muster-1",
            uid: 0,
        }
    }

    #[test]
    fn command_lines_of_the_cluster_are_recognised() {
        let cluster = cluster(Path::new("/data/postgres"));
        for command_line in [
            "/usr/bin/postgres\0-D\0/data/postgres\0-c\0jit=off\0",
            "postgres: muster-1: checkpointer ",
        ] {
            assert!(
                cluster.is_named_by(command_line.as_bytes()),
                "{command_line}"
            );
        }
        for command_line in [
            "",
            "/usr/bin/postgres\0-D\0/data/postgres2\0",
            "/usr/bin/postgres\0-D\0",
            "postgres: muster-12: checkpointer ",
            "postgres: checkpointer ",
        ] {
            assert!(
                !cluster.is_named_by(command_line.as_bytes()),
                "{command_line}"
            );
        }
    }

    #[test]
    fn a_stale_lock_file_is_removed_only_if_its_number_is_another_programs() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = cluster(directory.path());
        let lock_file = directory.path().join("postmaster.pid");

        fs::write(&lock_file, format!("{}\n", std::process::id())).unwrap();
        cluster.clear().unwrap();
        assert!(!lock_file.exists());

        fs::write(&lock_file, "99999999\n").unwrap();
        cluster.clear().unwrap();
        assert!(lock_file.exists());
    }

    #[test]
    fn a_zombie_does_not_hold_the_lock_file() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postgres");
        std::os::unix::fs::symlink("/bin/true", &program).unwrap();
        let mut zombie = std::process::Command::new(&program).spawn().unwrap();
        let pid = Pid::from_raw(zombie.id().try_into().unwrap());
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert_eq!(
            fs::read(process(zombie.id()).join("comm")).unwrap(),
            b"postgres\n"
        );

        let lock_file = directory.path().join("postmaster.pid");
        fs::write(&lock_file, format!("{}\n", zombie.id())).unwrap();
        cluster(directory.path()).clear().unwrap();
        assert!(!lock_file.exists());
        zombie.wait().unwrap();
    }
}
