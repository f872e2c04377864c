//! Consistency tokens: a writer's answer names the state that a later read must not be older than.

use muster_domain::error::{Error, Result};
use uuid::Uuid;

use crate::page;

/// The state of a workspace that a change led to; opaque to callers.
///
/// A reader that is given one waits for, or refuses to answer from, anything older. A token of
/// another workspace says nothing about the one being read: compare [`workspace`](Self::workspace).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsistencyToken {
    /// Internal id of the workspace.
    pub workspace: i64,
    /// The directory must be at this epoch or a later one.
    pub directory_epoch: i64,
    /// The cohort must be at this version or a later one.
    pub cohort: Option<(Uuid, i64)>,
}

/// Tells these tokens from those of lists.
const MARK: &str = "at";

impl ConsistencyToken {
    /// Writes it for the wire.
    pub fn encode(&self) -> String {
        page::encode(&(MARK, self.workspace, self.directory_epoch, self.cohort))
    }

    /// Reads it from the wire.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with an empty path if Muster did not give it out.
    pub fn decode(token: &str) -> Result<Self> {
        match page::decode::<(String, i64, i64, Option<(Uuid, i64)>)>(token) {
            Some((mark, workspace, directory_epoch, cohort)) if mark == MARK => Ok(Self {
                workspace,
                directory_epoch,
                cohort,
            }),
            _ => Err(Error::field(
                "",
                "is not a consistency token that Muster gave out",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        let directory = ConsistencyToken {
            workspace: 7,
            directory_epoch: 12,
            cohort: None,
        };
        let cohort = ConsistencyToken {
            cohort: Some((Uuid::from_u128(3), 4)),
            ..directory
        };
        for token in [directory, cohort] {
            assert_eq!(ConsistencyToken::decode(&token.encode()).unwrap(), token);
        }
    }

    #[test]
    fn other_tokens_are_refused() {
        let page_token = page::encode(&(7, 12));
        for bad in ["", "!", page_token.as_str(), &page::encode(&"7")] {
            assert!(ConsistencyToken::decode(bad).is_err(), "{bad:?}");
        }
    }
}
