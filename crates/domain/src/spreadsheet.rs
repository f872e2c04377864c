//! CSV that is safe to open in a spreadsheet program.
//!
//! Such a program computes a cell that begins like a formula, and a formula can fetch addresses or
//! start programs. So [`guarded`] puts an apostrophe in front of such a cell, which programs take for
//! "this is text", and [`unguarded`] takes it off again. Every CSV that Muster writes is guarded
//! unless asked for raw; every one that Muster reads back as its own is unguarded.

use std::borrow::Cow;

const GUARD: char = '\'';

/// Whether a program may take a cell that begins so for a formula: also the wide forms, which some
/// take for the narrow ones, and white space that some skip.
fn begins_formula(first: char) -> bool {
    matches!(
        first,
        '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠'
    )
}

/// Whether a cell is dangerous, or is one that a guard was put in front of: a guard more or less does
/// not change the answer, which is what makes guarding reversible.
fn needs_guard(cell: &str) -> bool {
    cell.trim_start_matches(GUARD).starts_with(begins_formula)
}

/// A cell as it is written.
pub fn guarded(cell: &str) -> Cow<'_, str> {
    if needs_guard(cell) {
        Cow::Owned(format!("{GUARD}{cell}"))
    } else {
        Cow::Borrowed(cell)
    }
}

/// What a cell stood for before [`guarded`].
pub fn unguarded(cell: &str) -> &str {
    match cell.strip_prefix(GUARD) {
        Some(inner) if needs_guard(inner) => inner,
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cell_that_begins_like_a_formula_gets_an_apostrophe() {
        for cell in ["=1+1", "+49 30", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"] {
            assert_eq!(guarded(cell), format!("'{cell}"));
            assert_eq!(unguarded(&guarded(cell)), cell);
        }
        for cell in ["", "u1", "a=b", "'", "'quoted'", "ann@example.org", " =1"] {
            assert_eq!(guarded(cell), cell);
            assert_eq!(unguarded(cell), cell);
        }
    }

    proptest! {
        #[test]
        fn every_cell_comes_back_and_none_begins_like_a_formula(
            cell in prop_oneof![any::<String>(), "['=+@\t\r\n-]{0,5}[a-z]?"],
        ) {
            let written = guarded(&cell);
            prop_assert!(!written.starts_with(begins_formula));
            prop_assert_eq!(unguarded(&written), cell.as_str());
        }
    }
}
