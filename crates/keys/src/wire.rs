//! Protobuf ⇄ domain. What is read here is well-formed; whether it exists is not asked here.

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    name,
    network::{MAX_NETWORKS, Network},
};
use muster_proto::keys::v1 as pb;
use muster_service::{Page, authorization::Scopes, wire};
use muster_storage::{
    Timestamp,
    audit::{Event, Filter},
    credentials::{Credential, State},
    partners::Partner,
    workspaces::Workspace,
};
use prost::Message;
use time::Duration;

use crate::{
    credential::Issued,
    integration::Integration,
    keys::{NewKey, Rotated},
    tokens::NewToken,
};

/// How long a rotated key is accepted beside its successor if the caller does not say.
const DEFAULT_OVERLAP: Duration = Duration::hours(24);

/// How long a rotated key can be accepted beside its successor.
const MAX_OVERLAP: Duration = Duration::days(30);

/// An answer that is kept to be given again.
pub(crate) trait Kept: Message + Default {
    /// Takes out what is kept nowhere.
    fn forget_secret(&mut self) {}
}

impl Kept for pb::CreateKeyResponse {
    fn forget_secret(&mut self) {
        self.secret.clear();
    }
}

impl Kept for pb::RotateKeyResponse {
    fn forget_secret(&mut self) {
        self.secret.clear();
    }
}

impl Kept for pb::CreatePartnerApiKeyResponse {
    fn forget_secret(&mut self) {
        self.secret.clear();
    }
}

impl Kept for pb::CreateServiceTokenResponse {
    fn forget_secret(&mut self) {
        self.secret.clear();
    }
}

impl Kept for pb::RevokeKeyResponse {}
impl Kept for pb::RestrictKeyResponse {}
impl Kept for pb::RestrictServiceTokenResponse {}
impl Kept for pb::CreateWorkspaceResponse {}
impl Kept for pb::CreatePartnerResponse {}
impl Kept for pb::EnablePartnerResponse {}
impl Kept for pb::DisablePartnerResponse {}
impl Kept for pb::RevokePartnerApiKeyResponse {}
impl Kept for pb::RevokeServiceTokenResponse {}

pub(crate) fn new_key(body: &pb::CreateKeyRequest) -> Result<NewKey> {
    Ok(NewKey {
        partner: body.partner.clone(),
        label: label(&body.label)?,
        allowed_addresses: allowed_addresses(&body.allowed_addresses)?,
        expires_at: moment("expire_time", body.expire_time.as_ref())?,
    })
}

pub(crate) fn new_token(body: &pb::CreateServiceTokenRequest) -> Result<NewToken> {
    name::check_name(&body.label).field("label")?;
    Ok(NewToken {
        label: body.label.clone(),
        scopes: Scopes::parse(&body.scopes)?,
        allowed_addresses: allowed_addresses(&body.allowed_addresses)?,
        expires_at: moment("expire_time", body.expire_time.as_ref())?,
    })
}

/// The networks that a credential shall be accepted from, in their usual form.
pub(crate) fn allowed_addresses(texts: &[String]) -> Result<Vec<String>> {
    const FIELD: &str = "allowed_addresses";
    if texts.len() > MAX_NETWORKS {
        let problem = format!("must be at most {MAX_NETWORKS}, not {}", texts.len());
        return Err(Error::field(FIELD, problem));
    }
    let usual = |(at, text): (usize, &String)| match text.parse::<Network>() {
        Ok(network) => Ok(network.to_string()),
        Err(problem) => Err(Error::field(format!("{FIELD}[{at}]"), problem.to_string())),
    };
    texts.iter().enumerate().map(usual).collect()
}

/// What a person calls something; may be empty.
pub(crate) fn label(text: &str) -> Result<String> {
    name::check_label(text).field("label")?;
    Ok(text.to_owned())
}

/// The slug that something new shall have, and its name, which is the slug unless given.
pub(crate) fn named<'a>(
    field: &str,
    slug: &'a str,
    display_name: &'a str,
) -> Result<(&'a str, &'a str)> {
    name::check_slug(slug).field(field)?;
    name::check_label(display_name).field("display_name")?;
    let shown = match display_name {
        "" => slug,
        given => given,
    };
    Ok((slug, shown))
}

/// How long the old key of a rotation is accepted, in whole microseconds.
pub(crate) fn overlap(given: Option<&prost_types::Duration>) -> Result<Duration> {
    let Some(given) = given else {
        return Ok(DEFAULT_OVERLAP);
    };
    // Postgres counts microseconds.
    let overlap = Duration::seconds(given.seconds)
        .saturating_add(Duration::microseconds(i64::from(given.nanos / 1_000)));
    if (Duration::ZERO..=MAX_OVERLAP).contains(&overlap) {
        Ok(overlap)
    } else {
        Err(Error::field("overlap", "must be 0 to 30 days"))
    }
}

pub(crate) fn audit_filter(body: &pb::ListAuditEventsRequest) -> Result<Filter<'_>> {
    name::check_label(&body.action_prefix).field("action_prefix")?;
    name::check_label(&body.actor).field("actor")?;
    name::check_label(&body.resource).field("resource")?;
    Ok(Filter {
        workspace: None,
        action_prefix: &body.action_prefix,
        actor: &body.actor,
        resource: &body.resource,
        start: moment("start_time", body.start_time.as_ref())?,
        end: moment("end_time", body.end_time.as_ref())?,
    })
}

/// A page of a list by slug.
pub(crate) fn page_by_slug(size: i32, token: &str) -> Result<Page<String>> {
    let page: Page<String> = Page::parse(size, token)?;
    if let Some(after) = &page.after {
        name::check_slug(after)
            .map_err(|_| Error::field("page_token", "is not one this list gave out"))?;
    }
    Ok(page)
}

/// The partner to list from; `None` for all.
pub(crate) fn filter(partner: &str) -> Option<&str> {
    Some(partner).filter(|partner| !partner.is_empty())
}

fn moment(field: &str, moment: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>> {
    moment.map(wire::from_wire).transpose().field(field)
}

pub(crate) fn created_key(issued: Issued) -> pb::CreateKeyResponse {
    pb::CreateKeyResponse {
        secret: issued.secret.expose().to_owned(),
        key: Some(data_import_key(issued.credential)),
    }
}

pub(crate) fn rotated_key(rotated: Rotated) -> pb::RotateKeyResponse {
    pb::RotateKeyResponse {
        secret: rotated.successor.secret.expose().to_owned(),
        key: Some(data_import_key(rotated.successor.credential)),
        replaced_key: Some(data_import_key(rotated.replaced)),
    }
}

pub(crate) fn created_partner_key(issued: Issued) -> pb::CreatePartnerApiKeyResponse {
    pb::CreatePartnerApiKeyResponse {
        secret: issued.secret.expose().to_owned(),
        key: Some(partner_api_key(issued.credential)),
    }
}

pub(crate) fn created_token(issued: Issued) -> pb::CreateServiceTokenResponse {
    pb::CreateServiceTokenResponse {
        secret: issued.secret.expose().to_owned(),
        token: Some(service_token(issued.credential)),
    }
}

pub(crate) fn data_import_key(key: Credential) -> pb::DataImportKey {
    pb::DataImportKey {
        key_id: key.id.to_string(),
        state: state(key.state).into(),
        workspace: key.workspace.map(|(_, slug)| slug).unwrap_or_default(),
        partner: key.partner.unwrap_or_default(),
        label: key.label,
        hint: key.hint,
        create_time: Some(wire::to_wire(key.created_at)),
        expire_time: key.expires_at.map(wire::to_wire),
        revoke_time: key.revoked_at.map(wire::to_wire),
        last_used_time: key.last_used_at.map(wire::to_wire),
        replaced_by_key_id: key.replaced_by.map(|id| id.to_string()).unwrap_or_default(),
        allowed_addresses: key.allowed_addresses,
    }
}

pub(crate) fn partner_api_key(key: Credential) -> pb::PartnerApiKey {
    pb::PartnerApiKey {
        key_id: key.id.to_string(),
        state: state(key.state).into(),
        partner: key.partner.unwrap_or_default(),
        label: key.label,
        hint: key.hint,
        allowed_addresses: key.allowed_addresses,
        create_time: Some(wire::to_wire(key.created_at)),
        revoke_time: key.revoked_at.map(wire::to_wire),
        last_used_time: key.last_used_at.map(wire::to_wire),
    }
}

pub(crate) fn service_token(token: Credential) -> pb::ServiceToken {
    pb::ServiceToken {
        token_id: token.id.to_string(),
        state: state(token.state).into(),
        workspace: token.workspace.map(|(_, slug)| slug).unwrap_or_default(),
        label: token.label,
        hint: token.hint,
        scopes: token.scopes,
        allowed_addresses: token.allowed_addresses,
        create_time: Some(wire::to_wire(token.created_at)),
        expire_time: token.expires_at.map(wire::to_wire),
        revoke_time: token.revoked_at.map(wire::to_wire),
        last_used_time: token.last_used_at.map(wire::to_wire),
    }
}

fn state(state: State) -> pb::KeyState {
    match state {
        State::Active => pb::KeyState::Active,
        State::Expired => pb::KeyState::Expired,
        State::Revoked => pb::KeyState::Revoked,
    }
}

pub(crate) fn workspace(workspace: Workspace) -> pb::Workspace {
    pb::Workspace {
        workspace: workspace.slug,
        display_name: workspace.display_name,
        create_time: Some(wire::to_wire(workspace.created_at)),
    }
}

pub(crate) fn partner(partner: Partner) -> pb::Partner {
    pb::Partner {
        partner: partner.partner,
        display_name: partner.display_name,
        create_time: Some(wire::to_wire(partner.created_at)),
    }
}

pub(crate) fn integration(integration: Integration) -> pb::GetIntegrationResponse {
    pb::GetIntegrationResponse {
        partner: Some(partner(integration.partner)),
        enabled: integration.enabled,
        rest_endpoint: integration.rest_endpoint,
        keys: all(integration.keys, data_import_key),
    }
}

pub(crate) fn audit_event(event: Event) -> pb::AuditEvent {
    pb::AuditEvent {
        event_id: event.event_id,
        event_time: Some(wire::to_wire(event.occurred_at)),
        workspace: event.workspace.unwrap_or_default(),
        actor: event.actor,
        action: event.action,
        resource: event.resource,
        peer: event.peer.unwrap_or_default(),
        refusal: event.refusal.unwrap_or_default(),
    }
}

/// Each of a list on the wire.
pub(crate) fn all<T, M>(items: Vec<T>, to_wire: impl Fn(T) -> M) -> Vec<M> {
    items.into_iter().map(to_wire).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_0_to_30_days() {
        let read = |seconds, nanos| overlap(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(overlap(None).unwrap(), Duration::hours(24));
        assert_eq!(read(0, 0).unwrap(), Duration::ZERO);
        assert_eq!(read(1, 1_999).unwrap(), Duration::new(1, 1_000));
        assert_eq!(read(30 * 86_400, 0).unwrap(), MAX_OVERLAP);
        for (seconds, nanos) in [
            (30 * 86_400, 1_000),
            (0, -1_000),
            (-1, 0),
            (i64::MAX, i32::MAX),
            (i64::MIN, i32::MIN),
        ] {
            let refused = read(seconds, nanos).unwrap_err();
            assert_eq!(refused.fields[0].field, "overlap");
        }
    }
}
