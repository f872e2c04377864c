//! The intended rules, written down a second time: a row for each rpc, with the smallest request
//! that it accepts. What the servers do is held against this table, not against their own.
//!
//! A request is JSON with names in braces, which stand for something of a [`World`]: `{segment}` is
//! a segment of the workspace called. `{fresh}` and `{request}` are new at each call.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{wire, world::World};

/// What an rpc is about, and so who may see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum About {
    /// One workspace, named in the request.
    Workspace,
    /// Things of workspaces, named by their ids only.
    Thing,
    /// The whole deployment: not for tokens that are bound to a workspace.
    Deployment,
    /// Everything of its kind that the caller may see.
    Visible,
}

/// An rpc and a request that it accepts.
#[derive(Debug)]
pub(crate) struct Row {
    /// The rpc, as `muster.package.v1.Service/Method`.
    pub(crate) rpc: &'static str,
    /// The scope that a service token needs.
    pub(crate) scope: &'static str,
    /// Whether a data import key will do.
    pub(crate) key: bool,
    /// What it is about.
    pub(crate) about: About,
    /// The request.
    pub(crate) request: &'static str,
}

impl Row {
    /// The names in braces of the request.
    pub(crate) fn names(&self) -> BTreeSet<&'static str> {
        let parts = self.request.split('{').skip(1);
        let names = parts.filter_map(|part| Some(part.split_once('}')?.0));
        let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        names
            .filter(is_name)
            .filter(|name| !name.is_empty())
            .collect()
    }

    /// The request with things of a world, except for these.
    pub(crate) fn request(&self, world: &World, except: &[(&str, &str)]) -> Value {
        let mut text = self.request.to_owned();
        for name in self.names() {
            let other = except.iter().find(|(other, _)| *other == name);
            let value = match other {
                Some((_, value)) => (*value).to_owned(),
                None => world.get(name),
            };
            text = text.replace(&format!("{{{name}}}"), &value);
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}: {text}", self.rpc))
    }
}

const fn row(rpc: &'static str, scope: &'static str, about: About, request: &'static str) -> Row {
    Row {
        rpc,
        scope,
        key: false,
        about,
        request,
    }
}

/// As [`row`], for an rpc that a data import key may call, too.
const fn shared(rpc: &'static str, scope: &'static str, request: &'static str) -> Row {
    Row {
        rpc,
        scope,
        key: true,
        about: About::Workspace,
        request,
    }
}

use About::{Deployment, Thing, Visible, Workspace};

/// At least one row for every rpc of the contract; see
/// [`every_rpc_has_a_row`](crate::matrix::every_rpc_has_a_row).
pub(crate) const ROWS: &[Row] = &[
    row(
        "muster.keys.v1.KeyService/CreateKey",
        "keys:write",
        Workspace,
        r#"{"workspace": "{workspace}", "partner": "{partner}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.KeyService/GetKey",
        "keys:read",
        Workspace,
        r#"{"workspace": "{workspace}", "key_id": "{key}"}"#,
    ),
    row(
        "muster.keys.v1.KeyService/ListKeys",
        "keys:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.KeyService/RestrictKey",
        "keys:write",
        Workspace,
        r#"{"workspace": "{workspace}", "key_id": "{key}",
            "allowed_addresses": ["0.0.0.0/0", "::/0"], "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.KeyService/RevokeKey",
        "keys:write",
        Workspace,
        r#"{"workspace": "{workspace}", "key_id": "{key_to_revoke}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.KeyService/RotateKey",
        "keys:write",
        Workspace,
        r#"{"workspace": "{workspace}", "key_id": "{key_to_rotate}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/CreateWorkspace",
        "integrations:write",
        Deployment,
        r#"{"workspace": "{fresh}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListWorkspaces",
        "keys:read",
        Visible,
        r#"{"page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/CreatePartner",
        "integrations:write",
        Deployment,
        r#"{"partner": "{fresh}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListPartners",
        "keys:read",
        Visible,
        r#"{"page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/EnablePartner",
        "integrations:write",
        Workspace,
        r#"{"workspace": "{workspace}", "partner": "{spare_partner}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/DisablePartner",
        "integrations:write",
        Workspace,
        r#"{"workspace": "{workspace}", "partner": "{spare_partner}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/CreatePartnerApiKey",
        "integrations:write",
        Deployment,
        r#"{"partner": "{partner}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListPartnerApiKeys",
        "keys:read",
        Deployment,
        r#"{"partner": "{partner}", "page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/RevokePartnerApiKey",
        "integrations:write",
        Deployment,
        r#"{"partner": "{partner}", "key_id": "{partner_key}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/GetIntegration",
        "keys:read",
        Workspace,
        r#"{"workspace": "{workspace}", "partner": "{partner}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/CreateServiceToken",
        "integrations:write",
        Workspace,
        r#"{"workspace": "{workspace}", "label": "made", "scopes": ["integrations:write"],
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/CreateServiceToken",
        "integrations:write",
        Deployment,
        r#"{"label": "made", "scopes": ["integrations:write"], "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListServiceTokens",
        "keys:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/RestrictServiceToken",
        "integrations:write",
        Thing,
        r#"{"token_id": "{token}", "allowed_addresses": ["192.0.2.0/24"],
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/RevokeServiceToken",
        "integrations:write",
        Thing,
        r#"{"token_id": "{token}", "request_id": "{request}"}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListAuditEvents",
        "audit:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1}"#,
    ),
    row(
        "muster.keys.v1.IntegrationService/ListAuditEvents",
        "audit:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1, "actor": "operator",
            "resource": "segment:{segment}"}"#,
    ),
    row(
        "muster.users.v1.UserService/ImportUsers",
        "users:write",
        Workspace,
        r#"{"workspace": "{workspace}", "users": [{"external_id": "{user}"}]}"#,
    ),
    row(
        "muster.users.v1.UserService/UpsertUsers",
        "users:write",
        Workspace,
        r#"{"workspace": "{workspace}", "users": [{"external_id": "{user}"}],
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.users.v1.UserService/IdentifyUsers",
        "users:write",
        Workspace,
        r#"{"workspace": "{workspace}", "request_id": "{request}",
            "entries": [{"user": {"device_id": "{device}"}, "external_id": "{fresh}"}]}"#,
    ),
    row(
        "muster.users.v1.UserService/MergeUsers",
        "users:write",
        Workspace,
        r#"{"workspace": "{workspace}", "request_id": "{request}", "entries":
            [{"from": {"external_id": "{user_to_merge}"}, "into": {"external_id": "{user}"}}]}"#,
    ),
    row(
        "muster.users.v1.UserService/DeleteUsers",
        "users:write",
        Workspace,
        r#"{"workspace": "{workspace}", "users": [{"external_id": "{user_to_delete}"}],
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.users.v1.UserService/FindUser",
        "users:read",
        Workspace,
        r#"{"workspace": "{workspace}", "identifier": {"external_id": "{user}"}}"#,
    ),
    row(
        "muster.users.v1.UserService/FindUser",
        "users:read",
        Workspace,
        r#"{"workspace": "{workspace}", "user_no": {user_no}}"#,
    ),
    row(
        "muster.users.v1.UserService/FindUser",
        "users:read",
        Workspace,
        r#"{"workspace": "{workspace}", "identifier": {"device_id": "{device}"}}"#,
    ),
    row(
        "muster.users.v1.UserService/FindUser",
        "users:read",
        Workspace,
        r#"{"workspace": "{workspace}",
            "identifier": {"alias": {"label": "mail", "name": "{alias}"}}}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/IngestCohort",
        "cohorts:write",
        r#"{"open": {"workspace": "{workspace}", "partner": "{partner}", "cohort_id": "{cohort}",
            "mode": "IMPORT_MODE_DELTA", "import_id": "{import_open}"}}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/UpsertCohort",
        "cohorts:write",
        r#"{"workspace": "{workspace}", "partner": "{partner}",
            "cohort_id": "{cohort_to_archive}", "name": "autumn", "request_id": "{request}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/GetCohort",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "partner": "{partner}", "cohort_id": "{cohort}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/ListCohorts",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "partner": "{partner}", "page_size": 1}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/ListCohortVersions",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "partner": "{partner}", "cohort_id": "{cohort}",
            "page_size": 1}"#,
    ),
    row(
        "muster.ingest.v1.IngestService/ArchiveCohort",
        "cohorts:write",
        Workspace,
        r#"{"workspace": "{workspace}", "partner": "{partner}",
            "cohort_id": "{cohort_to_archive}", "request_id": "{request}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/GetImport",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "import_id": "{import}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/GetImport",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "import_id": "{import}", "partner": "{partner}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/ListImports",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "partner": "{partner}", "cohort_id": "{cohort}",
            "page_size": 1}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/ListRejectedIdentifiers",
        "cohorts:read",
        r#"{"workspace": "{workspace}", "import_id": "{import}", "page_size": 1}"#,
    ),
    row(
        "muster.ingest.v1.IngestService/ConfirmImport",
        "cohorts:write",
        Workspace,
        r#"{"workspace": "{workspace}", "import_id": "{import_to_confirm}",
            "request_id": "{request}"}"#,
    ),
    shared(
        "muster.ingest.v1.IngestService/AbortImport",
        "cohorts:write",
        r#"{"workspace": "{workspace}", "import_id": "{import_to_abort}",
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CreateSegment",
        "segments:write",
        Workspace,
        r#"{"workspace": "{workspace}", "name": "{fresh}", "request_id": "{request}",
            "filter": {"text": "{partner}:id(\"{cohort}\")"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/GetSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"segment_id": "{segment}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/GetSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"name": "{segment_name}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ListSegments",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ListSegments",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "page_size": 1,
            "uses": {"partner": "{partner}", "cohort_id": "{cohort}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/UpdateSegment",
        "segments:write",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"segment_id": "{segment}"},
            "filter": {"text": "segment(id(\"{used_segment}\"))"},
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ArchiveSegment",
        "segments:write",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"segment_id": "{segment_to_archive}"},
            "request_id": "{request}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CountSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"segment_id": "{segment}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CountSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "filter": {"text": "{partner}:id(\"{cohort}\")"},
            "consistency_token": "{consistency_token}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CountSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "filter": {"text": "{partner}:\"{cohort_name}\""}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CountSegment",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "filter": {"tree": {"all_of": {"filters": [
            {"cohort": {"partner": "{partner}", "cohorts": [{"cohort_id": "{cohort}"}]}},
            {"segment": {"segment_id": "{segment}"}}]}}}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CountFilters",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "filters": [{"text": "{partner}:id(\"{cohort}\")"}]}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ResolveSegment",
        "audiences:read",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"name": "{segment_name}"},
            "view": "AUDIENCE_VIEW_FULL", "request_id": "{request}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ResolveSegment",
        "audiences:read",
        Workspace,
        r#"{"workspace": "{workspace}", "resolution_id": "{resolution}",
            "view": "AUDIENCE_VIEW_FULL", "resume_token": "{resume_token}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/GetResolution",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "resolution_id": "{resolution}"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/ListResolutions",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "segment": {"segment_id": "{segment}"},
            "page_size": 1}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/DiffResolutions",
        "audiences:read",
        Workspace,
        r#"{"workspace": "{workspace}", "base_resolution_id": "{resolution}",
            "target_resolution_id": "{later_resolution}", "view": "AUDIENCE_VIEW_FULL"}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CheckMembership",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "identifier": {"external_id": "{user}"},
            "segment": {"segment_id": "{segment}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CheckMembership",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "identifier": {"device_id": "{device}"},
            "segment": {"segment_id": "{segment}"}}"#,
    ),
    row(
        "muster.segments.v1.SegmentService/CheckMembership",
        "segments:read",
        Workspace,
        r#"{"workspace": "{workspace}", "user_no": {user_no},
            "filter": {"text": "{partner}:id(\"{cohort}\")"}}"#,
    ),
];

/// What is the matter with the table, in words for whoever added an rpc.
pub(crate) fn complaints() -> Vec<String> {
    let mut complaints = Vec::new();
    for rpc in wire::rpcs() {
        let name = wire::name(&rpc);
        if !ROWS.iter().any(|row| row.rpc == name) {
            complaints.push(format!(
                "{name} has no row: add one to ROWS in tests/access/requests.rs, with its scope, \
                 whether a data import key may call it, what it is about, and the smallest request \
                 that it accepts; what that names in braces is made in tests/access/world.rs"
            ));
        }
    }
    for row in ROWS {
        if wire::rpc(row.rpc).is_none() {
            complaints.push(format!("{} has a row but is not in the contract", row.rpc));
        }
    }
    complaints
}
