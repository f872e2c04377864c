//! `muster restore`: a backup into an empty database, whole or not at all.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use muster_storage::{
    Role,
    contents::{self, Contents},
    schema,
};
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};

use crate::{
    command::backup::failed,
    database::{Place, PlaceArgs},
    error::{CliError, Result},
    global::Global,
    output::{Output, grouped, progress::Progress, remark},
    postgres_tools::Tool,
    signals::Signals,
};

/// Fill an empty database from a backup.
///
/// The database must hold nothing and nobody may use it: restore into a new data directory, or a new
/// database, and point the servers there. All is done in one transaction, so a restore that fails or
/// is killed leaves the database empty. Afterwards every cohort is read and compared with what was
/// counted when it was published.
///
/// What happened since the backup is gone: credentials revoked and users erased since are there
/// again, and have to be revoked and erased again. See docs/operations.md.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The file that `muster backup` has written
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a restore did.
struct Restored {
    /// When the backup was made, as pg_restore tells it.
    made_at: String,
    /// What is there now; `None` if the schema is older than this build.
    contents: Option<Contents>,
}

impl Restore {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let began = Instant::now();
        // A private Postgres must not be left behind by Ctrl-C.
        let mut signals = Signals::listen()?;
        let stopped = || CliError::Failed("stopped; nothing was restored".to_owned());
        check_form(&self.file).await?;
        let place = tokio::select! {
            opened = Place::exclusive(&self.place, global) => opened?,
            () = signals.next() => return Err(stopped()),
        };
        let output = Output::new(global.output);
        let restored = tokio::select! {
            restored = self.restore(&place, output) => restored,
            () = signals.next() => Err(stopped()),
        };
        place.close(&mut signals).await?;
        tell(output, &self.file, &restored?, began)
    }

    async fn restore(&self, place: &Place, output: Output) -> Result<Restored> {
        let mut connection = place.store.connection().await?;
        let major = contents::server_major(&mut connection).await?;
        let program = place.tool("pg_restore", major)?;
        let file = std::path::absolute(&self.file).map_err(failed(&self.file))?;
        let made_at = check_content(&program, &file).await?;
        let there = contents::relations(&mut connection).await?;
        if let Some((first, _)) = there.first() {
            return Err(CliError::Failed(format!(
                "the database is not empty: it holds {} and {} more. Restore into a new data \
                 directory (--data-dir) or a new database, and point the servers there",
                first,
                there.len() - 1
            )));
        }
        let clients = contents::other_clients(&mut connection).await?;
        if !clients.is_empty() {
            return Err(CliError::Failed(format!(
                "the database is in use by {}: stop them first",
                clients.join(", ")
            )));
        }
        drop(connection);
        // The policies of the backup name them.
        place.store.create_roles().await?;
        self.fill(place, &program, output).await?;
        let mut connection = place.store.connection().await?;
        contents::analyze(&mut connection).await?;
        drop(connection);
        let contents = match place.store.check_schema().await {
            Ok(()) => {
                place.store.grant_privileges().await?;
                Some(self.check(place).await?)
            }
            Err(_) => None,
        };
        Ok(Restored { made_at, contents })
    }

    /// Has pg_restore fill the database in one transaction.
    async fn fill(&self, place: &Place, program: &Path, output: Output) -> Result<()> {
        let mut file = File::open(&self.file).await.map_err(failed(&self.file))?;
        let size = file.metadata().await.map_err(failed(&self.file))?.len();
        let words = [
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            "--no-privileges",
        ];
        let mut tool = Tool::start(program, &words, Some(&place.target))?;
        let mut to = tool.child.stdin.take().expect("it is a pipe");
        let mut progress = Progress::start(output, "bytes", Some(size));
        let mut buffer = vec![0; 256 * 1024];
        let mut bytes = 0;
        loop {
            let read = file.read(&mut buffer).await.map_err(failed(&self.file))?;
            // A program that has closed its input ends, and says why.
            if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
                break;
            }
            bytes += read as u64;
            progress.update(bytes, bytes);
        }
        drop(to);
        let ended = tool.end().await;
        ended.map_err(|error| CliError::Failed(format!("nothing was restored: {error}")))
    }

    async fn check(&self, place: &Place) -> Result<Contents> {
        let mut tx = place
            .store
            .acting_as(Role::Backup)
            .snapshot("check_contents")
            .await?;
        let contents = contents::check(&mut tx).await?;
        if contents.problems.is_empty() {
            return Ok(contents);
        }
        Err(CliError::Failed(format!(
            "{} was restored, but must not be served from: {}",
            self.file.display(),
            contents.problems.join("; ")
        )))
    }
}

/// That the file can be read and looks like a backup: before a Postgres is started for it.
async fn check_form(path: &Path) -> Result<()> {
    let mut file = File::open(path).await.map_err(failed(path))?;
    let mut magic = [0; 5];
    let read = file.read_exact(&mut magic).await;
    if read.is_err() || &magic != b"PGDMP" {
        return Err(CliError::Failed(format!(
            "{} is not a backup: it does not begin as one",
            path.display()
        )));
    }
    Ok(())
}

/// That the file is a backup of a Muster whose schema this build knows; returns when it was made.
async fn check_content(program: &Path, file: &Path) -> Result<String> {
    let name = file.to_string_lossy();
    let broken =
        |error| CliError::Failed(format!("{} cannot be restored: {error}", file.display()));
    let list = read(program, &["--list", &name]).await.map_err(broken)?;
    let made_at = list
        .lines()
        .find_map(|line| line.strip_prefix("; Archive created at "))
        .unwrap_or_default();
    let words = ["--data-only", "--table=_sqlx_migrations", "--file=-", &name];
    let migrations = read(program, &words).await.map_err(broken)?;
    let applied = applied(&migrations);
    if applied.is_empty() {
        return Err(CliError::Failed(format!(
            "{} is a backup of something else than Muster",
            file.display()
        )));
    }
    schema::check_known(&applied)?;
    Ok(made_at.trim().to_owned())
}

/// What a program prints.
async fn read(program: &Path, words: &[&str]) -> Result<String> {
    let mut tool = Tool::start(program, words, None)?;
    let mut from = tool.child.stdout.take().expect("it is a pipe");
    let mut text = Vec::new();
    let printed = from.read_to_end(&mut text).await;
    printed.map_err(|error| CliError::Failed(format!("{}: {error}", program.display())))?;
    tool.end().await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Versions and checksums in the COPY of the table of migrations.
fn applied(sql: &str) -> Vec<(i64, Vec<u8>)> {
    let mut lines = sql.lines();
    let Some(columns) = lines.find_map(|line| {
        let (_, rest) = line.strip_prefix("COPY ")?.split_once('(')?;
        Some(rest.split_once(')')?.0)
    }) else {
        return Vec::new();
    };
    let place = |name: &str| columns.split(", ").position(|column| column == name);
    let (Some(version), Some(checksum)) = (place("version"), place("checksum")) else {
        return Vec::new();
    };
    lines
        .take_while(|line| *line != "\\.")
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let digits = fields.get(checksum)?.trim_start_matches(['\\', 'x']);
            let bytes = (0..digits.len() / 2)
                .map(|n| u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok())
                .collect::<Option<_>>()?;
            Some((fields.get(version)?.parse().ok()?, bytes))
        })
        .collect()
}

fn tell(output: Output, file: &Path, restored: &Restored, began: Instant) -> Result<()> {
    let took = began.elapsed().as_secs_f64();
    let there = restored.contents.as_ref();
    if output.is_json() {
        let contents = there.map(|there| {
            json!({
                "workspaces": there.workspaces,
                "users": there.users,
                "cohorts": there.cohorts,
                "members": there.members,
                "open_imports": there.open_imports,
            })
        });
        return output.json(&json!({
            "file": file,
            "made_at": restored.made_at,
            "seconds": took,
            "contents": contents,
        }));
    }
    output.text(&format!(
        "restored {}, made at {}, in {took:.1} s\n",
        file.display(),
        restored.made_at
    ))?;
    match there {
        Some(there) => output.text(&format!(
            "workspaces {}, users {}, cohorts {} with {} members, open imports {}\n",
            grouped(&there.workspaces),
            grouped(&there.users),
            grouped(&there.cohorts),
            grouped(&there.members),
            grouped(&there.open_imports),
        ))?,
        None => remark("its schema is older than this build: run `muster migrate`"),
    }
    remark(
        "what happened since the backup is gone: revoke the credentials and erase the users again \
         that were since",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_read_from_a_copy() {
        let sql = "SET x = 1;\n\nCOPY public._sqlx_migrations (version, description, checksum) FROM stdin;\n\
                   1\tcontrol\t\\\\x01ff\n20\ta b\t\\\\x\n\\.\n\nSELECT 1;\n";
        assert_eq!(applied(sql), [(1, vec![1, 255]), (20, vec![])]);
        assert!(applied("SELECT 1;").is_empty());
    }
}
