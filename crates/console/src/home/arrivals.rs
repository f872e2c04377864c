//! What came in, by cohort: a partner that speaks REST sends an export in many imports.

use muster_proto::ingest::v1::{Import, ImportState, ListImportsRequest};
use tonic::Status;

use super::{TODAY, ago};
use crate::{
    cohorts,
    session::Visitor,
    view::{Count, Share, When},
};

/// Imports that are looked through.
const IMPORTS: i32 = 1_000;

/// Cohorts that are listed.
const COHORTS: usize = 25;

/// What came in.
pub(super) struct Arrivals {
    pub(super) imports: Count,
    pub(super) received: Count,
    pub(super) matched: Share,
    /// By cohort, the last import first.
    pub(super) cohorts: Vec<Arrival>,
    /// Cohorts that are not listed.
    pub(super) unlisted: usize,
    /// Whether there are more imports than were looked through.
    pub(super) is_cut: bool,
}

impl Arrivals {
    /// How many cohorts something came into.
    pub(super) fn all_cohorts(&self) -> Count {
        Count((self.cohorts.len() + self.unlisted) as u64)
    }
}

/// What came into one cohort.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) partner: String,
    cohort_id: String,
    imports: u64,
    received: u64,
    unmatched: u64,
    /// Of these the outcomes are known.
    settled: u64,
    joined: u64,
    left: u64,
    /// Whether an import runs.
    pub(super) runs: bool,
    last: Option<prost_types::Timestamp>,
}

impl Arrival {
    pub(super) fn last(&self) -> When {
        When::from(&self.last)
    }

    pub(super) fn imports(&self) -> Count {
        Count(self.imports)
    }

    pub(super) fn received(&self) -> Count {
        Count(self.received)
    }

    pub(super) fn joined(&self) -> Count {
        Count(self.joined)
    }

    pub(super) fn left(&self) -> Count {
        Count(self.left)
    }

    pub(super) fn unmatched(&self) -> Count {
        Count(self.unmatched)
    }

    fn add(&mut self, import: &Import) {
        self.imports += 1;
        self.received += import.received;
        self.runs |= import.state() == ImportState::Open;
        let Some(summary) = &import.summary else {
            return;
        };
        let outcomes = summary.outcomes.unwrap_or_default();
        self.settled += summary.received;
        self.unmatched += outcomes.unknown + outcomes.device_of_identified_user + outcomes.invalid;
        if import.state() == ImportState::Committed {
            self.joined += summary.members_added;
            self.left += summary.members_removed;
        }
    }
}

/// What came into the workspace today.
pub(super) async fn arrivals(visitor: &Visitor) -> Result<Arrivals, Status> {
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        page_size: IMPORTS,
        since: Some(ago(TODAY)),
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_imports(request).await?;
    let listed = listed.into_inner();
    let is_cut = !listed.next_page_token.is_empty();
    Ok(Arrivals {
        is_cut,
        ..summed(&visitor.workspace, &listed.imports)
    })
}

/// Imports, newest first, by cohort.
fn summed(workspace: &str, imports: &[Import]) -> Arrivals {
    let mut cohorts: Vec<Arrival> = Vec::new();
    for import in imports {
        let known = cohorts
            .iter()
            .position(|it| it.partner == import.partner && it.cohort_id == import.cohort_id);
        let known = known.unwrap_or_else(|| {
            cohorts.push(Arrival {
                path: cohorts::path(workspace, &import.partner, &import.cohort_id),
                name: import.cohort_name.clone(),
                partner: import.partner.clone(),
                cohort_id: import.cohort_id.clone(),
                last: import.create_time,
                ..Arrival::default()
            });
            cohorts.len() - 1
        });
        cohorts[known].add(import);
    }
    let sum = |of: fn(&Arrival) -> u64| cohorts.iter().map(of).sum::<u64>();
    let settled = sum(|it| it.settled);
    Arrivals {
        imports: Count(imports.len() as u64),
        received: Count(sum(|it| it.received)),
        matched: Share {
            part: settled.saturating_sub(sum(|it| it.unmatched)),
            whole: settled,
        },
        unlisted: cohorts.len().saturating_sub(COHORTS),
        is_cut: false,
        cohorts: {
            cohorts.truncate(COHORTS);
            cohorts
        },
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::ingest::v1::{ImportSummary, OutcomeCounts};

    use super::*;

    #[test]
    fn the_calls_of_an_export_are_one_row() {
        let import = |cohort: &str, state: ImportState, added, unknown| Import {
            partner: "tinyclues".to_owned(),
            cohort_id: cohort.to_owned(),
            received: added + unknown,
            state: state.into(),
            summary: (state != ImportState::Open).then(|| ImportSummary {
                received: added + unknown,
                outcomes: Some(OutcomeCounts {
                    added,
                    unknown,
                    ..Default::default()
                }),
                members_added: added,
                ..Default::default()
            }),
            ..Default::default()
        };
        use ImportState::{AwaitingConfirmation, Committed, Open};
        let newest_first = [
            import("a", Open, 10, 0),
            import("b", AwaitingConfirmation, 4, 0),
            import("a", Committed, 90, 10),
        ];
        let found = summed("shop", &newest_first);
        let rows: Vec<_> = found
            .cohorts
            .iter()
            .map(|it| (&*it.cohort_id, it.imports, it.received, it.joined, it.runs))
            .collect();
        assert_eq!(rows, [("a", 2, 110, 90, true), ("b", 1, 4, 0, false)]);
        assert_eq!((found.imports, found.received), (Count(3), Count(114)));
        assert_eq!(found.matched.to_string(), "90.3 %");
    }
}
