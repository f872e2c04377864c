//! Reading the text form of a filter, as typed into the command line and the console.
//!
//! ```text
//! tinyclues:"spring sale" and not (tinyclues:"churned" or amplitude:id("c_9"))
//!
//! filter  = and { "or" and }
//! and     = unary { "and" unary }
//! unary   = "not" unary | primary
//! primary = "(" filter ")"
//!         | partner ":" ( cohort | "(" cohort { "," cohort } ")" )      any of several
//!         | "segment" "(" ( string | "id" "(" string ")" ) ")"
//! cohort  = string | "id" "(" string ")"                     its name | the partner's id
//! partner = [a-z0-9][a-z0-9_-]{0,63}                         a word directly before ":"
//! string  = '"' { any character but " and \ | \" \\ \n \t \u{hex} } '"'
//! ```
//!
//! Words other than partners may be in capitals. `not` directly in front of a cohort means "does
//! not include"; with parentheses between them, as in `not (tinyclues:"churned")`, it is a `not`
//! around a cohort. The two match the same users, but every filter has its own text that way.

mod scan;

use std::str::FromStr;

use uuid::Uuid;

use super::{CohortRef, Filter, MAX_DEPTH, SegmentRef, WrittenFilter};
use crate::error::Error;

const MAX_TEXT_BYTES: usize = 64 * 1024;
const MAX_PARTNER_BYTES: usize = 64;

/// What is wrong with the text of a filter, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {position}: {message}")]
pub struct ParseError {
    /// Position in characters from the start of the text, counted from 1; lines do not matter.
    pub position: usize,
    /// What was expected there.
    pub message: String,
}

impl From<ParseError> for Error {
    /// One wrong field with an empty path, to be completed by [`Error::within`].
    fn from(error: ParseError) -> Self {
        Self::field("", error.to_string())
    }
}

impl FromStr for WrittenFilter {
    type Err = ParseError;

    /// Reads the text form, of at most 64 KiB, and checks [`Filter::check_limits`].
    ///
    /// Names and ids are not looked up, nor are their lengths checked.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser {
            text,
            at: 0,
            nesting: 0,
        };
        if text.len() > MAX_TEXT_BYTES {
            return Err(parser.error(format!("a filter has at most {MAX_TEXT_BYTES} bytes")));
        }
        let filter = parser.any_of()?;
        if parser.peek().is_some() {
            return Err(parser.error("expected `and`, `or` or the end"));
        }
        filter.check_limits().map_err(|error| ParseError {
            position: 1,
            message: error
                .fields
                .into_iter()
                .map(|violation| violation.description)
                .collect(),
        })?;
        Ok(filter)
    }
}

type Parsed<T = WrittenFilter> = Result<T, ParseError>;

struct Parser<'t> {
    text: &'t str,
    /// Byte position of what is read next.
    at: usize,
    /// Open parentheses and `not`s. No valid filter needs more of them than it has levels, and the
    /// bound keeps hostile text from exhausting the stack.
    nesting: usize,
}

impl<'t> Parser<'t> {
    fn any_of(&mut self) -> Parsed {
        self.chain("or", Filter::AnyOf, Self::all_of)
    }

    fn all_of(&mut self) -> Parsed {
        self.chain("and", Filter::AllOf, Self::unary)
    }

    fn chain(
        &mut self,
        keyword: &str,
        group: fn(Vec<WrittenFilter>) -> WrittenFilter,
        member: fn(&mut Self) -> Parsed,
    ) -> Parsed {
        let first = member(self)?;
        if !self.accept_keyword(keyword) {
            return Ok(first);
        }
        let mut members = vec![first, member(self)?];
        while self.accept_keyword(keyword) {
            members.push(member(self)?);
        }
        Ok(group(members))
    }

    fn unary(&mut self) -> Parsed {
        let start = self.at;
        if !self.accept_keyword("not") {
            return self.primary();
        }
        let parenthesised = self.peek() == Some('(');
        match self.nested(start, Self::unary)? {
            Filter::Cohort {
                partner,
                cohorts,
                includes: true,
            } if !parenthesised => Ok(Filter::Cohort {
                partner,
                cohorts,
                includes: false,
            }),
            inner => Ok(Filter::Not(Box::new(inner))),
        }
    }

    fn primary(&mut self) -> Parsed {
        let start = self.skip_space();
        if self.accept('(') {
            let filter = self.nested(start, Self::any_of)?;
            let opened = self.column(start);
            self.expect(')', || {
                format!("expected `)` for the `(` at column {opened}")
            })?;
            return Ok(filter);
        }
        let word = self.accept_word();
        match word {
            _ if !word.is_empty() && self.rest().starts_with(':') => self.cohorts(start, word),
            _ if word.eq_ignore_ascii_case("segment") && self.accept('(') => self.segment(),
            "" => Err(self.error(r#"expected a cohort, such as tinyclues:"spring sale""#)),
            _ if ["and", "or"].iter().any(|it| word.eq_ignore_ascii_case(it)) => {
                Err(self.error_at(start, format!("expected a cohort before `{word}`")))
            }
            _ => Err(self.error(format!(
                r#"expected ":" and a cohort name in quotes after "{}""#,
                abridged(word)
            ))),
        }
    }

    fn cohorts(&mut self, start: usize, partner: &str) -> Parsed {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !partner.starts_with(allowed)
            || !partner.chars().all(|c| allowed(c) || c == '-' || c == '_')
            || partner.len() > MAX_PARTNER_BYTES
        {
            return Err(self.error_at(
                start,
                format!(
                    "a partner is written in lower-case letters, digits, `-` and `_`, \
                     at most {MAX_PARTNER_BYTES} of them"
                ),
            ));
        }
        self.accept(':');
        let mut cohorts = Vec::new();
        if self.accept('(') {
            cohorts.push(self.cohort(partner)?);
            while self.accept(',') {
                cohorts.push(self.cohort(partner)?);
            }
            self.expect(')', || {
                "expected `,` or `)` after a cohort in a list".to_owned()
            })?;
        } else {
            cohorts.push(self.cohort(partner)?);
        }
        Ok(Filter::Cohort {
            partner: partner.to_owned(),
            cohorts,
            includes: true,
        })
    }

    fn cohort(&mut self, partner: &str) -> Parsed<CohortRef> {
        let start = self.skip_space();
        if let Some(name) = self.accept_string()? {
            return Ok(CohortRef::Name(name));
        }
        let word = self.accept_word();
        if word.eq_ignore_ascii_case("id") && self.accept('(') {
            return Ok(CohortRef::Id(
                self.id(|| format!(r#"{partner}:id("c_9")"#))?.1,
            ));
        }
        let message = match word {
            "" => format!(r#"expected a cohort name in quotes after "{partner}:""#),
            word => format!(r#"put the name in quotes: {partner}:"{}""#, abridged(word)),
        };
        Err(self.error_at(start, message))
    }

    /// The rest of `segment(…)`.
    fn segment(&mut self) -> Parsed {
        let start = self.skip_space();
        let segment = if let Some(name) = self.accept_string()? {
            SegmentRef::Name(name)
        } else {
            let word = self.accept_word();
            if word.eq_ignore_ascii_case("id") && self.accept('(') {
                let example = r#"segment(id("0199c2f0-7c1e-7000-8000-3f1d5a2b9c4e"))"#;
                let (start, id) = self.id(|| example.to_owned())?;
                let id = Uuid::try_parse(&id);
                SegmentRef::Id(id.map_err(|_| self.error_at(start, "a segment's id is a UUID"))?)
            } else {
                let message = match word {
                    "" => r#"expected a segment's name in quotes after "segment(""#.to_owned(),
                    word => format!(r#"put the name in quotes: segment("{}")"#, abridged(word)),
                };
                return Err(self.error_at(start, message));
            }
        };
        self.expect(')', || "expected `)` after the segment".to_owned())?;
        Ok(Filter::Segment(segment))
    }

    /// The rest of `id(…)`, with the position of the id.
    fn id(&mut self, example: impl FnOnce() -> String) -> Parsed<(usize, String)> {
        let start = self.skip_space();
        let Some(id) = self.accept_string()? else {
            return Err(self.error(format!("put the id in quotes, as in {}", example())));
        };
        self.expect(')', || "expected `)` after the id".to_owned())?;
        Ok((start, id))
    }

    fn nested(&mut self, start: usize, read: fn(&mut Self) -> Parsed) -> Parsed {
        if self.nesting == MAX_DEPTH {
            return Err(self.error_at(start, format!("a filter has at most {MAX_DEPTH} levels")));
        }
        self.nesting += 1;
        let filter = read(self)?;
        self.nesting -= 1;
        Ok(filter)
    }
}

/// As much of a word as an error message repeats: errors travel in headers, which are short.
fn abridged(word: &str) -> &str {
    let end = word.char_indices().nth(MAX_PARTNER_BYTES);
    end.map_or(word, |(end, _)| &word[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::FieldContext as _;

    fn parsed(text: &str) -> WrittenFilter {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<WrittenFilter>().unwrap_err().to_string()
    }

    fn cohort(partner: &str, name: &str, includes: bool) -> WrittenFilter {
        let cohorts = vec![CohortRef::Name(name.to_owned())];
        Filter::Cohort {
            partner: partner.to_owned(),
            cohorts,
            includes,
        }
    }

    #[test]
    fn or_binds_less_than_and_and_and_less_than_not() {
        assert_eq!(
            parsed(r#"a:"1" OR not b:"2" And c:"3" or d:"4""#),
            Filter::AnyOf(vec![
                cohort("a", "1", true),
                Filter::AllOf(vec![cohort("b", "2", false), cohort("c", "3", true)]),
                cohort("d", "4", true),
            ])
        );
        assert_eq!(
            parsed(r#"not (a:"1" or b:"2")"#),
            Filter::Not(Box::new(Filter::AnyOf(vec![
                cohort("a", "1", true),
                cohort("b", "2", true)
            ])))
        );
    }

    #[test]
    fn not_directly_before_a_cohort_is_does_not_include() {
        let not = |inner| Filter::Not(Box::new(inner));
        assert_eq!(parsed(r#"not a:"1""#), cohort("a", "1", false));
        assert_eq!(parsed(r#"not (a:"1")"#), not(cohort("a", "1", true)));
        assert_eq!(parsed(r#"not not a:"1""#), not(cohort("a", "1", false)));
        assert_eq!(parsed(r#"not (not a:"1")"#), not(cohort("a", "1", false)));
    }

    #[test]
    fn segments_and_partners_called_like_words() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            parsed(r#"Segment ("s")"#),
            Filter::Segment(SegmentRef::Name("s".into()))
        );
        assert_eq!(
            parsed(&format!(r#"segment(id("{id}"))"#)),
            Filter::Segment(SegmentRef::Id(id))
        );
        assert_eq!(parsed(r#"segment:"s""#), cohort("segment", "s", true));
        assert_eq!(
            parsed(r#"not not:"x" and and:"y""#),
            Filter::AllOf(vec![cohort("not", "x", false), cohort("and", "y", true)])
        );
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        for (text, error) in [
            (
                "",
                r#"column 1: expected a cohort, such as tinyclues:"spring sale""#,
            ),
            (
                "a:\"é\" and b:",
                r#"column 13: expected a cohort name in quotes after "b:""#,
            ),
            (
                "tinyclues:spring",
                r#"column 11: put the name in quotes: tinyclues:"spring""#,
            ),
            (
                "tinyclues:été sale",
                r#"column 11: put the name in quotes: tinyclues:"été""#,
            ),
            ("a:id", r#"column 3: put the name in quotes: a:"id""#),
            (
                "a:id(7)",
                r#"column 6: put the id in quotes, as in a:id("c_9")"#,
            ),
            ("a:id(\"7\"", "column 9: expected `)` after the id"),
            (
                "a:()",
                r#"column 4: expected a cohort name in quotes after "a:""#,
            ),
            (
                "a:(\"x\" \"y\")",
                "column 8: expected `,` or `)` after a cohort in a list",
            ),
            (
                "tinyclues",
                r#"column 10: expected ":" and a cohort name in quotes after "tinyclues""#,
            ),
            ("or a:\"x\"", "column 1: expected a cohort before `or`"),
            (
                "a:\"x\" b:\"y\"",
                "column 7: expected `and`, `or` or the end",
            ),
            (
                "a:\"x\" or (b:\"y\"",
                "column 16: expected `)` for the `(` at column 10",
            ),
            ("a:\"x", "column 3: this quote is never closed"),
            (
                r#"a:"\x""#,
                r#"column 4: the escapes are \" \\ \n \t and \u{…} with a code point"#,
            ),
            (
                r#"a:"\u{+41}""#,
                r#"column 4: the escapes are \" \\ \n \t and \u{…} with a code point"#,
            ),
            (
                "segment(spring)",
                r#"column 9: put the name in quotes: segment("spring")"#,
            ),
            ("segment(id(\"7\"))", "column 12: a segment's id is a UUID"),
            (
                "Tinyclues:\"x\"",
                "column 1: a partner is written in lower-case letters, digits, `-` and `_`, \
                 at most 64 of them",
            ),
        ] {
            assert_eq!(refused(text), error, "{text}");
        }
        let error = "tinyclues:"
            .parse::<WrittenFilter>()
            .map_err(Error::from)
            .field("filter");
        assert_eq!(
            error.unwrap_err().to_string(),
            r#"filter: column 11: expected a cohort name in quotes after "tinyclues:""#
        );
    }

    #[test]
    fn hostile_text_is_refused_without_exhausting_the_stack() {
        for opening in ["(", "not ", "not("] {
            let column = opening.len() * (MAX_DEPTH / opening.matches(['n', '(']).count()) + 1;
            let text = opening.repeat(15_000);
            assert_eq!(
                refused(&text),
                format!("column {column}: a filter has at most 32 levels")
            );
        }
        assert_eq!(
            refused(&"(".repeat(100_000)),
            "column 1: a filter has at most 65536 bytes"
        );
        assert!(refused(&"é".repeat(30_000)).len() < 250);
        assert!(refused(&format!("a:{}", "é".repeat(30_000))).len() < 250);
        let wide = vec![r#"a:"x""#; 1_000].join(" or ");
        assert_eq!(refused(&wide), "column 1: a filter has at most 1000 nodes");
        let deep = r#"a:"x" or a:"x" and ("#.repeat(20) + r#"a:"x""# + &")".repeat(20);
        assert_eq!(refused(&deep), "column 1: a filter has at most 32 levels");
    }

    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "(", ")", ":", ",", "\"", "\\", "\\u{", "}", " ", "\n", "a:", "\"x\"", "not", "AND",
            "or", "id(", "segment(", "segment:", "é", "-",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop_oneof![any::<String>(), pieces()]) {
            if let Err(error) = text.parse::<WrittenFilter>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.position));
            }
        }
    }
}
