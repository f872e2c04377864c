//! Makes a new cluster.

use std::fs::{self, File};
use std::process::Stdio;

use crate::Error;
use crate::account::Account;
use crate::layout::{Layout, create_private};
use crate::log::{last_lines, says_no_space};
use crate::programs::Programs;

/// What unfinished clusters are called, before the process id of their maker.
const UNFINISHED: &str = "postgres.new.";

/// Makes a cluster under another name and moves it to its place, so that being killed
/// in the middle leaves nothing that looks like a cluster.
pub(crate) fn initialize(
    layout: &Layout,
    programs: &Programs,
    account: &Account,
    durable: bool,
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
    let output = command
        .output()
        .map_err(Error::io("run", &programs.initdb()))?;
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
        if let Err(error) = remove_unfinished(layout) {
            tracing::warn!(%error, "an unfinished cluster stays behind");
        }
        return Err(error);
    }
    fs::rename(&unfinished, &layout.data).map_err(Error::io("create", &layout.data))?;
    // `initdb` has synced the cluster; its new name must survive as well.
    File::open(&layout.directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", &layout.directory))
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
