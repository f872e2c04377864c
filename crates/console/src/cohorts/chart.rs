//! Pictures of how a cohort grew: a small line for lists, and a chart of its versions.

use muster_proto::ingest::v1::CohortVersion;

use crate::view::{Count, When};

/// Width of either picture.
const WIDTH: u64 = 600;

/// Height of a small line.
const SPARK_HEIGHT: u64 = 100;

/// Height of the curve of sizes.
const SIZE_HEIGHT: u64 = 120;

/// Where the line is that added people stand above and removed ones hang below.
const MIDDLE: u64 = 180;

/// Height of the largest change.
const CHANGE_HEIGHT: u64 = 45;

fn scaled(part: u64, whole: u64, size: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(size) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(size).min(size)
}

/// As [`scaled`], but whoever is there can be seen.
fn visible(part: u64, whole: u64, size: u64) -> u64 {
    scaled(part, whole, size).max(u64::from(part > 0) * 2)
}

/// Sizes as a line: a size stays until the next one.
fn steps(sizes: &[u64], height: u64) -> String {
    let most = sizes.iter().copied().max().unwrap_or(0);
    let slots = sizes.len() as u64;
    let mut line = String::new();
    for (slot, size) in (0..).zip(sizes) {
        let y = height - scaled(*size, most, height);
        let (from, to) = (WIDTH * slot / slots, WIDTH * (slot + 1) / slots);
        line.push_str(&format!("{from},{y} {to},{y} "));
    }
    line.trim_end().to_owned()
}

/// The sizes of the last versions as a small line.
pub(crate) struct Spark {
    pub(crate) line: String,
    pub(crate) versions: usize,
    pub(crate) first: Count,
    pub(crate) last: Count,
}

impl Spark {
    /// Of sizes, the oldest first; `None` if there are none.
    pub(crate) fn of(sizes: &[u64]) -> Option<Self> {
        Some(Self {
            line: steps(sizes, SPARK_HEIGHT),
            versions: sizes.len(),
            first: Count(*sizes.first()?),
            last: Count(*sizes.last()?),
        })
    }
}

/// What the versions of a cohort were: size, added, removed.
pub(crate) struct Chart {
    /// The sizes as a line.
    pub(crate) line: String,
    /// The same as the outline of an area.
    pub(crate) area: String,
    pub(crate) bars: Vec<Bar>,
    pub(crate) most: Count,
    pub(crate) most_changed: Count,
    pub(crate) from: When,
    pub(crate) to: When,
}

/// How many a version added and removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) x: u64,
    pub(crate) width: u64,
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

impl Bar {
    /// Upper end of what was added.
    pub(crate) fn top(&self) -> u64 {
        MIDDLE - self.added
    }
}

impl Chart {
    pub(crate) const MIDDLE: u64 = MIDDLE;

    /// Of versions, the newest first; `None` if there are none.
    pub(crate) fn of(versions: &[CohortVersion]) -> Option<Self> {
        let (newest, oldest) = (versions.first()?, versions.last()?);
        let sizes: Vec<u64> = versions.iter().rev().map(|it| it.member_count).collect();
        let changes = versions
            .iter()
            .map(|it| it.added_count.max(it.removed_count));
        let most_changed = changes.max().unwrap_or(0);
        let slots = versions.len() as u64;
        let bars = (0..).zip(versions.iter().rev()).map(|(slot, version)| {
            let (from, to) = (WIDTH * slot / slots, WIDTH * (slot + 1) / slots);
            // Few bars are not to be broad ones.
            let width = ((to - from) * 3 / 4).clamp(1, 40);
            Bar {
                x: from + (to - from).saturating_sub(width) / 2,
                width,
                added: visible(version.added_count, most_changed, CHANGE_HEIGHT),
                removed: visible(version.removed_count, most_changed, CHANGE_HEIGHT),
            }
        });
        let line = steps(&sizes, SIZE_HEIGHT);
        Some(Self {
            area: format!("0,{SIZE_HEIGHT} {line} {WIDTH},{SIZE_HEIGHT}"),
            line,
            bars: bars.collect(),
            most: Count(sizes.into_iter().max()?),
            most_changed: Count(most_changed),
            from: When::from(&oldest.publish_time),
            to: When::from(&newest.publish_time),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_drawn_to_scale_in_the_order_of_time() {
        assert_eq!(
            Spark::of(&[0, 100, 50]).unwrap().line,
            "0,100 200,100 200,0 400,0 400,50 600,50"
        );
        assert_eq!(Spark::of(&[0]).unwrap().line, "0,100 600,100");
        assert!(Spark::of(&[]).is_none());
    }

    #[test]
    fn a_change_is_seen_however_small_and_nothing_where_there_was_none() {
        let version = |member_count, added_count, removed_count| CohortVersion {
            member_count,
            added_count,
            removed_count,
            ..CohortVersion::default()
        };
        let newest_first = [version(1_000, 0, 1), version(1_001, 1_001, 0)];
        let chart = Chart::of(&newest_first).unwrap();
        let changes: Vec<_> = chart.bars.iter().map(|it| (it.added, it.removed)).collect();
        assert_eq!(changes, [(45, 0), (0, 2)]);
        assert_eq!(
            (chart.bars[0].x, chart.bars[0].width, chart.bars[0].top()),
            (130, 40, 135)
        );
        assert_eq!(
            (chart.most, chart.most_changed),
            (Count(1_001), Count(1_001))
        );
        // More versions than the picture is wide would still be bars.
        let many = vec![version(1, 1, 0); 700];
        assert!(
            Chart::of(&many)
                .unwrap()
                .bars
                .iter()
                .all(|it| it.width == 1)
        );
        assert!(Chart::of(&[]).is_none());
    }
}
