//! Makes a new cluster.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Error;
use crate::account::Account;
use crate::layout::{Layout, create_private};
use crate::log::{last_lines, says_no_space};
use crate::programs::Programs;
use crate::stop::StopRequests;

/// What unfinished clusters are called, before the process id of their maker.
const UNFINISHED: &str = "postgres.new.";

const POLL: Duration = Duration::from_millis(20);

/// Makes a cluster under another name and moves it to its place, so that being killed
/// in the middle leaves nothing that looks like a cluster.
pub(crate) fn initialize(
    layout: &Layout,
    programs: &Programs,
    account: &Account,
    durable: bool,
    stop: &StopRequests,
) -> Result<(), Error> {
    remove_unfinished(layout)?;
    // The number keeps us apart from an `initdb` that outlived a killed launcher.
    let unfinished = layout
        .directory
        .join(format!("{UNFINISHED}{}", std::process::id()));
    create_private(&unfinished, account)?;
    tracing::info!(directory = %layout.data.display(), "making a new PostgreSQL cluster");

    let mut command = account.command(&programs.initdb());
    command
        .arg("--pgdata")
        .arg(&unfinished)
        // The C locale is everywhere, and no system update changes its order under an index.
        .args(["--username=muster", "--encoding=UTF8", "--locale=C"])
        // Peer authentication would shut out root, and a password would have to lie
        // next to the data. The directory of the socket is the guard instead.
        .args(["--auth-local=trust", "--auth-host=reject"])
        .args(["--data-checksums", "--no-instructions"])
        .current_dir(&layout.directory)
        .stdin(Stdio::null());
    if !durable {
        command.arg("--no-sync");
    }
    let output = run(command, stop).map_err(|error| match error {
        Some(cause) => Error::io("run", &programs.initdb())(cause),
        None => Error::Stopped,
    });
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            give_up(layout);
            return Err(error);
        }
    };
    if !output.status.success() {
        let log = last_lines(&[output.stdout, output.stderr].concat());
        let error = if says_no_space(&log) {
            Error::no_space(&layout.directory, log)
        } else {
            Error::InitializationFailed {
                status: output.status.to_string(),
                log,
            }
        };
        give_up(layout);
        return Err(error);
    }
    fs::rename(&unfinished, &layout.data).map_err(Error::io("create", &layout.data))?;
    // `initdb` has synced the cluster; its new name must survive as well.
    File::open(&layout.directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", &layout.directory))
}

/// Runs `initdb`, which prints less than a pipe holds, until it ends or a stop is asked for; the
/// error is `None` then.
fn run(mut command: Command, stop: &StopRequests) -> Result<Output, Option<io::Error>> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    while child.try_wait()?.is_none() {
        if stop.wait(POLL).is_some() {
            // It leads a group of its own, with the Postgres that it runs. Nothing of its work is
            // of use, so it need not end in order.
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.wait()?;
            return Err(None);
        }
    }
    Ok(child.wait_with_output()?)
}

fn give_up(layout: &Layout) {
    if let Err(error) = remove_unfinished(layout) {
        tracing::warn!(%error, "an unfinished cluster stays behind");
    }
}

fn remove_unfinished(layout: &Layout) -> Result<(), Error> {
    let directory = &layout.directory;
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes())
        {
            fs::remove_dir_all(entry.path()).map_err(Error::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}
