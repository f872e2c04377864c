//! What each noun of the contract looks like: the one place that says it, for lists and details.
//!
//! The JSON of a noun is its message; the columns pick from it by path.

use muster_proto::{
    ingest::v1 as ingest, keys::v1 as keys, segments::v1 as segments, users::v1 as users,
};
use serde_json::Value;

use super::{
    Column, Noun, col, json,
    table::{grouped, render_value},
};

/// Describes nouns: type, name in the contract, plural, columns.
macro_rules! nouns {
    ($($noun:ty, $message:literal, $plural:literal, [$($column:expr),* $(,)?];)*) => {
        $(impl Noun for $noun {
            const PLURAL: &'static str = $plural;
            const COLUMNS: &'static [Column] = &[$($column),*];

            fn json(&self) -> Value {
                json::message($message, self)
            }
        })*

        #[cfg(test)]
        const ALL: &[(&str, &[Column])] = &[$(($message, <$noun>::COLUMNS)),*];
    };
}

nouns! {
    keys::Workspace, "muster.keys.v1.Workspace", "workspaces", [
        col("workspace"),
        col("display_name").titled("name"),
        col("create_time").titled("created"),
    ];
    keys::Partner, "muster.keys.v1.Partner", "partners", [
        col("partner"),
        col("display_name").titled("name"),
        col("create_time").titled("created"),
    ];
    keys::PartnerApiKey, "muster.keys.v1.PartnerApiKey", "API keys of this partner", [
        col("key_id"),
        col("partner"),
        col("label"),
        col("hint"),
        col("state"),
        col("allowed_addresses").titled("allowed from").shown_by(from),
        col("create_time").titled("created"),
        col("last_used_time").titled("last used"),
        col("revoke_time").titled("revoked").detail(),
    ];
    keys::DataImportKey, "muster.keys.v1.DataImportKey", "data import keys", [
        col("key_id"),
        col("workspace").detail(),
        col("partner"),
        col("label"),
        col("hint"),
        col("state"),
        col("allowed_addresses").titled("allowed from").shown_by(from),
        col("create_time").titled("created"),
        col("expire_time").titled("expires"),
        col("last_used_time").titled("last used"),
        col("revoke_time").titled("revoked").detail(),
        col("replaced_by_key_id").titled("replaced by").detail(),
    ];
    keys::ServiceToken, "muster.keys.v1.ServiceToken", "service tokens", [
        col("token_id"),
        col("label"),
        col("workspace").shown_by(workspace_or_all),
        col("scopes"),
        col("hint"),
        col("state"),
        col("allowed_addresses").titled("allowed from").shown_by(from),
        col("create_time").titled("created"),
        col("expire_time").titled("expires"),
        col("last_used_time").titled("last used"),
        col("revoke_time").titled("revoked").detail(),
    ];
    keys::AuditEvent, "muster.keys.v1.AuditEvent", "audit events", [
        col("event_id").titled("event").name(),
        col("event_time").titled("time"),
        col("workspace").shown_by(workspace_or_all),
        col("actor"),
        col("peer").titled("from"),
        col("action"),
        col("resource"),
        col("refusal").titled("refused"),
    ];
    keys::GetIntegrationResponse, "muster.keys.v1.GetIntegrationResponse", "integrations", [
        col("partner.partner"),
        col("partner.display_name").titled("name"),
        col("enabled"),
        col("rest_endpoint").titled("REST endpoint"),
    ];
    users::FindUserResponse, "muster.users.v1.FindUserResponse", "users", [
        col("user.user_no").titled("user_no").name(),
        col("user.state"),
        col("user.external_id").titled("external_id"),
        col("user.merged_external_ids").titled("merged external ids"),
        col("user.aliases").shown_by(aliases),
        col("user.device_ids").titled("devices"),
        col("user.merged_into_user_no").titled("merged into user_no").name(),
        col("user.create_time").titled("created"),
        col("matched_by_imports"),
    ];
    users::UserResult, "muster.users.v1.UserResult", "results", [
        col("outcome"),
        col("user_no").titled("user_no").name(),
        col("detail"),
    ];
    ingest::Cohort, "muster.ingest.v1.Cohort", "cohorts", [
        col("partner"),
        col("cohort_id").titled("cohort_id"),
        col("name"),
        col("former_names"),
        col("version"),
        col("latest_version.member_count").titled("size at last import"),
        col("member_count").titled("members").detail(),
        col("archived"),
        col("create_time").titled("created").detail(),
        col("last_import_time").titled("last import"),
        col("etag").detail(),
    ];
    ingest::CohortVersion, "muster.ingest.v1.CohortVersion", "versions", [
        col("version"),
        col("publish_time").titled("published"),
        col("member_count").titled("members"),
        col("added_count").titled("added"),
        col("removed_count").titled("removed"),
        col("received_count").titled("received"),
        col("matched_count").titled("matched"),
        col("import_id").titled("import_id"),
    ];
    ingest::Import, "muster.ingest.v1.Import", "imports", [
        col("import_id").titled("import_id"),
        col("partner"),
        col("cohort_id").titled("cohort_id"),
        col("cohort_name").titled("name").detail(),
        col("mode"),
        col("state"),
        col("received"),
        col("cohort_version").titled("version"),
        col("create_time").titled("created"),
        col("update_time").titled("updated").detail(),
        col("expire_time").titled("expires").detail(),
        col("source_time").titled("source time").detail(),
        col("created_by").detail(),
    ];
    ingest::Committed, "muster.ingest.v1.Committed", "imports", [
        col("version"),
        col("consistency_token").detail(),
    ];
    ingest::RejectedIdentifier, "muster.ingest.v1.RejectedIdentifier", "rejected identifiers", [
        col("position").name(),
        col("removal").titled("effect").shown_by(effect),
        col("reason"),
        col("identifier").shown_by(identifier),
    ];
    segments::Segment, "muster.segments.v1.Segment", "segments", [
        col("name"),
        col("filter_text").titled("filter"),
        col("archived"),
        col("create_time").titled("created").detail(),
        col("update_time").titled("updated"),
        col("segment_id").titled("segment_id"),
        col("etag").detail(),
    ];
    segments::Resolution, "muster.segments.v1.Resolution", "resolutions", [
        col("resolution_id").titled("resolution_id"),
        col("user_count").titled("users"),
        col("filter_text").titled("filter"),
        col("cohort_versions").titled("cohorts").shown_by(cohort_versions).detail(),
        col("create_time").titled("created"),
        col("expire_time").titled("expires"),
        col("created_by"),
    ];
    segments::CountSegmentResponse, "muster.segments.v1.CountSegmentResponse", "counts", [
        col("user_count").titled("users"),
        col("cohort_versions").titled("cohorts").shown_by(cohort_versions),
    ];
    segments::DiffHeader, "muster.segments.v1.DiffHeader", "differences", [
        col("entered_count").titled("entered"),
        col("left_count").titled("left"),
        col("stayed_count").titled("stayed"),
    ];
}

fn workspace_or_all(value: &Value) -> String {
    match value.as_str() {
        Some("") | None => "(all)".to_owned(),
        Some(slug) => slug.to_owned(),
    }
}

fn from(value: &Value) -> String {
    match render_value(value) {
        none if none.is_empty() => "everywhere".to_owned(),
        networks => networks,
    }
}

fn aliases(value: &Value) -> String {
    let aliases = value.as_array().into_iter().flatten();
    let aliases: Vec<_> = aliases
        .map(|alias| format!("alias:{}={}", text(alias, "label"), text(alias, "name")))
        .collect();
    aliases.join(", ")
}

fn effect(value: &Value) -> String {
    let removal = value.as_bool().unwrap_or(false);
    if removal { "remove" } else { "add" }.to_owned()
}

/// The text form that commands accept.
fn identifier(value: &Value) -> String {
    for kind in ["external_id", "device_id"] {
        if let Some(id) = value[kind].as_str() {
            return format!("{kind}={id}");
        }
    }
    let alias = &value["alias"];
    format!("alias:{}={}", text(alias, "label"), text(alias, "name"))
}

fn cohort_versions(value: &Value) -> String {
    let cohorts = value.as_array().into_iter().flatten();
    let cohorts: Vec<_> = cohorts
        .map(|cohort| {
            format!(
                "{}:{:?} version {}",
                text(cohort, "partner"),
                text(cohort, "name"),
                grouped(&render_value(&cohort["version"]))
            )
        })
        .collect();
    cohorts.join(", ")
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prost_reflect::Kind;

    use super::*;

    #[test]
    fn every_column_picks_a_field_of_the_contract() {
        for (name, columns) in ALL {
            for column in *columns {
                let mut message = json::descriptor(name);
                let mut parts = column.path.split('.').peekable();
                while let Some(part) = parts.next() {
                    let field = message.get_field_by_name(part);
                    let field = field.unwrap_or_else(|| panic!("{name} has no {}", column.path));
                    match field.kind() {
                        Kind::Message(inner) if parts.peek().is_some() => message = inner,
                        _ => assert!(parts.peek().is_none(), "{name}: {}", column.path),
                    }
                }
            }
        }
    }

    #[test]
    fn identifiers_show_as_commands_take_them() {
        for form in ["external_id=u1", "alias:mail=x", "device_id=d"] {
            let rejected = ingest::RejectedIdentifier {
                identifier: Some(crate::identifier::parse_identifier(form).unwrap()),
                ..Default::default()
            };
            assert_eq!(identifier(&rejected.json()["identifier"]), form);
        }
    }
}
