//! Partners whose calls fail, and why.

use std::collections::HashMap;

use muster_proto::{
    ingest::v1::{ImportState, ListImportsRequest},
    keys::v1::{AuditEvent, DataImportKey, ListAuditEventsRequest, ListKeysRequest},
};
use tonic::Status;

use super::{NAMED, TODAY, ago};
use crate::{cohorts, session::Visitor, view::When};

/// Keys and refusals that are looked through.
const LOOKED_THROUGH: i32 = 1_000;

/// Since when an import was begun that was given up today.
const GIVEN_UP: time::Duration = time::Duration::days(3);

/// Something of a partner's that failed.
pub(super) struct Failing {
    pub(super) partner: String,
    /// Where to look.
    pub(super) path: String,
    /// What failed: what people call a key or a cohort.
    pub(super) what: String,
    pub(super) why: &'static str,
    pub(super) when: When,
}

/// Keys that were refused, and imports that were given up.
pub(super) async fn failing(visitor: &Visitor) -> Result<Vec<Failing>, Status> {
    let (refused, given_up) = futures::try_join!(refused(visitor), given_up(visitor))?;
    Ok(refused.into_iter().chain(given_up).collect())
}

async fn refused(visitor: &Visitor) -> Result<Vec<Failing>, Status> {
    let events = ListAuditEventsRequest {
        workspace: visitor.workspace.clone(),
        start_time: Some(ago(TODAY)),
        action_prefix: "data_import_key.use".to_owned(),
        page_size: LOOKED_THROUGH,
        ..Default::default()
    };
    let keys = ListKeysRequest {
        workspace: visitor.workspace.clone(),
        page_size: LOOKED_THROUGH,
        ..Default::default()
    };
    let (mut trail, mut importers) = (
        visitor.connection().integrations(),
        visitor.connection().keys(),
    );
    let events = trail.list_audit_events(events).await?.into_inner().events;
    let keys = importers.list_keys(keys).await?.into_inner().keys;
    Ok(of_keys(&visitor.workspace, events, keys))
}

/// The last refusal of each key that was not used since.
fn of_keys(
    workspace: &str,
    newest_first: Vec<AuditEvent>,
    keys: Vec<DataImportKey>,
) -> Vec<Failing> {
    let mut keys: HashMap<String, DataImportKey> = keys
        .into_iter()
        .map(|key| (key.key_id.clone(), key))
        .collect();
    let of_key = |event: AuditEvent| {
        let (_, id) = event.resource.split_once(':')?;
        // Taken, so that older refusals of the same key find nothing.
        let key = keys.remove(id)?;
        let seconds = |time: Option<prost_types::Timestamp>| time.map(|time| time.seconds);
        if seconds(key.last_used_time) > seconds(event.event_time) {
            return None;
        }
        Some(Failing {
            path: format!("/w/{workspace}/integrations/{}", key.partner),
            partner: key.partner,
            what: if key.label.is_empty() {
                key.hint
            } else {
                key.label
            },
            why: match event.refusal.as_str() {
                "CREDENTIAL_EXPIRED" => "was used, but has expired",
                "CREDENTIAL_REVOKED" => "was used, but is invalidated",
                "PARTNER_NOT_ENABLED" => "was used, but the partner is not enabled",
                "ADDRESS_NOT_ALLOWED" => "was used from an address that is not allowed",
                _ => "was refused",
            },
            when: When::from(&event.event_time),
        })
    };
    newest_first.into_iter().filter_map(of_key).collect()
}

async fn given_up(visitor: &Visitor) -> Result<Vec<Failing>, Status> {
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        state: ImportState::Expired.into(),
        since: Some(ago(GIVEN_UP)),
        page_size: NAMED,
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_imports(request).await?;
    let imports = listed.into_inner().imports.into_iter();
    let failing = imports.map(|import| Failing {
        path: cohorts::import_path(&visitor.workspace, &import.partner, &import.import_id),
        partner: import.partner,
        what: import.cohort_name,
        why: "got an import that was begun and never completed",
        when: When::from(&import.update_time),
    });
    Ok(failing.collect())
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn a_key_is_named_once_by_its_last_refusal_unless_it_works_again() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let event = |id: &str, seconds, refusal: &str| AuditEvent {
            resource: format!("data_import_key:{id}"),
            event_time: at(seconds),
            refusal: refusal.to_owned(),
            ..Default::default()
        };
        let key = |id: &str, used| DataImportKey {
            key_id: id.to_owned(),
            label: format!("key {id}"),
            partner: "tinyclues".to_owned(),
            last_used_time: used,
            ..Default::default()
        };
        let newest_first = vec![
            event("a", 300, "CREDENTIAL_REVOKED"),
            event("b", 200, "PARTNER_NOT_ENABLED"),
            event("a", 100, "CREDENTIAL_EXPIRED"),
            event("gone", 100, "CREDENTIAL_EXPIRED"),
        ];
        let keys = vec![key("a", at(50)), key("b", at(250))];
        let found = of_keys("shop", newest_first, keys);
        let found: Vec<_> = found.iter().map(|it| (&*it.what, it.why)).collect();
        assert_eq!(found, [("key a", "was used, but is invalidated")]);
    }
}
