//! The numbers of a filter, all of one moment: its count, what each step leaves over, and how the
//! cohorts in it overlap.

use muster_client::{Connection, Refusal};
use muster_proto::segments::v1::{
    CohortVersion, CountFiltersRequest, Filter, FilterCount, FilterExpression,
    filter_expression::Form,
};

use super::draft::{self, Step, all_of};
use crate::view::{Count, Share};

/// Steps that a funnel shows.
const MAX_STEPS: usize = 30;

/// Cohorts whose overlap is shown: every one more doubles the counts.
const MAX_OVERLAPPING: usize = 5;

/// Intersections that are drawn.
const MAX_COLUMNS: usize = 10;

/// The numbers of a filter.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) count: Count,
    pub(crate) live: Count,
    pub(crate) filter_text: String,
    pub(crate) funnel: Vec<Stage>,
    /// Whether there are more steps than the funnel shows.
    pub(crate) funnel_is_cut: bool,
    pub(crate) overlap: Option<Overlap>,
    /// The cohorts read.
    pub(crate) cohorts: Vec<CohortVersion>,
}

/// What a step leaves over.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) text: String,
    pub(crate) remaining: Count,
    /// Of all live users.
    pub(crate) share: Share,
    /// Length of its bar, in percent.
    pub(crate) percent: u64,
    /// How many the step took away.
    pub(crate) lost: Count,
}

/// How cohorts overlap.
#[derive(Debug)]
pub(crate) struct Overlap {
    /// The cohorts, each with a letter, its name and its size.
    pub(crate) rows: Vec<Row>,
    /// Who is in exactly these cohorts, the most first.
    pub(crate) columns: Vec<Column>,
    /// How many intersections hold somebody but are not drawn.
    pub(crate) undrawn: usize,
    /// Whether there are more cohorts than are shown.
    pub(crate) is_cut: bool,
}

impl Overlap {
    /// Width of the picture.
    pub(crate) fn width(&self) -> usize {
        self.column_x(&self.columns.len()) - 6
    }

    /// Height of the picture.
    pub(crate) fn height(&self) -> usize {
        self.row_y(&self.rows.len()) - 10
    }

    /// Middle of a column.
    pub(crate) fn column_x(&self, column: &usize) -> usize {
        52 + 36 * *column
    }

    /// Middle of a row.
    pub(crate) fn row_y(&self, row: &usize) -> usize {
        134 + 26 * *row
    }
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) letter: char,
    pub(crate) partner: String,
    pub(crate) name: String,
    pub(crate) size: Count,
}

#[derive(Debug)]
pub(crate) struct Column {
    /// Which of the rows, by number.
    pub(crate) members: Vec<bool>,
    pub(crate) count: Count,
    /// Height of its bar, of 100.
    pub(crate) height: u64,
}

impl Column {
    /// The letters of the cohorts, as in “A and C”.
    pub(crate) fn letters(&self) -> String {
        let members = self.members.iter().enumerate().filter(|(_, is_in)| **is_in);
        let letters: Vec<String> = members.map(|(row, _)| letter(row).to_string()).collect();
        match letters.as_slice() {
            [only] => format!("only {only}"),
            several => several.join(" and "),
        }
    }

    /// The count in few characters, for the picture.
    pub(crate) fn short(&self) -> String {
        match self.count.0 {
            count @ 0..1_000 => count.to_string(),
            count @ 1_000..10_000 => format!("{}.{}k", count / 1_000, count / 100 % 10),
            count @ 10_000..1_000_000 => format!("{}k", count / 1_000),
            count @ 1_000_000..10_000_000 => {
                format!("{}.{}M", count / 1_000_000, count / 100_000 % 10)
            }
            count => format!("{}M", count / 1_000_000),
        }
    }

    /// The first and the last row that it is in.
    pub(crate) fn ends(&self) -> (usize, usize) {
        let first = self.members.iter().position(|is_in| *is_in);
        let last = self.members.iter().rposition(|is_in| *is_in);
        (first.unwrap_or(0), last.unwrap_or(0))
    }
}

fn letter(row: usize) -> char {
    char::from(b'A' + u8::try_from(row).expect("there are few rows"))
}

/// Asks how the servers understand a text.
pub(crate) async fn understand(
    servers: &Connection,
    workspace: &str,
    text: &str,
) -> Result<FilterCount, Refusal> {
    let text = FilterExpression {
        form: Some(Form::Text(text.to_owned())),
    };
    let request = CountFiltersRequest {
        workspace: workspace.to_owned(),
        filters: vec![text],
        ..Default::default()
    };
    let counted = servers
        .segments()
        .count_filters(request)
        .await?
        .into_inner();
    Ok(counted.counts.into_iter().next().unwrap_or_default())
}

/// Counts a filter, given as its steps.
pub(crate) async fn count(
    servers: &Connection,
    workspace: &str,
    steps: &[Step],
) -> Result<Figures, Refusal> {
    let whole = |steps: &[Step]| all_of(steps.iter().map(|step| step.filter.clone()).collect());
    let stages = steps.len().min(MAX_STEPS);
    let (cohorts, is_cut) = chosen(steps);
    // First the whole, whose errors the person shall see; then the steps, then the intersections.
    let mut filters = vec![whole(steps)];
    filters.extend(steps[..stages].iter().map(|step| step.filter.clone()));
    filters.extend((1..=stages).map(|end| whole(&steps[..end])));
    let masks = intersections(cohorts.len());
    filters.truncate(1 + 2 * stages);
    filters.extend(masks.iter().map(|mask| intersection(&cohorts, *mask)));
    let counts = counts(servers, workspace, filters).await?;
    let [first, rest @ ..] = counts.counts.as_slice() else {
        return Err(tonic::Status::internal("the servers counted nothing").into());
    };
    let (alone, rest) = rest.split_at(stages.min(rest.len()));
    let (after, exact) = rest.split_at(stages.min(rest.len()));
    let live = counts.live_user_count;
    let mut before = live;
    let funnel = alone.iter().zip(after).map(|(step, after)| {
        let lost = before.saturating_sub(after.user_count);
        before = after.user_count;
        Stage {
            text: step.filter_text.clone(),
            remaining: Count(after.user_count),
            share: Share {
                part: after.user_count,
                whole: live,
            },
            percent: percent(after.user_count, live),
            lost: Count(lost),
        }
    });
    let exact = exact.iter().map(|it| it.user_count);
    Ok(Figures {
        count: Count(first.user_count),
        live: Count(live),
        filter_text: first.filter_text.clone(),
        funnel: funnel.collect(),
        funnel_is_cut: steps.len() > stages,
        overlap: overlap(
            &cohorts,
            &masks,
            &exact.collect::<Vec<u64>>(),
            is_cut,
            &counts.cohort_versions,
        ),
        cohorts: counts.cohort_versions,
    })
}

async fn counts(
    servers: &Connection,
    workspace: &str,
    filters: Vec<Filter>,
) -> Result<muster_proto::segments::v1::CountFiltersResponse, Refusal> {
    let filters = filters.into_iter().map(|filter| FilterExpression {
        form: Some(Form::Tree(filter)),
    });
    let request = CountFiltersRequest {
        workspace: workspace.to_owned(),
        filters: filters.collect(),
        ..Default::default()
    };
    Ok(servers
        .segments()
        .count_filters(request)
        .await?
        .into_inner())
}

fn percent(part: u64, whole: u64) -> u64 {
    match (part, whole) {
        (0, _) | (_, 0) => 0,
        // Whoever is left can be seen.
        _ => (u128::from(part) * 100 / u128::from(whole)).clamp(1, 100) as u64,
    }
}

/// The cohorts in these steps, partner and partner's id, and whether there are more than are shown.
fn chosen(steps: &[Step]) -> (Vec<(String, String)>, bool) {
    let mut found = Vec::new();
    let mut pending: Vec<&Filter> = steps.iter().rev().map(|step| &step.filter).collect();
    while let Some(filter) = pending.pop() {
        for cohort in draft::cohorts_in(filter, &mut pending) {
            if !found.contains(&cohort) {
                found.push(cohort);
            }
        }
    }
    let is_cut = found.len() > MAX_OVERLAPPING;
    found.truncate(MAX_OVERLAPPING);
    (found, is_cut)
}

/// Every choice of some of so many cohorts, as bits; none for a single one, which overlaps nothing.
fn intersections(cohorts: usize) -> Vec<u32> {
    if cohorts < 2 {
        return Vec::new();
    }
    (1..1 << cohorts).collect()
}

fn is_in(mask: u32, row: usize) -> bool {
    mask & (1 << row) != 0
}

/// People in exactly these of the cohorts.
fn intersection(cohorts: &[(String, String)], mask: u32) -> Filter {
    let cohorts = cohorts.iter().enumerate();
    let parts = cohorts.map(|(row, (partner, id))| draft::cohort(partner, id, is_in(mask, row)));
    all_of(parts.collect())
}

fn overlap(
    cohorts: &[(String, String)],
    masks: &[u32],
    exact: &[u64],
    is_cut: bool,
    versions: &[CohortVersion],
) -> Option<Overlap> {
    if masks.is_empty() || masks.len() != exact.len() {
        return None;
    }
    let rows = cohorts.iter().enumerate().map(|(row, (partner, id))| {
        let version = versions
            .iter()
            .find(|it| it.partner == *partner && it.cohort_id == *id);
        let within = masks
            .iter()
            .zip(exact)
            .filter(|(mask, _)| is_in(**mask, row));
        Row {
            letter: letter(row),
            partner: partner.clone(),
            name: version.map_or_else(|| id.clone(), |it| it.name.clone()),
            size: Count(within.map(|(_, count)| count).sum()),
        }
    });
    let mut columns: Vec<(u32, u64)> = masks.iter().copied().zip(exact.iter().copied()).collect();
    columns.retain(|(_, count)| *count > 0);
    columns.sort_by_key(|(mask, count)| (std::cmp::Reverse(*count), *mask));
    let undrawn = columns.len().saturating_sub(MAX_COLUMNS);
    columns.truncate(MAX_COLUMNS);
    let most = columns.first().map_or(0, |(_, count)| *count);
    let columns = columns.iter().map(|(mask, count)| Column {
        members: (0..cohorts.len()).map(|row| is_in(*mask, row)).collect(),
        count: Count(*count),
        height: percent(*count, most),
    });
    Some(Overlap {
        rows: rows.collect(),
        columns: columns.collect(),
        undrawn,
        is_cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_adds_up_to_the_cohorts() {
        let cohorts: Vec<_> = ["a", "b", "c"]
            .map(|id| ("tinyclues".to_owned(), id.to_owned()))
            .into();
        let masks = intersections(3);
        assert_eq!(masks, [1, 2, 3, 4, 5, 6, 7]);
        // a, b, a and b, c, a and c, b and c, all.
        let exact = vec![5, 0, 3, 0, 0, 2, 1_000];
        let overlap = overlap(&cohorts, &masks, &exact, false, &[]).unwrap();
        let sizes: Vec<u64> = overlap.rows.iter().map(|row| row.size.0).collect();
        assert_eq!(sizes, [1_008, 1_005, 1_002]);
        let drawn: Vec<_> = overlap
            .columns
            .iter()
            .map(|it| (it.letters(), it.height))
            .collect();
        let expected = [
            ("A and B and C", 100),
            ("only A", 1),
            ("A and B", 1),
            ("B and C", 1),
        ];
        assert_eq!(
            drawn,
            expected.map(|(letters, height)| (letters.to_owned(), height))
        );
        assert!(super::overlap(&cohorts[..1], &intersections(1), &[], false, &[]).is_none());
    }

    #[test]
    fn each_cohort_is_taken_once_and_no_more_than_can_be_drawn() {
        let step = |id: &str| Step {
            filter: draft::cohort("tinyclues", id, true),
            conditions: Vec::new(),
        };
        let steps: Vec<Step> = ["a", "b", "a", "c", "d", "e", "f"].map(step).into();
        let (found, is_cut) = chosen(&steps);
        let ids: Vec<&str> = found.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!((ids, is_cut), (vec!["a", "b", "c", "d", "e"], true));
    }
}
