//! What became of every identifier of an upload.

use muster_proto::ingest::v1::{Import, ImportMode, ImportState, ImportSummary, OutcomeCounts};
use time::Duration;

use crate::view::{self, Count, Share};

/// Length of the bar.
const LENGTH: u64 = 1_000;

/// Length of its shortest part: whoever is there can be seen.
const SHORTEST: u64 = 6;

/// Calls with pauses shorter than this belong to one upload.
const PAUSE: Duration = Duration::minutes(10);

/// How many identifiers ended how, as a bar and as numbers that add up.
pub(crate) struct Outcomes {
    pub(crate) received: Count,
    /// How many matched nobody.
    pub(crate) unmatched: Count,
    pub(crate) matched: Share,
    pub(crate) parts: Vec<Part>,
}

/// One outcome that identifiers had.
#[derive(Debug)]
pub(crate) struct Part {
    /// What it is drawn as.
    pub(crate) class: &'static str,
    /// What it is called.
    pub(crate) words: &'static str,
    /// What that means, or what to do about it.
    pub(crate) help: &'static str,
    pub(crate) count: Count,
    pub(crate) share: Share,
    pub(crate) x: u64,
    pub(crate) width: u64,
}

/// How many of so many identifiers named no user that a cohort can hold.
fn unmatched(counts: &OutcomeCounts) -> u64 {
    counts.unknown + counts.device_of_identified_user + counts.invalid
}

impl Outcomes {
    /// Of the sum of some summaries.
    pub(crate) fn of<'a>(summaries: impl Iterator<Item = &'a ImportSummary>) -> Self {
        let mut received = 0;
        let mut sum = OutcomeCounts::default();
        for summary in summaries {
            received += summary.received;
            let counts = summary.outcomes.unwrap_or_default();
            sum.added += counts.added;
            sum.already_member += counts.already_member;
            sum.removed += counts.removed;
            sum.not_member += counts.not_member;
            sum.unknown += counts.unknown;
            sum.device_of_identified_user += counts.device_of_identified_user;
            sum.duplicate += counts.duplicate;
            sum.superseded += counts.superseded;
            sum.invalid += counts.invalid;
        }
        Self {
            received: Count(received),
            unmatched: Count(unmatched(&sum)),
            matched: Share {
                part: received.saturating_sub(unmatched(&sum)),
                whole: received,
            },
            parts: parts(&sum, received),
        }
    }
}

fn parts(counts: &OutcomeCounts, received: u64) -> Vec<Part> {
    let all = [
        (
            "added",
            "Joined",
            "Their user became a member.",
            counts.added,
        ),
        (
            "kept",
            "Were in it already",
            "Their user stays a member.",
            counts.already_member,
        ),
        (
            "removed",
            "Left",
            "Their user is no member any more.",
            counts.removed,
        ),
        (
            "idle",
            "Were not in it",
            "To be removed, but not a member.",
            counts.not_member,
        ),
        (
            "idle",
            "Named twice",
            "The upload names their user already, with the same effect.",
            counts.duplicate,
        ),
        (
            "idle",
            "Overridden",
            "A later change in the same upload has the last word.",
            counts.superseded,
        ),
        (
            "unknown",
            "Unknown",
            "Nobody in the directory has this identifier. Write the user into the directory, or ask the partner which ids it sends.",
            counts.unknown,
        ),
        (
            "device",
            "Device of an identified user",
            "The device belongs to somebody with an external id: the partner should send that.",
            counts.device_of_identified_user,
        ),
        (
            "invalid",
            "Malformed",
            "Empty, longer than 512 bytes, or with control characters.",
            counts.invalid,
        ),
    ];
    let present: Vec<_> = all.into_iter().filter(|(.., count)| *count > 0).collect();
    let mut widths: Vec<u64> = present
        .iter()
        .map(|(.., count)| {
            let exact = u128::from(*count) * u128::from(LENGTH) / u128::from(received.max(1));
            u64::try_from(exact).unwrap_or(LENGTH).max(SHORTEST)
        })
        .collect();
    // The widest makes room for those that were made wider, and takes what rounding left over.
    let total: u64 = widths.iter().sum();
    if let Some(widest) = widths.iter_mut().max() {
        *widest = (*widest + LENGTH).saturating_sub(total);
    }
    let mut x = 0;
    present
        .into_iter()
        .zip(widths)
        .map(|((class, words, help, count), width)| {
            let part = Part {
                class,
                words,
                help,
                count: Count(count),
                share: Share {
                    part: count,
                    whole: received,
                },
                x,
                width,
            };
            x += width;
            part
        })
        .collect()
}

/// How many identifiers of an import matched nobody, if that is known.
pub(crate) fn unmatched_of(import: &Import) -> Option<Count> {
    let counts = import.summary.as_ref()?.outcomes.as_ref()?;
    Some(Count(unmatched(counts)))
}

/// The imports, of some of one cohort with the newest first, that the last upload is made of.
///
/// A partner that speaks REST sends an export of any size in calls of 1,000 identifiers, and each is
/// an import. Those that follow each other closely are one upload to a person.
pub(crate) fn last_upload(imports: &[Import]) -> Vec<&Import> {
    let published = |import: &&Import| import.state() == ImportState::Committed;
    let mut upload: Vec<&Import> = Vec::new();
    for import in imports.iter().filter(published) {
        let Some(later) = upload.last() else {
            upload.push(import);
            continue;
        };
        let is_delta = |import: &Import| import.mode() == ImportMode::Delta;
        let opened = |import: &Import| view::instant(&import.create_time);
        let (Some(end), Some(begin)) = (opened(later), opened(import)) else {
            break;
        };
        if end - begin >= PAUSE || !is_delta(later) || !is_delta(import) {
            break;
        }
        upload.push(import);
    }
    upload
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    fn summary(received: u64, outcomes: OutcomeCounts) -> ImportSummary {
        ImportSummary {
            received,
            outcomes: Some(outcomes),
            ..Default::default()
        }
    }

    #[test]
    fn outcomes_add_up_and_each_can_be_seen() {
        let first = summary(
            99_000,
            OutcomeCounts {
                added: 98_999,
                unknown: 1,
                ..Default::default()
            },
        );
        let second = summary(
            1_000,
            OutcomeCounts {
                added: 998,
                invalid: 2,
                ..Default::default()
            },
        );
        let outcomes = Outcomes::of([&first, &second].into_iter());
        assert_eq!(
            (outcomes.received, outcomes.unmatched),
            (Count(100_000), Count(3))
        );
        assert_eq!(outcomes.matched.to_string(), "99.9 %");
        let parts: Vec<_> = outcomes
            .parts
            .iter()
            .map(|it| (it.words, it.count.0, it.x, it.width))
            .collect();
        assert_eq!(
            parts,
            [
                ("Joined", 99_997, 0, 988),
                ("Unknown", 1, 988, 6),
                ("Malformed", 2, 994, 6)
            ]
        );
        assert!(Outcomes::of([].into_iter()).parts.is_empty());
    }

    #[test]
    fn an_upload_is_what_came_without_a_long_pause() {
        let import = |minute: i64, state: ImportState, mode: ImportMode| Import {
            create_time: Some(Timestamp {
                seconds: minute * 60,
                nanos: 0,
            }),
            state: state.into(),
            mode: mode.into(),
            ..Default::default()
        };
        use ImportMode::{Delta, Replace};
        use ImportState::{Committed, Open};
        let newest_first = [
            import(100, Open, Delta),
            import(99, Committed, Delta),
            import(98, Committed, Delta),
            import(90, Committed, Delta),
            import(80, Committed, Delta),
        ];
        assert_eq!(last_upload(&newest_first).len(), 3);
        let replaced = [import(99, Committed, Replace), import(98, Committed, Delta)];
        assert_eq!(last_upload(&replaced).len(), 1);
        let after = [import(99, Committed, Delta), import(98, Committed, Replace)];
        assert_eq!(last_upload(&after).len(), 1);
        assert!(last_upload(&[]).is_empty());
    }
}
