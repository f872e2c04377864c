//! The page of a partner: where to send, the data import keys, and whether anything has come.

use askama::Template;
use axum::{
    Form,
    extract::Path,
    response::{IntoResponse, Redirect, Response},
};
use muster_client::Refusal;
use muster_proto::{
    ingest::v1::ListImportsRequest,
    keys::v1::{
        CreateKeyRequest, DataImportKey, EnablePartnerRequest, GetIntegrationRequest,
        GetKeyRequest, KeyState, ListPartnersRequest, Partner, RevokeKeyRequest, RotateKeyRequest,
    },
};
use serde::Deserialize;
use time::OffsetDateTime;
use tonic::Code;
use uuid::Uuid;

use crate::{
    frame::{self, Frame, Notice, Section},
    problem::Problem,
    session::Visitor,
    view::When,
};

/// How soon a page that waits for something looks again, in seconds.
const LOOK_AGAIN: u32 = 2;

#[derive(Template)]
#[template(path = "integrations.html")]
struct ListPage {
    frame: Frame,
    partners: Vec<Partner>,
}

/// The partners of the deployment.
pub(crate) async fn list(visitor: Visitor) -> Result<Response, Problem> {
    let request = ListPartnersRequest {
        page_size: 1_000,
        ..ListPartnersRequest::default()
    };
    let mut integrations = visitor.connection().integrations();
    let partners = integrations.list_partners(request).await?.into_inner();
    Ok(frame::html(&ListPage {
        frame: visitor.frame("Integrations", Section::Integrations),
        partners: partners.partners,
    }))
}

/// A data import key as a row.
struct Key {
    id: String,
    label: String,
    hint: String,
    state: State,
    created: When,
    expires: When,
    last_used: When,
    rotated: bool,
}

/// Whether a key is accepted, as people say it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    Ending,
    Expired,
    Invalidated,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Ending => "being replaced",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
        }
    }

    fn tone(self) -> &'static str {
        match self {
            Self::Active => "good",
            Self::Ending => "wait",
            Self::Expired | Self::Invalidated => "off",
        }
    }

    fn is_accepted(self) -> bool {
        matches!(self, Self::Active | Self::Ending)
    }
}

impl From<DataImportKey> for Key {
    fn from(key: DataImportKey) -> Self {
        let rotated = !key.replaced_by_key_id.is_empty();
        Self {
            state: match key.state() {
                KeyState::Revoked => State::Invalidated,
                KeyState::Expired => State::Expired,
                _ if rotated => State::Ending,
                _ => State::Active,
            },
            rotated,
            id: key.key_id,
            label: key.label,
            hint: key.hint,
            created: key.create_time.into(),
            expires: key.expire_time.into(),
            last_used: key.last_used_time.into(),
        }
    }
}

impl Key {
    /// What to call it.
    fn name(&self) -> &str {
        if self.label.is_empty() {
            &self.hint
        } else {
            &self.label
        }
    }
}

#[derive(Template)]
#[template(path = "integration.html")]
struct PartnerPage {
    frame: Frame,
    workspace: String,
    partner: Partner,
    enabled: bool,
    endpoint: String,
    keys: Vec<Key>,
    first_call: FirstCall,
    request_id: String,
    label: String,
    label_error: String,
}

/// Whether anything has come from the partner yet.
#[derive(PartialEq, Eq)]
enum FirstCall {
    /// There is no key that it could use.
    NoKey,
    Waiting,
    Arrived(When),
    /// The token may not see imports.
    Hidden,
}

async fn page(
    visitor: &Visitor,
    partner: String,
    label: String,
    label_error: String,
) -> Result<PartnerPage, Problem> {
    let request = GetIntegrationRequest {
        workspace: visitor.workspace.clone(),
        partner: partner.clone(),
    };
    let mut integrations = visitor.connection().integrations();
    let found = integrations.get_integration(request).await?.into_inner();
    let keys: Vec<Key> = found.keys.into_iter().map(Key::from).collect();
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        partner,
        page_size: 1,
        ..ListImportsRequest::default()
    };
    let newest = visitor.connection().ingest().list_imports(request).await;
    let first_call = match newest.map(|answer| answer.into_inner().imports.pop()) {
        Ok(Some(newest)) => FirstCall::Arrived(newest.create_time.into()),
        Ok(None) if keys.iter().any(|key| key.state.is_accepted()) => FirstCall::Waiting,
        Ok(None) => FirstCall::NoKey,
        Err(status) if status.code() == Code::PermissionDenied => FirstCall::Hidden,
        Err(status) => return Err(status.into()),
    };
    let partner = found.partner.ok_or_else(Problem::not_found)?;
    let mut frame = visitor.frame(&partner.display_name, Section::Integrations);
    frame.refresh_seconds = (first_call == FirstCall::Waiting).then_some(5 * LOOK_AGAIN);
    Ok(PartnerPage {
        frame,
        workspace: visitor.workspace.clone(),
        partner,
        enabled: found.enabled,
        endpoint: found.rest_endpoint,
        keys,
        first_call,
        request_id: Uuid::now_v7().to_string(),
        label,
        label_error,
    })
}

/// The page of one partner.
pub(crate) async fn show(
    visitor: Visitor,
    Path((_, partner)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let page = page(&visitor, partner, String::new(), String::new()).await?;
    Ok(frame::html(&page))
}

/// Lets the partner push into the workspace.
pub(crate) async fn enable(
    visitor: Visitor,
    Path((_, partner)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let request = EnablePartnerRequest {
        workspace: visitor.workspace.clone(),
        partner: partner.clone(),
        request_id: String::new(),
    };
    let mut integrations = visitor.connection().integrations();
    integrations.enable_partner(request).await?;
    let text = "The partner may now push cohorts into this workspace.";
    visitor.session().notify(Notice::good(text));
    Ok(to_partner(&visitor, &partner))
}

fn to_partner(visitor: &Visitor, partner: &str) -> Response {
    let path = format!("/w/{}/integrations/{partner}", visitor.workspace);
    Redirect::to(&path).into_response()
}

#[derive(Deserialize)]
pub(crate) struct NewKey {
    #[serde(default)]
    label: String,
    #[serde(default)]
    days: String,
    request_id: String,
}

/// Generates a key. Its secret waits in the session for the page that shows it, so that it is in
/// no address, and a page that is loaded again does not generate another.
pub(crate) async fn create_key(
    visitor: Visitor,
    Path((_, partner)): Path<(String, String)>,
    Form(form): Form<NewKey>,
) -> Result<Response, Problem> {
    let expire_time = match form.days.trim() {
        "" => None,
        days => {
            let days: u16 = days
                .parse()
                .map_err(|_| Problem::invalid("Days must be a number up to 65,535."))?;
            let at = OffsetDateTime::now_utc() + time::Duration::days(i64::from(days));
            Some(timestamp(at))
        }
    };
    let request = CreateKeyRequest {
        workspace: visitor.workspace.clone(),
        partner: partner.clone(),
        label: form.label.trim().to_owned(),
        expire_time,
        request_id: form.request_id,
        ..CreateKeyRequest::default()
    };
    match visitor.connection().keys().create_key(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok(to_secret(&visitor, &partner, answer.key, answer.secret))
        }
        Err(status) => {
            let refusal = Refusal::from(status);
            let Some(field) = refusal.fields.iter().find(|field| field.field == "label") else {
                return Err(refusal.into());
            };
            let error = format!("The label {}.", field.description);
            let page = page(&visitor, partner, form.label, error).await?;
            let page = frame::html(&page);
            Ok((http::StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
    }
}

fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.unix_timestamp(),
        nanos: 0,
    }
}

fn to_secret(
    visitor: &Visitor,
    partner: &str,
    key: Option<DataImportKey>,
    secret: String,
) -> Response {
    let key_id = key.map(|key| key.key_id).unwrap_or_default();
    // Empty if the same form came twice: the secret of the first time still waits.
    if !secret.is_empty() {
        visitor.session().keep_secret(&key_id, secret);
    }
    let workspace = &visitor.workspace;
    let path = format!("/w/{workspace}/integrations/{partner}/keys/{key_id}/secret");
    Redirect::to(&path).into_response()
}

/// A page about one key.
#[derive(Template)]
#[template(path = "key.html")]
struct KeyPage {
    frame: Frame,
    workspace: String,
    partner: String,
    key: Key,
    request_id: String,
    kind: KeyPageKind,
}

enum KeyPageKind {
    /// The secret, or `None` once it was shown.
    Secret(Option<String>),
    Rotate,
    Invalidate,
}

type KeyPath = Path<(String, String, String)>;

async fn key_page(
    visitor: &Visitor,
    partner: String,
    key_id: String,
    kind: KeyPageKind,
) -> Result<Response, Problem> {
    let request = GetKeyRequest {
        workspace: visitor.workspace.clone(),
        key_id,
    };
    let answer = visitor.connection().keys().get_key(request).await?;
    let key = answer.into_inner().key.ok_or_else(Problem::not_found)?;
    if key.partner != partner {
        return Err(Problem::not_found());
    }
    let title = match kind {
        KeyPageKind::Secret(_) => "New key",
        KeyPageKind::Rotate => "Rotate a key",
        KeyPageKind::Invalidate => "Invalidate a key",
    };
    Ok(frame::html(&KeyPage {
        frame: visitor.frame(title, Section::Integrations),
        workspace: visitor.workspace.clone(),
        partner,
        key: key.into(),
        request_id: Uuid::now_v7().to_string(),
        kind,
    }))
}

/// Shows a new secret, once.
pub(crate) async fn secret(
    visitor: Visitor,
    Path((_, partner, key_id)): KeyPath,
) -> Result<Response, Problem> {
    let secret = visitor.session().take_secret(&key_id);
    key_page(&visitor, partner, key_id, KeyPageKind::Secret(secret)).await
}

/// Asks how to rotate a key.
pub(crate) async fn confirm_rotation(
    visitor: Visitor,
    Path((_, partner, key_id)): KeyPath,
) -> Result<Response, Problem> {
    key_page(&visitor, partner, key_id, KeyPageKind::Rotate).await
}

#[derive(Deserialize)]
pub(crate) struct Rotation {
    overlap_hours: u32,
    request_id: String,
}

/// Replaces a key by a new one; both are accepted for a while.
pub(crate) async fn rotate(
    visitor: Visitor,
    Path((_, partner, key_id)): KeyPath,
    Form(form): Form<Rotation>,
) -> Result<Response, Problem> {
    let request = RotateKeyRequest {
        workspace: visitor.workspace.clone(),
        key_id,
        overlap: Some(prost_types::Duration {
            seconds: i64::from(form.overlap_hours) * 3_600,
            nanos: 0,
        }),
        request_id: form.request_id,
    };
    let answer = visitor.connection().keys().rotate_key(request).await?;
    let answer = answer.into_inner();
    Ok(to_secret(&visitor, &partner, answer.key, answer.secret))
}

/// Asks whether to invalidate a key.
pub(crate) async fn confirm_invalidation(
    visitor: Visitor,
    Path((_, partner, key_id)): KeyPath,
) -> Result<Response, Problem> {
    key_page(&visitor, partner, key_id, KeyPageKind::Invalidate).await
}

/// Invalidates a key.
pub(crate) async fn invalidate(
    visitor: Visitor,
    Path((_, partner, key_id)): KeyPath,
) -> Result<Response, Problem> {
    let request = RevokeKeyRequest {
        workspace: visitor.workspace.clone(),
        key_id,
        request_id: String::new(),
    };
    let answer = visitor.connection().keys().revoke_key(request).await?;
    let key = answer.into_inner().key.map(Key::from);
    let name = key.as_ref().map_or("The key", Key::name);
    let text = format!("{name} is invalidated: nothing sent with it is published any more.");
    visitor.session().notify(Notice::good(text));
    Ok(to_partner(&visitor, &partner))
}
