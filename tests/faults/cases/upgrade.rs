//! The schema while it is migrated, and when it is that of another build.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    str::FromStr as _,
    time::{Duration, Instant},
};

use muster_domain::import::Mode;
use muster_testbed::process::{self, Done};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::RngExt as _;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, postgres::PgConnectOptions};
use tokio::task::block_in_place;

use crate::{
    node::{self, Deployment},
    oracle::{self, List},
    suite::{Plan, Tally},
};

/// Longest time from the kill of a migrator until the next one is done, or from a signal to the
/// end of the migrator.
const LIMIT: Duration = Duration::from_secs(10);

/// A migrator dies by SIGKILL, or is told to end, in the middle of a migration: the next one
/// completes what it began, also if the session of the first still runs.
pub(crate) async fn migration_killed(mut plan: Plan) -> Tally {
    let mut tally = Tally::default();
    let (database, expected) = reference().await;
    for round in 0..plan.rounds {
        database.empty().await;
        let step = plan.rng.random_range(1..=expected.steps);
        let mut hold = database.hold_at(step).await;
        let directory = process::directory();
        // Ends with 0 if it is told to stop before it serves, a migration with 1.
        let (mut command, ends_with) = match plan.rng.random_bool(0.5) {
            true => (migrate(&database.url), 1),
            false => (up(&database.url, directory.path()), 0),
        };
        let mut migrator = Doomed::spawn(&mut command);
        match plan.rng.random_range(0..4) {
            // At any moment, of its start, too.
            0 => {
                let millis = plan.rng.random_range(0..300);
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            _ => database.until_held(step).await,
        }
        let held = database.is_held(step).await;
        let told = Instant::now();
        if plan.rng.random_bool(0.3) && held {
            migrator.signal(Signal::SIGTERM);
            let ended = block_in_place(|| process::wait(&mut migrator.0, LIMIT));
            assert_eq!(ended.code(), Some(ends_with), "{command:?}");
        } else {
            migrator.signal(Signal::SIGKILL);
            block_in_place(|| process::wait(&mut migrator.0, LIMIT));
        }
        tally.faults += 1;
        // Otherwise its session is still at it, and must end by itself.
        if round % 5 != 0 || !held {
            hold = hold.release().await;
        }
        let mut again = migrate(&database.url);
        block_in_place(|| process::run_within(LIMIT, &mut again, b"").code(0));
        tally.recovered(told.elapsed());
        drop(hold);
        assert_eq!(
            database.schema().await,
            expected.schema,
            "after step {step}"
        );
        if round % 5 == 0 {
            let node = node::Node::start(&["keys"], &database.url, &[]);
            drop(node);
        }
        tally.rounds += 1;
    }
    tally
}

/// Two migrators, or five, at the same moment: each does its work or waits for who does it.
pub(crate) async fn migrators_at_once(mut plan: Plan) -> Tally {
    let mut tally = Tally::default();
    let (database, expected) = reference().await;
    for round in 0..plan.rounds {
        database.empty().await;
        let count = if plan.rng.random_bool(0.5) { 2 } else { 5 };
        let step = plan.rng.random_range(1..=expected.steps);
        let hold = database.hold_at(step).await;
        let migrators: Vec<_> = (0..count)
            .map(|_| {
                let mut command = migrate(&database.url);
                command.args(["--output", "json"]);
                tokio::task::spawn_blocking(move || process::run(&mut command, b""))
            })
            .collect();
        database.until_held(step).await;
        database.until_waiting(count - 1).await;
        if round == 0 {
            // Longer than a statement of any other session waits for a lock.
            let begun = Instant::now();
            let longer = Duration::from_millis(5_500);
            block_in_place(|| process::until("they wait", || begun.elapsed() > longer));
            database.until_waiting(count - 1).await;
        }
        let released = Instant::now();
        let hold = hold.release().await;
        let mut applied = Vec::new();
        for migrator in migrators {
            let done: Done = migrator.await.unwrap().code(0);
            let list = done.json()["applied"].as_array().unwrap().clone();
            applied.extend(list.iter().map(|version| version.as_i64().unwrap()));
        }
        tally.recovered(released.elapsed());
        let distinct: BTreeSet<i64> = applied.iter().copied().collect();
        assert_eq!(distinct.len(), applied.len(), "applied twice: {applied:?}");
        assert_eq!(distinct.len(), expected.migrations, "{applied:?}");
        assert_eq!(database.schema().await, expected.schema);
        drop(hold);
        tally.faults += count - 1;
        tally.rounds += 1;
    }
    tally
}

/// A schema that is older, newer or not of this build: nothing starts on it, nothing is changed, and
/// what to do is said. A process that runs already goes on.
pub(crate) async fn schema_of_another_build(mut plan: Plan) -> Tally {
    let mut tally = Tally::default();
    let (half, whole) = (Bench::new().await, Bench::migrated().await);
    for _ in 0..plan.rounds {
        let (database, advice, migrates) = match plan.rng.random_range(0..3) {
            0 => {
                half_migrate(&half, &mut plan).await;
                (&half, "run `muster migrate`", true)
            }
            1 => {
                whole.execute(FROM_THE_FUTURE).await;
                (&whole, "run a newer build", false)
            }
            _ => {
                let version = plan.rng.random_range(1..=4);
                whole.execute(&tamper(version)).await;
                (&whole, "not the one this build knows", false)
            }
        };
        let before = database.schema().await;
        let directory = process::directory();
        let begun = Instant::now();
        block_in_place(|| {
            let mut commands = vec![serve(&database.url)];
            if !migrates {
                commands.push(migrate(&database.url));
                commands.push(up(&database.url, directory.path()));
            }
            for mut command in commands {
                let done = process::run_within(LIMIT, &mut command, b"");
                done.code(1).says(&[advice]);
            }
        });
        tally.recovered(begun.elapsed());
        assert!(!directory.path().join("operator.token").exists());
        assert_eq!(database.schema().await, before, "a refusal changes nothing");
        match advice {
            "run a newer build" => whole.execute(BACK).await,
            "not the one this build knows" => whole.execute(MEND).await,
            _ => {}
        }
        tally.faults += 1;
        tally.rounds += 1;
    }
    schema_moves_on(&mut plan, &mut tally).await;
    tally
}

const FROM_THE_FUTURE: &str = "
    ALTER TABLE cohort ADD COLUMN from_the_future text DEFAULT 'x';
    ALTER TABLE cohort_import ADD COLUMN from_the_future int NOT NULL DEFAULT 7;
    CREATE TABLE from_the_future (workspace_id bigint NOT NULL);
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
    VALUES (9999, 'from the future', true, '\\x00', 0)";

const BACK: &str = "
    ALTER TABLE cohort DROP COLUMN from_the_future;
    ALTER TABLE cohort_import DROP COLUMN from_the_future;
    DROP TABLE from_the_future;
    DELETE FROM _sqlx_migrations WHERE version = 9999";

/// Makes an applied migration one of another build.
fn tamper(version: i64) -> String {
    format!("UPDATE _sqlx_migrations SET checksum = '\\x00' || checksum WHERE version = {version}")
}

const MEND: &str = "UPDATE _sqlx_migrations SET checksum = substring(checksum FROM 2)
                    WHERE length(checksum) > 48";

/// The next build migrates while this one serves.
async fn schema_moves_on(plan: &mut Plan, tally: &mut Tally) {
    const USERS: usize = 200;
    let mut muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let database = Bench::at(muster.database_url.clone());
    for moved in [false, true] {
        if moved {
            database.execute(FROM_THE_FUTURE).await;
            tally.faults += 1;
        }
        for mode in [Mode::Delta, Mode::Replace] {
            let list = List::draw(&mut plan.rng, USERS, USERS / 2);
            let import_id = oracle::import_id(&mut plan.rng);
            let cohort = if mode == Mode::Delta {
                &import_id
            } else {
                "moved"
            };
            let upload = oracle::upload(cohort, mode, &import_id);
            let partner = muster.shop.partner();
            let outcome = upload.run(&partner, list.source(), &mut |_| {}).await;
            list.check_committed(&outcome.unwrap());
            oracle::check_published(&muster.shop, cohort, &list.known).await;
        }
    }
    assert!(muster.node.runs());
    // What it does not do is start again.
    assert_eq!(muster.node.terminate().0, Some(0));
    let done = block_in_place(|| process::run_within(LIMIT, &mut muster.node.command(), b""));
    done.code(1).says(&["run a newer build"]);
    database.execute(BACK).await;
    muster.node.start_again();
    oracle::check_versions(&muster.store).await;
}

/// Leaves an empty database as a migration that was killed does.
async fn half_migrate(database: &Bench, plan: &mut Plan) {
    database.empty().await;
    let step = plan.rng.random_range(1..=100);
    let hold = database.hold_at(step).await;
    let migrator = Doomed::spawn(&mut migrate(&database.url));
    database.until_held(step).await;
    migrator.signal(Signal::SIGKILL);
    drop(hold);
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE application_name = 'muster' AND datname = current_database()";
    database.until(count, 0, "its session ends").await;
}

fn migrate(url: &str) -> Command {
    let mut command = process::command(node::program());
    command.arg("migrate").env("DATABASE_URL", url);
    command
}

fn serve(url: &str) -> Command {
    let mut command = process::command(node::program());
    command
        .args(["serve", "keys", "--grpc-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", url);
    command
}

fn up(url: &str, data_dir: &Path) -> Command {
    let mut command = process::command(node::program());
    command
        .args(["up", "--grpc-listen", "127.0.0.1:0"])
        .args([
            "--rest-listen",
            "127.0.0.1:0",
            "--console-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(data_dir)
        .env("DATABASE_URL", url);
    command
}

/// A process that is ended when this is dropped, unless it has ended before.
struct Doomed(Child);

impl Doomed {
    fn spawn(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a complete migration is.
struct Reference {
    /// Commands that change the schema.
    steps: i64,
    migrations: usize,
    schema: String,
}

/// A database to migrate, and what it then is.
async fn reference() -> (Bench, Reference) {
    let database = Bench::new().await;
    drop(database.hold_at(0).await);
    block_in_place(|| process::run(&mut migrate(&database.url), b"").code(0));
    let migrations = database
        .number("SELECT count(*) FROM _sqlx_migrations")
        .await;
    let reference = Reference {
        steps: database.number("SELECT last_value FROM fault.step").await,
        migrations: migrations.try_into().unwrap(),
        schema: database.schema().await,
    };
    assert!(reference.steps > 100, "{} steps", reference.steps);
    (database, reference)
}

/// Counts commands that change the schema, whatever becomes of their transaction, and keeps
/// the one that is asked for waiting while somebody holds the lock.
const HOLD: &str = "
    CREATE SCHEMA fault;
    CREATE SEQUENCE fault.step;
    CREATE FUNCTION fault.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('statement_timeout') <> '0' THEN
            RAISE EXCEPTION 'a migration that takes long would be cut off';
        END IF;
        IF nextval('fault.step') = STEP THEN
            WHILE NOT pg_try_advisory_xact_lock(4242) LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
        END IF;
    END $$;
    SELECT pg_advisory_lock(4242);
    CREATE EVENT TRIGGER hold ON ddl_command_end EXECUTE FUNCTION fault.hold();";

const STEPS_REACHED: &str = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM fault.step";

/// A session that holds up the migration; dropping it ends that.
struct Hold(PgConnection);

impl Hold {
    /// Holds nothing up any more; returns when that is so.
    async fn release(mut self) -> Self {
        let release = "SELECT pg_advisory_unlock_all()";
        sqlx::raw_sql(release).execute(&mut self.0).await.unwrap();
        self
    }
}

/// A database to migrate.
struct Bench {
    url: String,
}

impl Bench {
    async fn new() -> Self {
        Self::at(muster_testbed::empty_database().await)
    }

    async fn migrated() -> Self {
        Self::at(muster_testbed::database().await)
    }

    fn at(url: String) -> Self {
        Self { url }
    }

    async fn connect(&self) -> PgConnection {
        let options = PgConnectOptions::from_str(&self.url).unwrap();
        options.connect().await.unwrap()
    }

    async fn execute(&self, statements: &str) {
        let statements = AssertSqlSafe(statements.to_owned());
        let mut connection = self.connect().await;
        sqlx::raw_sql(statements)
            .execute(&mut connection)
            .await
            .unwrap();
    }

    async fn number(&self, query: &'static str) -> i64 {
        muster_testbed::number(&mut self.connect().await, query).await
    }

    /// Holds a migration up at its `step`-th command.
    async fn hold_at(&self, step: i64) -> Hold {
        let mut connection = self.connect().await;
        let statements = HOLD.replace("STEP", &step.to_string());
        let statements = sqlx::raw_sql(AssertSqlSafe(statements));
        statements.execute(&mut connection).await.unwrap();
        Hold(connection)
    }

    async fn is_held(&self, step: i64) -> bool {
        self.number(STEPS_REACHED).await == step
    }

    async fn until_held(&self, step: i64) {
        let what = "a migrator reaches the step";
        self.until(STEPS_REACHED, step, what).await;
    }

    /// Waits until so many migrators wait for another one.
    async fn until_waiting(&self, count: u32) {
        let query = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                     WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";
        self.until(query, i64::from(count), "the others wait").await;
    }

    /// Waits until a query answers this number.
    async fn until(&self, query: &'static str, answer: i64, what: &str) {
        let mut connection = self.connect().await;
        let polls = async {
            while muster_testbed::number(&mut connection, query).await != answer {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let polls = tokio::time::timeout(process::PATIENCE, polls).await;
        polls.unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    /// The schema and what is said to have made it, as a digest.
    async fn schema(&self) -> String {
        let query = "
            SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (
                SELECT format('%s %s %s %s %s', table_name, column_name, data_type, is_nullable,
                              column_default) AS line
                FROM information_schema.columns WHERE table_schema = 'public'
                UNION ALL SELECT conrelid::regclass || ' ' || conname || pg_get_constraintdef(oid)
                FROM pg_constraint WHERE connamespace = 'public'::regnamespace
                UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
                UNION ALL SELECT proname || prosrc FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace
                UNION ALL SELECT objoid::regclass || ' ' || objsubid || ' ' || description
                FROM pg_description JOIN pg_class c ON c.oid = objoid
                WHERE classoid = 'pg_class'::regclass AND relnamespace = 'public'::regnamespace
            ) AS lines";
        let mut connection = self.connect().await;
        let schema: Option<String> = sqlx::query_scalar(query)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let query = "SELECT md5(string_agg(version || ' ' || success || ' ' || checksum::text, ','
                                           ORDER BY version)) FROM _sqlx_migrations";
        // There is none before the first migration.
        let applied: Option<String> = sqlx::query_scalar(query)
            .fetch_one(&mut connection)
            .await
            .unwrap_or_default();
        format!("{schema:?} {applied:?}")
    }

    /// Drops everything in it, once nobody uses it any more.
    async fn empty(&self) {
        self.execute(
            "DROP EVENT TRIGGER IF EXISTS hold;
             DROP SCHEMA IF EXISTS fault CASCADE;
             DROP SCHEMA public CASCADE;
             CREATE SCHEMA public",
        )
        .await;
    }
}
