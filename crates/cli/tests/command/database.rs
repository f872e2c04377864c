//! Databases as an operator would bring them, in a cluster that the tests share.

use std::{process::Command, sync::OnceLock};

use muster_launcher::TemporaryCluster;

use crate::harness::run;

/// A database, empty at first.
#[derive(Debug)]
pub(crate) struct Database {
    name: &'static str,
}

impl Database {
    pub(crate) fn create(name: &'static str) -> Self {
        psql(
            &cluster().url("postgres"),
            &format!("CREATE DATABASE {name}"),
        );
        Self { name }
    }

    pub(crate) fn url(&self) -> String {
        cluster().url(self.name)
    }

    /// The answer to one statement.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> String {
        psql(&self.url(), sql)
    }
}

fn cluster() -> &'static TemporaryCluster {
    static CLUSTER: OnceLock<TemporaryCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| TemporaryCluster::start().unwrap())
}

#[track_caller]
fn psql(url: &str, sql: &str) -> String {
    let mut command = Command::new("psql");
    let command = command.args(["--no-psqlrc", "--tuples-only", "--no-align", "-c", sql, url]);
    run(command, b"").code(0).text().trim().to_owned()
}
