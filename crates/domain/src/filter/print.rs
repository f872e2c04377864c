//! The text form of a filter, with as few parentheses as possible; the grammar is in `text.rs`.

use std::fmt::{self, Formatter, Write as _};

use super::{CohortRef, Filter, SegmentRef, WrittenFilter};

/// How tightly a form binds; an operand that binds less tightly than its place needs is put in
/// parentheses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Or,
    And,
    Not,
    Primary,
}

/// Writes what [`str::parse`] reads back as the same filter.
///
/// The one exception is a group of one, which is written as its only member. Filters that
/// [`Filter::check_limits`] refuses and partners that are no slugs print, but are not read back.
impl fmt::Display for WrittenFilter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_filter(f, self, Binding::Or)
    }
}

fn write_filter(f: &mut Formatter<'_>, filter: &WrittenFilter, place: Binding) -> fmt::Result {
    if let Filter::AllOf(members) | Filter::AnyOf(members) = filter
        && let [only] = members.as_slice()
    {
        return write_filter(f, only, place);
    }
    let binding = match filter {
        Filter::AnyOf(_) => Binding::Or,
        Filter::AllOf(_) => Binding::And,
        Filter::Not(_)
        | Filter::Cohort {
            includes: false, ..
        } => Binding::Not,
        Filter::Cohort { includes: true, .. } | Filter::Segment(_) => Binding::Primary,
    };
    if binding < place {
        return write_parenthesised(f, filter);
    }
    match filter {
        Filter::AnyOf(members) => write_list(f, members, " or ", |f, member| {
            write_filter(f, member, Binding::And)
        }),
        Filter::AllOf(members) => write_list(f, members, " and ", |f, member| {
            write_filter(f, member, Binding::Not)
        }),
        Filter::Not(inner) => {
            f.write_str("not ")?;
            write_operand_of_not(f, inner)
        }
        Filter::Cohort {
            partner,
            cohorts,
            includes,
        } => {
            if !includes {
                f.write_str("not ")?;
            }
            write!(f, "{partner}:")?;
            if let [only] = cohorts.as_slice() {
                return write_cohort(f, only);
            }
            f.write_char('(')?;
            write_list(f, cohorts, ", ", write_cohort)?;
            f.write_char(')')
        }
        Filter::Segment(SegmentRef::Name(name)) => {
            f.write_str("segment(")?;
            write_quoted(f, name)?;
            f.write_char(')')
        }
        Filter::Segment(SegmentRef::Id(id)) => write!(f, "segment(id(\"{id}\"))"),
    }
}

/// `not` directly in front of a cohort would say "does not include", which is another node.
fn write_operand_of_not(f: &mut Formatter<'_>, operand: &WrittenFilter) -> fmt::Result {
    match operand {
        Filter::AllOf(members) | Filter::AnyOf(members) if members.len() == 1 => {
            write_operand_of_not(f, &members[0])
        }
        Filter::Cohort { includes: true, .. } => write_parenthesised(f, operand),
        _ => write_filter(f, operand, Binding::Not),
    }
}

fn write_parenthesised(f: &mut Formatter<'_>, filter: &WrittenFilter) -> fmt::Result {
    f.write_char('(')?;
    write_filter(f, filter, Binding::Or)?;
    f.write_char(')')
}

fn write_list<T>(
    f: &mut Formatter<'_>,
    items: &[T],
    separator: &str,
    write: impl Fn(&mut Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write(f, item)?;
    }
    Ok(())
}

fn write_cohort(f: &mut Formatter<'_>, cohort: &CohortRef) -> fmt::Result {
    match cohort {
        CohortRef::Name(name) => write_quoted(f, name),
        CohortRef::Id(id) => {
            f.write_str("id(")?;
            write_quoted(f, id)?;
            f.write_char(')')
        }
    }
}

fn write_quoted(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            // Line separators and changes of direction would let a name pose as other text.
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                write!(f, "\\u{{{:x}}}", u32::from(c))?;
            }
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::strategy::written;
    use super::*;

    fn without_groups_of_one(filter: WrittenFilter) -> WrittenFilter {
        let members = |members: Vec<_>| members.into_iter().map(without_groups_of_one).collect();
        match filter {
            Filter::AllOf(mut one) | Filter::AnyOf(mut one) if one.len() == 1 => {
                without_groups_of_one(one.remove(0))
            }
            Filter::AllOf(many) => Filter::AllOf(members(many)),
            Filter::AnyOf(many) => Filter::AnyOf(members(many)),
            Filter::Not(inner) => Filter::Not(Box::new(without_groups_of_one(*inner))),
            leaf => leaf,
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_as_the_same_filter(filter in written(2)) {
            prop_assume!(filter.check_limits().is_ok());
            prop_assert_eq!(filter.to_string().parse(), Ok(filter));
        }

        #[test]
        fn a_group_of_one_is_printed_as_its_member(filter in written(1)) {
            prop_assume!(filter.check_limits().is_ok());
            prop_assert_eq!(filter.to_string().parse(), Ok(without_groups_of_one(filter)));
        }

        #[test]
        fn printed_names_hold_no_control_characters(filter in written(1)) {
            prop_assert!(!filter.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn only_needed_parentheses_are_printed() {
        let printed = |text: &str| text.parse::<WrittenFilter>().unwrap().to_string();
        for (typed, shown) in [
            (r#"((a:"x") AND (Not b:"y"))"#, r#"a:"x" and not b:"y""#),
            (
                r#"(a:"x" and a:"y") or (a:"z")"#,
                r#"a:"x" and a:"y" or a:"z""#,
            ),
            (
                r#"a:"x" and (a:"y" or a:"z")"#,
                r#"a:"x" and (a:"y" or a:"z")"#,
            ),
            (r#"not(a:"x" or a:"y")"#, r#"not (a:"x" or a:"y")"#),
            (r#"a:( "x" )"#, r#"a:"x""#),
            ("not\na:\t(\"x\",id ( \"y\" ))", r#"not a:("x", id("y"))"#),
            // A grouping that was typed stays visible, though it changes nothing.
            (
                r#"(a:"x" and a:"y") and a:"z""#,
                r#"(a:"x" and a:"y") and a:"z""#,
            ),
            (r#"not (a:"x")"#, r#"not (a:"x")"#),
            (r#"a:"\u{41}\u{7}\"""#, r#"a:"A\u{7}\"""#),
        ] {
            assert_eq!(printed(typed), shown);
        }
    }
}
