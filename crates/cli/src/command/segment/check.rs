//! `muster segment check`: is this user in it, and why.

use std::fmt::Write;

use muster_proto::segments::v1::{
    self as pb, MembershipReason,
    check_membership_request::{Audience, User},
};

use super::{filter_text, reference};
use crate::{
    error::Result,
    identifier::{self, UserRef},
    output::{grouped, json, show_control_characters},
    session::Session,
    when,
};

/// Say whether one user is in a segment or filter, and why.
///
/// Prints the reason in one sentence, then what each part of the filter says about the user.
/// The exit code is 0 whether the user is in it or not; scripts read `member` from the JSON.
#[derive(Debug, clap::Args)]
#[command(
    allow_missing_positional = true,
    override_usage = "muster segment check <SEGMENT> <USER>\n       \
                      muster segment check --filter <FILTER> <USER>"
)]
pub(crate) struct CheckArgs {
    /// Name of the segment, or its id
    #[arg(
        value_name = "SEGMENT",
        required_unless_present = "filter",
        conflicts_with = "filter"
    )]
    segment: Option<String>,
    /// external_id=ID or a bare ID, alias:LABEL=NAME, device_id=ID, or user_no=N
    #[arg(value_name = "USER", required = true, value_parser = identifier::parse_user)]
    user: UserRef,
    /// A filter instead, in the same text form as `segment create` takes
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
}

/// Runs the command.
pub(super) async fn run(session: &Session, args: CheckArgs) -> Result<()> {
    let segment = args
        .segment
        .as_deref()
        .map(|name| Audience::Segment(reference(name)));
    let filter = args
        .filter
        .as_deref()
        .map(|text| Audience::Filter(filter_text(text)));
    let request = pb::CheckMembershipRequest {
        workspace: session.workspace()?,
        user: Some(match args.user {
            UserRef::Identifier(identifier) => User::Identifier(identifier),
            UserRef::UserNo(number) => User::UserNo(number),
        }),
        audience: segment.or(filter),
    };
    let mut client = session.connection.segments();
    let checked = session
        .call(async || client.check_membership(request.clone()).await)
        .await?;
    if session.output.is_json() {
        let json = json::message("muster.segments.v1.CheckMembershipResponse", &checked);
        return session.output.json(&json);
    }
    session.output.text(&text(&checked))
}

fn text(checked: &pb::CheckMembershipResponse) -> String {
    let mut text = format!("{} {}\n", mark(checked.member), clean(&checked.reason));
    if let Some(explanation) = &checked.explanation {
        text.push('\n');
        explain(&mut text, explanation, 0);
    }
    text
}

/// One line for a part of the filter, then its cohorts and branches further in.
fn explain(text: &mut String, part: &pb::Explanation, depth: usize) {
    let indent = "  ".repeat(depth);
    line(
        text,
        &format!("{indent}{} {}", mark(part.matched), clean(&part.text)),
    );
    for cohort in &part.cohorts {
        let cohort = membership(cohort);
        line(text, &format!("{indent}  {}", clean(&cohort)));
    }
    for branch in &part.branches {
        explain(text, branch, depth + 1);
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn membership(cohort: &pb::CohortMembership) -> String {
    let reason = cohort.reason();
    let inside = matches!(
        reason,
        MembershipReason::Member | MembershipReason::MemberByMerge
    );
    let since = match (cohort.since_version, &cohort.since_time) {
        (0, _) => String::new(),
        (version, time) => {
            let time = time.as_ref().and_then(|t| when::rfc3339(t.seconds, 0));
            let time = time.map(|time| format!(" ({time})")).unwrap_or_default();
            format!(" version {}{time}", grouped(&version))
        }
    };
    let how = match reason {
        MembershipReason::Member if since.is_empty() => "member".to_owned(),
        MembershipReason::Member => format!("member since{since}"),
        MembershipReason::MemberByMerge => {
            "member through a user who was merged into this one".to_owned()
        }
        MembershipReason::Removed if since.is_empty() => "removed".to_owned(),
        MembershipReason::Removed => format!("removed by{since}"),
        MembershipReason::Rejected => format!(
            "uploaded in import {}, position {}, but matched nobody then",
            cohort.import_id,
            cohort.position.unwrap_or_default()
        ),
        MembershipReason::NeverUploaded => "never uploaded".to_owned(),
        MembershipReason::Unspecified => "unknown".to_owned(),
    };
    format!(
        "{} {}:{:?} at version {}: {how}",
        mark(inside),
        cohort.partner,
        cohort.name,
        grouped(&cohort.version)
    )
}

fn mark(yes: bool) -> char {
    if yes { '✓' } else { '✗' }
}

fn clean(text: &str) -> String {
    show_control_characters(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_shows_each_part_and_its_cohorts() {
        let cohort = |name: &str, reason: MembershipReason, since_version| pb::CohortMembership {
            partner: "tinyclues".to_owned(),
            name: name.to_owned(),
            version: 3,
            reason: reason.into(),
            since_version,
            ..Default::default()
        };
        let part = |matched, text: &str, branches, cohorts| pb::Explanation {
            matched,
            text: text.to_owned(),
            branches,
            cohorts,
            ..Default::default()
        };
        let spring = cohort("spring", MembershipReason::Member, 2);
        let churned = cohort("churned", MembershipReason::Member, 1);
        let not = part(
            false,
            "not tinyclues:\"churned\"",
            vec![part(true, "tinyclues:\"churned\"", vec![], vec![churned])],
            vec![],
        );
        let spring = part(true, "tinyclues:\"spring\"", vec![], vec![spring]);
        let checked = pb::CheckMembershipResponse {
            reason: "excluded: the user is in \"churned\"".to_owned(),
            explanation: Some(part(false, "all of", vec![spring, not], vec![])),
            ..Default::default()
        };
        let expected = "\
✗ excluded: the user is in \"churned\"

✗ all of
  ✓ tinyclues:\"spring\"
    ✓ tinyclues:\"spring\" at version 3: member since version 2
  ✗ not tinyclues:\"churned\"
    ✓ tinyclues:\"churned\"
      ✓ tinyclues:\"churned\" at version 3: member since version 1
";
        assert_eq!(text(&checked), expected);
    }
}
