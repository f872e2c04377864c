//! What a call says, read as leniently as the contract wants: unknown fields are ignored, and some
//! fields may have more than one shape.

use muster_domain::{
    credential::{Kind, Secret},
    identifier::{Identifier, IdentifierKind},
    import::Effect,
    name,
};
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{MAX_IDENTIFIERS_PER_CALL, answer::Problem, time_text};

/// The body of a call: a JSON object whose fields have not been looked at.
#[derive(Debug, Default)]
pub(super) struct Body(Map<String, Value>);

/// Who calls.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) partner_api_key: Secret,
    pub(super) client_secret: Secret,
}

/// A call that names a cohort.
#[derive(Debug, PartialEq)]
pub(super) struct NameCohort {
    pub(super) cohort_id: String,
    pub(super) name: String,
    pub(super) created_at: OffsetDateTime,
}

/// A call that adds and removes users.
#[derive(Debug, PartialEq)]
pub(super) struct ChangeCohort {
    pub(super) cohort_id: String,
    /// In the order to apply.
    pub(super) changes: Vec<(Effect, Identifier)>,
    /// Identifiers that cannot match; they are sent all the same, so that they are accounted for.
    pub(super) minor: Vec<MinorProblem>,
}

/// An identifier that cannot match.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct MinorProblem {
    /// Which object of `cohort_changes`, from 0.
    index: usize,
    /// Where in it, such as `user_ids[3]`.
    field: String,
    /// What is wrong.
    message: String,
}

impl Body {
    /// Reads an object.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Problem::Malformed("it is another JSON value".to_owned())),
            // The text of the error has a position and a sort of mistake, nothing of the body.
            Err(error) => Err(Problem::Malformed(error.to_string())),
        }
    }

    /// The credentials, as far as they can be judged without asking: a typo or a key of another
    /// sort is refused here.
    pub(super) fn credentials(&self) -> Result<Credentials, Problem> {
        let secret = |field: &str, kind| {
            let text = self.0.get(field)?.as_str()?;
            Secret::parse(text).ok().filter(|s| s.kind() == kind)
        };
        Ok(Credentials {
            partner_api_key: secret("partner_api_key", Kind::PartnerApiKey)
                .ok_or(Problem::PartnerApiKey)?,
            client_secret: secret("client_secret", Kind::DataImportKey)
                .ok_or(Problem::ClientSecret)?,
        })
    }

    /// Reads it as a call to `…/cohorts`.
    pub(super) fn into_name_cohort(mut self) -> Result<NameCohort, Problem> {
        let cohort_id = self.take_cohort_id()?;
        let name = match self.0.remove("name") {
            Some(Value::String(name)) if !name.trim().is_empty() => name,
            _ => return Err(Problem::Name),
        };
        if let Err(error) = name::check_name(&name) {
            let what = error.fields.first().map(|f| f.description.clone());
            return Err(Problem::NameUnusable(what.unwrap_or_default()));
        }
        let created_at = self.0.get("created_at").and_then(Value::as_str);
        let created_at = created_at.and_then(time_text::parse);
        Ok(NameCohort {
            cohort_id,
            name,
            created_at: created_at.ok_or(Problem::CreatedAt)?,
        })
    }

    /// Reads it as a call to `…/cohorts/users`.
    pub(super) fn into_change_cohort(mut self) -> Result<ChangeCohort, Problem> {
        let cohort_id = self.take_cohort_id()?;
        let changes = match self.0.remove("cohort_changes") {
            // Some clients send the array as text.
            Some(Value::String(text)) => serde_json::from_str(&text).ok(),
            other => other,
        };
        let Some(Value::Array(objects)) = changes else {
            return Err(Problem::CohortChanges);
        };
        let mut changes = Changes::default();
        for (index, object) in objects.into_iter().enumerate() {
            changes.read_object(index, object)?;
        }
        Ok(ChangeCohort {
            cohort_id,
            changes: changes.list,
            minor: changes.minor,
        })
    }

    fn take_cohort_id(&mut self) -> Result<String, Problem> {
        match self.0.remove("cohort_id") {
            Some(Value::String(id)) if name::check_name(&id).is_ok() => Ok(id),
            _ => Err(Problem::CohortId),
        }
    }
}

/// The identifiers read so far.
#[derive(Default)]
struct Changes {
    list: Vec<(Effect, Identifier)>,
    minor: Vec<MinorProblem>,
}

impl Changes {
    fn read_object(&mut self, index: usize, object: Value) -> Result<(), Problem> {
        let Value::Object(mut object) = object else {
            return Err(Problem::CohortChanges);
        };
        let effect = match object.remove("should_remove") {
            None | Some(Value::Null | Value::Bool(false)) => Effect::Add,
            Some(Value::Bool(true)) => Effect::Remove,
            Some(_) => return Err(Problem::CohortChanges),
        };
        // All of one object have one effect, so their order does not matter; this one makes a
        // single change on the wire.
        let parts = ["user_ids", "aliases", "device_ids"].map(|key| (key, object.remove(key)));
        if parts.iter().all(|(_, part)| part.is_none()) {
            // An object that holds none of them is a misspelt one: taking it for empty would drop
            // people in silence.
            return Err(Problem::CohortChanges);
        }
        for (key, part) in parts {
            for (position, item) in elements(key, part)?.into_iter().enumerate() {
                let identifier = identifier(key, item).ok_or(Problem::CohortChanges)?;
                if self.list.len() == MAX_IDENTIFIERS_PER_CALL {
                    return Err(Problem::TooManyIdentifiers);
                }
                if let Err(error) = identifier.as_ref().check() {
                    for wrong in error.fields {
                        let part = match wrong.field.as_str() {
                            "alias.label" => ".alias_label",
                            "alias.name" => ".alias_name",
                            _ => "",
                        };
                        self.minor.push(MinorProblem {
                            index,
                            field: format!("{key}[{position}]{part}"),
                            message: wrong.description,
                        });
                    }
                }
                self.list.push((effect, identifier));
            }
        }
        Ok(())
    }
}

/// The elements of one of the three arrays, in each shape it may have.
fn elements(key: &str, part: Option<Value>) -> Result<Vec<Value>, Problem> {
    match part {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(elements)) => Ok(elements),
        // Some documents write a single alias without the brackets, and an empty one for none.
        Some(Value::Object(alias)) if key == "aliases" && alias.is_empty() => Ok(Vec::new()),
        Some(alias @ Value::Object(_)) if key == "aliases" => Ok(vec![alias]),
        Some(_) => Err(Problem::CohortChanges),
    }
}

fn identifier(key: &str, element: Value) -> Option<Identifier> {
    let plain = |kind, id| Identifier {
        kind,
        label: String::new(),
        id,
    };
    match (key, element) {
        ("user_ids", Value::String(id)) => Some(plain(IdentifierKind::ExternalId, id)),
        ("device_ids", Value::String(id)) => Some(plain(IdentifierKind::DeviceId, id)),
        ("aliases", Value::Object(mut alias)) => {
            let mut part = |key| match alias.remove(key) {
                Some(Value::String(text)) => Some(text),
                _ => None,
            };
            Some(Identifier {
                label: part("alias_label")?,
                ..plain(IdentifierKind::Alias, part("alias_name")?)
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
