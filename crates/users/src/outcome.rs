//! What became of the entries of a request, in words that repeat no identifier: answers are kept for
//! retries, and an erased person must not live on in them.

use muster_domain::error::{Error, Result};
use muster_storage::directory::Changed;

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It concerns this user.
    Done(Done, u32),
    /// It had no effect, for this reason, which names the field.
    Refused(Refused, String),
}

/// What was done with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Created,
    Updated,
    Unchanged,
    Identified,
    Merged,
    Deleted,
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// An identifier belongs to somebody else.
    Conflict,
    /// It is malformed.
    Invalid,
    /// No user has the identifier.
    NotFound,
}

impl Outcome {
    /// A field names a user that does not exist.
    pub(crate) fn not_found(field: &str) -> Self {
        let detail = format!("{field}: no user has this identifier");
        Self::Refused(Refused::NotFound, detail)
    }

    /// A field contradicts the directory.
    pub(crate) fn conflict(field: &str, problem: &str) -> Self {
        Self::Refused(Refused::Conflict, format!("{field}: {problem}"))
    }
}

/// What a request did.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The epoch that a reader must have reached to see it.
    pub(crate) epoch: i64,
    /// What became of each entry, in order.
    pub(crate) outcomes: Vec<Outcome>,
}

/// The entries of a request: the well-formed ones, and what is wrong with the others.
#[derive(Debug)]
pub(crate) struct Entries<T> {
    pub(crate) well_formed: Vec<T>,
    malformed: Vec<(usize, Error)>,
}

impl<T> FromIterator<Result<T>> for Entries<T> {
    fn from_iter<I: IntoIterator<Item = Result<T>>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut sorted = Self {
            well_formed: Vec::with_capacity(entries.size_hint().0),
            malformed: Vec::new(),
        };
        for (index, entry) in entries.enumerate() {
            match entry {
                Ok(entry) => sorted.well_formed.push(entry),
                Err(error) => sorted.malformed.push((index, error)),
            }
        }
        sorted
    }
}

impl<T> Entries<T> {
    /// Puts what became of the well-formed entries into words, and the malformed ones where they
    /// were.
    pub(crate) fn answer<U>(
        self,
        changed: Changed<U>,
        describe: impl Fn(&T, U) -> Outcome,
    ) -> Answer {
        let mut outcomes = Vec::with_capacity(self.well_formed.len() + self.malformed.len());
        let mut malformed = self.malformed.into_iter().peekable();
        let mut described = self.well_formed.iter().zip(changed.outcomes);
        loop {
            let next = match malformed.next_if(|(index, _)| *index == outcomes.len()) {
                Some((_, error)) => Some(Outcome::Refused(Refused::Invalid, error.to_string())),
                None => described
                    .next()
                    .map(|(entry, outcome)| describe(entry, outcome)),
            };
            match next {
                Some(outcome) => outcomes.push(outcome),
                None => break,
            }
        }
        Answer {
            epoch: changed.epoch,
            outcomes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_its_outcome_in_its_place() {
        let invalid = || Err(Error::field("external_id", "must not be empty"));
        let entries: Entries<u32> = [invalid(), Ok(10), invalid(), invalid(), Ok(20), invalid()]
            .into_iter()
            .collect();
        let changed = Changed {
            epoch: 3,
            outcomes: vec!["a", "b"],
        };
        let answer = entries.answer(changed, |entry, outcome| {
            Outcome::Done(Done::Created, entry + outcome.len() as u32)
        });
        let numbers = answer.outcomes.iter().map(|outcome| match outcome {
            Outcome::Done(_, user) => Some(*user),
            Outcome::Refused(..) => None,
        });
        let numbers: Vec<_> = numbers.collect();
        assert_eq!(numbers, [None, Some(11), None, None, Some(21), None]);
        let detail = "external_id: must not be empty".to_owned();
        assert_eq!(
            answer.outcomes[5],
            Outcome::Refused(Refused::Invalid, detail)
        );
    }
}
