//! Cells of CSV files that people may open in a spreadsheet program.

use std::borrow::Cow;

use muster_domain::spreadsheet;

use super::grouped;

/// Writes a cell as [`guarded`](spreadsheet::guarded) says, and counts those that this changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    raw: bool,
    changed: u64,
}

impl Guard {
    /// Changes nothing if `raw`.
    pub(crate) fn new(raw: bool) -> Self {
        Self { raw, changed: 0 }
    }

    /// A cell as it is written.
    pub(crate) fn cell<'a>(&mut self, cell: &'a str) -> Cow<'a, str> {
        if self.raw {
            return Cow::Borrowed(cell);
        }
        let written = spreadsheet::guarded(cell);
        self.changed += u64::from(matches!(written, Cow::Owned(_)));
        written
    }

    /// What to tell about it, if anything was changed.
    pub(crate) fn remark(&self) -> Option<String> {
        (self.changed > 0).then(|| {
            format!(
                "{} values begin like a formula and got an apostrophe in front; --raw writes them as \
                 they are",
                grouped(&self.changed)
            )
        })
    }
}
