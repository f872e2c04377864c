//! Whether one person is in a segment, and why.

use askama::Template;
use axum::{
    Form,
    extract::Path,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use muster_client::Refusal;
use muster_proto::{
    segments::v1::{
        CheckMembershipRequest, CheckMembershipResponse, Explanation, MembershipReason, Segment,
        SubjectState,
        check_membership_request::{Audience, User},
    },
    users::v1::{Alias, Identifier, identifier},
};
use serde::Deserialize;
use tonic::Code;

use super::{by_id, segment};
use crate::{
    frame::{self, Frame, Section},
    problem::Problem,
    session::Visitor,
    view::When,
};

/// Whom to check. It is sent in the body of a form: who a person is has no place in an address,
/// which browsers and proxies keep.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Person {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    label: String,
    #[serde(default)]
    id: String,
}

impl Person {
    /// The kinds, as the form sends and as people read them.
    const KINDS: [(&'static str, &'static str); 4] = [
        ("external_id", "External id"),
        ("alias", "Alias"),
        ("device_id", "Device id"),
        ("user_no", "User number"),
    ];

    fn user(&self) -> Result<User, String> {
        if self.id.is_empty() {
            return Err("Type an identifier of the person.".to_owned());
        }
        let id = self.id.clone();
        let kind = match self.kind.as_str() {
            "user_no" => {
                let number = id.parse().map_err(|_| "A user number has digits only.");
                return Ok(User::UserNo(number?));
            }
            "alias" => identifier::Kind::Alias(Alias {
                label: self.label.clone(),
                name: id,
            }),
            "device_id" => identifier::Kind::DeviceId(id),
            _ => identifier::Kind::ExternalId(id),
        };
        Ok(User::Identifier(Identifier { kind: Some(kind) }))
    }
}

#[derive(Template)]
#[template(path = "segment_check.html")]
struct Page {
    frame: Frame,
    workspace: String,
    segment: Segment,
    person: Person,
    error: String,
    answer: Option<Answer>,
}

struct Answer {
    response: CheckMembershipResponse,
    /// The parts of the filter, each with how deep it is.
    parts: Vec<Part>,
}

struct Part {
    depth: usize,
    matched: bool,
    text: String,
    /// Whether this part decided.
    decided: bool,
    cohorts: Vec<Finding>,
}

struct Finding {
    name: String,
    partner: String,
    text: &'static str,
    since_version: u64,
    since: When,
    import_id: String,
    position: Option<u64>,
}

/// Nested deeper than this, parts are drawn at the same depth.
const MAX_DEPTH: usize = 8;

fn parts(explanation: &Explanation, deciding: &str, depth: usize, found: &mut Vec<Part>) {
    found.push(Part {
        depth: depth.min(MAX_DEPTH),
        matched: explanation.matched,
        text: explanation.text.clone(),
        decided: !deciding.is_empty() && explanation.path == deciding,
        cohorts: explanation
            .cohorts
            .iter()
            .map(|it| Finding {
                name: it.name.clone(),
                partner: it.partner.clone(),
                text: match it.reason() {
                    MembershipReason::Member => "is in it",
                    MembershipReason::MemberByMerge => "is in it through somebody merged into them",
                    MembershipReason::Removed => "was in it, and was removed",
                    MembershipReason::Rejected => "was sent, but matched nobody at that time",
                    MembershipReason::NeverUploaded => "was never sent, as far as is kept",
                    MembershipReason::Unspecified => "",
                },
                since_version: it.since_version,
                since: When::from(&it.since_time),
                import_id: it.import_id.clone(),
                position: it.position,
            })
            .collect(),
    });
    for branch in &explanation.branches {
        parts(branch, deciding, depth + 1, found);
    }
}

impl Answer {
    fn new(response: CheckMembershipResponse) -> Self {
        let mut found = Vec::new();
        if let Some(explanation) = &response.explanation {
            parts(explanation, &response.deciding_path, 0, &mut found);
        }
        Self {
            response,
            parts: found,
        }
    }

    fn state(&self) -> &'static str {
        match self.response.subject_state() {
            SubjectState::Unspecified | SubjectState::Live => "",
            SubjectState::Merged => "Was merged into another user, who was looked at.",
            SubjectState::Deleted => "Was deleted.",
            SubjectState::Unknown => "Nobody has this identifier.",
            SubjectState::DeviceOfIdentifiedUser => {
                "It is a device of somebody with an external id: imports match it to nobody."
            }
        }
    }
}

/// The empty form.
pub(crate) async fn ask(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    Ok(page(
        &visitor,
        segment,
        Person::default(),
        String::new(),
        None,
    ))
}

/// The form with an answer.
pub(crate) async fn check(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Form(mut person): Form<Person>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    // Identifiers are byte-exact; nobody means the blanks around what they paste.
    person.id = person.id.trim().to_owned();
    let user = match person.user() {
        Ok(user) => user,
        Err(error) => return Ok(page(&visitor, segment, person, error, None)),
    };
    let request = CheckMembershipRequest {
        workspace: visitor.workspace.clone(),
        user: Some(user),
        audience: Some(Audience::Segment(by_id(&segment.segment_id))),
    };
    let checked = visitor
        .connection()
        .segments()
        .check_membership(request)
        .await;
    match checked.map_err(Refusal::from) {
        Ok(answer) => {
            let answer = Answer::new(answer.into_inner());
            Ok(page(&visitor, segment, person, String::new(), Some(answer)))
        }
        Err(refusal) if refusal.code == Code::InvalidArgument => {
            let violations = refusal.fields.iter().map(|it| it.description.clone());
            let error = format!(
                "The identifier {}.",
                violations.collect::<Vec<_>>().join(", ")
            );
            Ok(page(&visitor, segment, person, error, None))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

fn page(
    visitor: &Visitor,
    segment: Segment,
    person: Person,
    error: String,
    answer: Option<Answer>,
) -> Response {
    let status = if error.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::UNPROCESSABLE_ENTITY
    };
    let page = Page {
        frame: visitor.frame("Check a person", Section::Segments),
        workspace: visitor.workspace.clone(),
        segment,
        person,
        error,
        answer,
    };
    (status, frame::html(&page)).into_response()
}
