//! What is measured, in what order.
//!
//! The directory grows in stages. At each, ingest and audience are measured next to raw `COPY`; at
//! the last, everything else, too. What is measured in pairs is measured in turn.

use std::time::Duration;

use crate::{
    Arguments, Result,
    deployment::{Deployment, IndexLoad},
    machine::Machine,
    muster::{self, Import, check, difference},
    people::{draw, external_ids},
    redis::Redis,
    report::Report,
    rest,
    rows::{self, Lines, Rows},
    timing::{Pairs, median, millis, percentile, rate},
};

/// Repeats of what takes long, however many are asked for.
const FEW: u32 = 3;

/// Small imports that are timed, for each repeat.
const DELTAS: u32 = 60;

/// Ids of a small import.
const DELTA_IDS: u32 = 1_000;

/// Measures what was asked for.
pub(crate) async fn run(arguments: &Arguments) -> Result<Report> {
    let mut stages = match arguments.growth.as_slice() {
        [] => vec![arguments.users / 5, arguments.users],
        growth => growth.to_vec(),
    };
    stages.sort_unstable();
    let (smallest, users) = (stages[0], stages[stages.len() - 1]);
    if smallest == 0 || arguments.ids == 0 {
        return Err("there must be at least 5 users and 1 id".into());
    }
    // The same ids at every stage, so that their cost can be compared.
    let count = arguments.ids.min(smallest);
    let title = format!("{count} ids, {users} users with an external id and one device each.");

    remark("starting Muster and its Postgres");
    let mut bench = Bench::start(arguments).await?;
    let mut report = Report::new(Machine::here(bench.rows.version().await?), title);
    let mut imported = Imported::default();
    let mut measured = Vec::new();
    let mut known = 0;
    for users in stages {
        imported.add(&mut bench, known..users).await?;
        known = users;
        measured.push(Stage::measure(&mut bench, users, count).await?);
    }
    let last = &measured[measured.len() - 1];
    let ingest = last.ingest.ours();
    let copy_in = (1.0, "raw `COPY` in");
    report.compare(
        "ingest_ids_per_s",
        ingest,
        "ids/s",
        last.ingest.ratio(),
        copy_in,
    );
    let copy_out = (1.0, "raw `COPY` out");
    let resolve = last.resolve.ours();
    report.compare(
        "resolve_users_per_s",
        resolve,
        "users/s",
        last.resolve.ratio(),
        copy_out,
    );
    if arguments.growth.is_empty() {
        bench.measure_all(&mut report, &last.cohorts).await?;
    }
    let imported_per_s = imported.users_per_s();
    report.at_least("import_users_per_s", imported_per_s, "users/s", 100_000.0);
    let loaded_per_s = rate(last.users.into(), last.index.took);
    report.at_least(
        "index_load_users_per_s",
        loaded_per_s,
        "users/s",
        1_000_000.0,
    );
    let index_bytes = last.index.bytes / f64::from(last.users);
    report.at_most("index_bytes_per_user", index_bytes, "bytes", 100.0);
    imported.report(&mut bench, &mut report).await?;
    report_growth(&measured, &mut report);
    report.state("raw_copy_in_ids_per_s", last.ingest.theirs(), "ids/s");
    report.state("raw_copy_out_ids_per_s", last.resolve.theirs(), "ids/s");
    Ok(report)
}

/// How ingest and audience change with the size of the directory.
fn report_growth(stages: &[Stage], report: &mut Report) {
    let (first, last) = (&stages[0], &stages[stages.len() - 1]);
    for stage in stages {
        let users = stage.users;
        let name = |what: &str| format!("{what}_at_{users}_users");
        report.state(name("ingest_ids_per_s"), stage.ingest.ours(), "ids/s");
        report.state(name("resolve_users_per_s"), stage.resolve.ours(), "users/s");
    }
    let ingest = first.ingest.ours() / last.ingest.ours();
    let resolve = first.resolve.ours() / last.resolve.ours();
    report.at_most("ingest_growth", ingest, "× per id", 1.5);
    report.at_most("resolve_growth", resolve, "× per user", 1.5);
}

/// Muster, what it is compared with, and how often.
struct Bench {
    rows: Rows,
    deployment: Deployment,
    repeats: u32,
}

/// Two lists of people, and the cohorts that hold them.
struct Cohorts {
    users: u32,
    a: Vec<String>,
    b: Vec<String>,
    a_name: String,
    b_name: String,
}

/// What was measured at one size of the directory.
struct Stage {
    users: u32,
    cohorts: Cohorts,
    /// Ids a second, Muster's and raw `COPY`'s.
    ingest: Pairs,
    /// Users a second, Muster's and raw `COPY`'s.
    resolve: Pairs,
    index: IndexLoad,
}

impl Stage {
    async fn measure(bench: &mut Bench, users: u32, count: u32) -> Result<Self> {
        let a = external_ids(&draw(users, count, 1));
        let b = external_ids(&draw(users, count.div_ceil(2), 2));
        let lines = Lines::of(&a);
        let mut ingest = Pairs::default();
        let a_name = format!("a-{users}");
        let b_name = format!("b-{users}");
        // A process of its own for each size: the first import finds nothing in memory, is matched
        // by SQL and has the index loaded. It has one id, so that the load is all that goes on.
        bench.start_cold().await?;
        let first = Import::of(&format!("first-{users}"), &b[..1]);
        muster::ingest(&bench.deployment, first).await?;
        let index = bench.deployment.index_loaded().await?;
        muster::ingest(&bench.deployment, Import::of(&b_name, &b)).await?;
        muster::ingest(&bench.deployment, Import::of(&a_name, &a)).await?;
        for repeat in 0..bench.repeats {
            bench.rows.settle().await?;
            let theirs = bench.rows.copy_in(&lines).await?;
            bench.rows.settle().await?;
            let import = Import::of(&format!("a-{users}-{repeat}"), &a);
            let ours = muster::ingest(&bench.deployment, import).await?;
            ingest.push(rate(count.into(), ours), rate(count.into(), theirs));
        }
        let mut resolve = Pairs::default();
        for _ in 0..bench.repeats {
            let theirs = bench.rows.copy_out(count.into()).await?;
            let filter = difference(&a_name, &b_name);
            let (found, ours) = muster::resolve(&bench.deployment, filter).await?;
            resolve.push(rate(found, ours), rate(count.into(), theirs));
        }
        remark(&format!(
            "at {users} users: {:.0} ids/s in, {:.0} users/s out (raw COPY {:.0} and {:.0})",
            ingest.ours(),
            resolve.ours(),
            ingest.theirs(),
            resolve.theirs(),
        ));
        let cohorts = Cohorts {
            users,
            a,
            b,
            a_name,
            b_name,
        };
        Ok(Self {
            users,
            cohorts,
            ingest,
            resolve,
            index,
        })
    }
}

/// The users written, and what that took.
#[derive(Debug, Default)]
struct Imported {
    users: u32,
    took: Duration,
    wal_bytes: f64,
}

impl Imported {
    async fn add(&mut self, bench: &mut Bench, users: std::ops::Range<u32>) -> Result<()> {
        let count = users.end - users.start;
        bench.rows.settle().await?;
        let before = bench.rows.wal_bytes().await?;
        let took = muster::import_users(&bench.deployment, users).await?;
        self.wal_bytes += bench.rows.wal_bytes().await? - before;
        remark(&format!("{count} users written in {took:.1?}"));
        self.users += count;
        self.took += took;
        // What Postgres would do by itself some time later, in the middle of something else.
        let mut connection = bench.deployment.database("muster").await?;
        rows::execute(&mut connection, "VACUUM ANALYZE directory_user").await?;
        rows::execute(&mut connection, "VACUUM ANALYZE user_identifier").await
    }

    fn users_per_s(&self) -> f64 {
        rate(self.users.into(), self.took)
    }

    async fn report(&self, bench: &mut Bench, report: &mut Report) -> Result<()> {
        let users = f64::from(self.users);
        let mut connection = bench.deployment.database("muster").await?;
        let disk = rows::directory_bytes(&mut connection).await?;
        report.state("directory_bytes_per_user", disk / users, "bytes on disk");
        report.state(
            "import_wal_bytes_per_user",
            self.wal_bytes / users,
            "bytes of WAL",
        );
        Ok(())
    }
}

impl Bench {
    async fn start(arguments: &Arguments) -> Result<Self> {
        let deployment = Deployment::start(arguments).await?;
        let rows = Rows::create(&deployment).await?;
        Ok(Self {
            rows,
            deployment,
            repeats: arguments.repeats,
        })
    }

    /// Begins anew with nothing in memory.
    async fn start_cold(&mut self) -> Result<()> {
        self.deployment.start_cold()?;
        self.rows = Rows::open(&self.deployment).await?;
        Ok(())
    }

    async fn measure_all(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        remark("filling the directory of the row schema");
        self.rows.fill(cohorts.users).await?;
        self.measure_rows(report, cohorts).await?;
        self.measure_uploads(report, cohorts).await?;
        self.measure_rest(report, cohorts).await?;
        let expected = self.measure_count(report, cohorts).await?;
        self.measure_redis(report, cohorts, expected).await?;
        self.measure_sizes(report, cohorts).await?;
        self.measure_deltas(report, cohorts).await?;
        let memory = self.deployment.peak_memory_mib()?;
        report.state("server_peak_memory_mib", memory, "MiB");
        self.measure_cold_count(report, cohorts, expected).await
    }

    /// What one would write first, and its faster half, the join alone.
    async fn measure_rows(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        remark("writing a row for each member");
        let (a, count) = (&cohorts.a, cohorts.a.len() as u64);
        let lines = Lines::of(a);
        let mut pairs = Pairs::default();
        let mut joins = Vec::new();
        for repeat in 0..self.repeats.min(FEW) {
            joins.push(rate(count, self.rows.join(a).await?));
            self.rows.settle().await?;
            let theirs = self.rows.ingest(1, &lines).await?;
            self.rows.settle().await?;
            let import = Import::of(&format!("rows-{repeat}"), a);
            let ours = muster::ingest(&self.deployment, import).await?;
            pairs.push(rate(count, ours), rate(count, theirs));
        }
        let ratio = pairs.ratio();
        report.compare(
            "ingest_vs_row_schema",
            ratio,
            "×",
            ratio,
            (10.0, "row schema"),
        );
        report.state("sql_join_ids_per_s", median(&joins), "ids/s");
        report.state("row_schema_ingest_ids_per_s", pairs.theirs(), "ids/s");
        self.rows.ingest(2, &Lines::of(&cohorts.b)).await?;
        let mut reads = Vec::new();
        for _ in 0..self.repeats.min(FEW) {
            let (found, took) = self.rows.read().await?;
            reads.push(rate(found, took));
        }
        report.state("row_schema_read_ids_per_s", median(&reads), "ids/s");
        let bytes = self.rows.bytes_per_member().await?;
        report.state("row_schema_bytes_per_member", bytes, "bytes on disk");
        Ok(())
    }

    /// The same ids through the client library.
    async fn measure_uploads(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        let mut rates = Vec::new();
        let mut wal = Vec::new();
        for repeat in 0..self.repeats.min(FEW) {
            self.rows.settle().await?;
            let before = self.rows.wal_bytes().await?;
            let name = format!("upload-{repeat}");
            let took = muster::upload(&self.deployment, &name, cohorts.a.clone()).await?;
            wal.push(self.rows.wal_bytes().await? - before);
            rates.push(rate(cohorts.a.len() as u64, took));
        }
        report.state("ingest_client_library_ids_per_s", median(&rates), "ids/s");
        let wal = median(&wal) / cohorts.a.len() as f64;
        report.state("ingest_wal_bytes_per_id", wal, "bytes of WAL");
        Ok(())
    }

    async fn measure_rest(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        remark("calling over REST");
        let lines = Lines::of(&cohorts.a);
        let count = cohorts.a.len() as u64;
        let mut pairs = Pairs::default();
        for repeat in 0..self.repeats.min(FEW) {
            self.rows.settle().await?;
            let theirs = self.rows.copy_in(&lines).await?;
            self.rows.settle().await?;
            let ours =
                rest::ingest(&self.deployment, &format!("rest-{repeat}"), &cohorts.a).await?;
            pairs.push(rate(count, ours), rate(count, theirs));
        }
        let copy_in = (0.25, "raw `COPY` in");
        report.compare(
            "rest_ids_per_s",
            pairs.ours(),
            "ids/s",
            pairs.ratio(),
            copy_in,
        );
        Ok(())
    }

    /// Returns the count.
    async fn measure_count(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<u64> {
        remark("counting");
        let filter = || difference(&cohorts.a_name, &cohorts.b_name);
        let (expected, _) = muster::count(&self.deployment, filter()).await?;
        let mut pairs = Pairs::default();
        for _ in 0..self.repeats {
            let (found, theirs) = self.rows.count().await?;
            check("rows counted", found, expected)?;
            let mut ours = Vec::new();
            for _ in 0..25 {
                let (found, took) = muster::count(&self.deployment, filter()).await?;
                check("members counted", found, expected)?;
                ours.push(millis(took));
            }
            pairs.push(median(&ours), millis(theirs));
        }
        let rows = (500.0, "row schema, warm");
        report.compare("count_ms", pairs.ours(), "ms", 1.0 / pairs.ratio(), rows);
        report.state("row_schema_count_ms", pairs.theirs(), "ms");
        Ok(expected)
    }

    /// The first question after a start, when nothing of the files is in memory: neither in
    /// Muster, nor in Postgres, nor in the operating system.
    async fn measure_cold_count(
        &mut self,
        report: &mut Report,
        cohorts: &Cohorts,
        expected: u64,
    ) -> Result<()> {
        remark("counting after a cold start");
        let filter = || difference(&cohorts.a_name, &cohorts.b_name);
        let mut pairs = Pairs::default();
        for _ in 0..self.repeats.min(FEW) {
            self.deployment.start_cold()?;
            let (found, ours) = muster::count(&self.deployment, filter()).await?;
            check("members counted", found, expected)?;
            self.start_cold().await?;
            let (found, theirs) = self.rows.count().await?;
            check("rows counted", found, expected)?;
            pairs.push(millis(ours), millis(theirs));
        }
        let rows = (50.0, "row schema, cold");
        report.compare(
            "count_cold_ms",
            pairs.ours(),
            "ms",
            1.0 / pairs.ratio(),
            rows,
        );
        report.state("row_schema_count_cold_ms", pairs.theirs(), "ms");
        Ok(())
    }

    async fn measure_redis(
        &mut self,
        report: &mut Report,
        cohorts: &Cohorts,
        expected: u64,
    ) -> Result<()> {
        let Some(mut redis) = Redis::start().await? else {
            remark("there is no redis-server, so it is left out");
            return Ok(());
        };
        remark("asking Redis");
        let added = redis.add("a", &cohorts.a).await?;
        redis.add("b", &cohorts.b).await?;
        let (count, counting) = redis.count("a", "b").await?;
        check("members counted by Redis", count, expected)?;
        let (read, reading) = redis.read("a", "b").await?;
        check("members read from Redis", read, expected)?;
        let added = rate(cohorts.a.len() as u64, added);
        report.state("redis_add_ids_per_s", added, "ids/s");
        report.state("redis_count_ms", millis(counting), "ms");
        report.state("redis_read_ids_per_s", rate(read, reading), "ids/s");
        Ok(())
    }

    async fn measure_sizes(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        let fifth = external_ids(&draw(cohorts.users, cohorts.users / 5, 3));
        let count = fifth.len() as f64;
        muster::ingest(&self.deployment, Import::of("fifth", &fifth)).await?;
        let mut connection = self.deployment.database("muster").await?;
        let bytes = rows::cohort_bytes(&mut connection, "fifth").await?;
        report.at_most("cohort_bytes_per_member", bytes / count, "bytes", 1.0);
        Ok(())
    }

    async fn measure_deltas(&mut self, report: &mut Report, cohorts: &Cohorts) -> Result<()> {
        remark("committing small imports");
        // A copy of the cohort, which is counted again later.
        let cohort = format!("{}-0", cohorts.a_name);
        let mut times = Vec::new();
        let before = self.rows.wal_bytes().await?;
        let deltas = DELTAS * self.repeats;
        for number in 0..deltas {
            let people = draw(cohorts.users, DELTA_IDS, 1_000 + u64::from(number));
            let (ids, import_id) = (external_ids(&people), format!("delta-{number}"));
            let took = muster::add(&self.deployment, &cohort, &import_id, ids).await?;
            times.push(millis(took));
        }
        let wal = (self.rows.wal_bytes().await? - before) / f64::from(deltas);
        report.state("delta_commit_ms_p50", median(&times), "ms");
        report.state("delta_commit_ms_p99", percentile(&times, 0.99), "ms");
        report.state("delta_wal_bytes", wal, "bytes of WAL");
        Ok(())
    }
}

/// Says on standard error what goes on.
fn remark(text: &str) {
    eprintln!("{text}");
}
