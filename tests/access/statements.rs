//! What the servers of this process say to the database: which statements a call costs is how long
//! it takes, without the noise of a clock.

use std::{
    fmt::Debug,
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, Registry, layer::Context, prelude::*};

/// The statements since they were last taken.
#[derive(Clone, Default)]
pub(crate) struct Statements(Arc<Mutex<Vec<String>>>);

/// Begins to listen, once in a process.
pub(crate) fn listen() -> Statements {
    static HEARD: LazyLock<Statements> = LazyLock::new(|| {
        let heard = Statements::default();
        let subscriber = Registry::default().with(heard.clone());
        tracing::subscriber::set_global_default(subscriber).unwrap();
        heard
    });
    HEARD.clone()
}

impl Statements {
    /// The statements heard since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "sqlx::query" {
            return;
        }
        let mut summary = Summary::default();
        event.record(&mut summary);
        // A refusal goes into the trail beside the call, at another time, whatever was asked for.
        if summary.0.contains("audit_event") {
            return;
        }
        self.0.lock().unwrap().push(summary.0);
    }
}

/// The first words of a statement, as sqlx tells them.
#[derive(Default)]
struct Summary(String);

impl Visit for Summary {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "db.statement" || field.name() == "summary" {
            self.0.push_str(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "summary" || field.name() == "db.statement" {
            self.0.push_str(&format!("{value:?}"));
        }
    }
}
