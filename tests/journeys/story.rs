//! The story of the product up to the published cohort; [`super::campaign`] goes on.

use std::{fs::File, io::Write as _, path::PathBuf};

use flate2::{Compression, write::GzEncoder};
use muster_bridge::export::{self, Delivery, FileReport, Options, RestTarget, Target};
use muster_domain::import::Mode;
use muster_proto::{ingest::v1 as ingest, keys::v1 as keys};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

/// Writes an export file; one whose name ends in `.gz` is compressed.
pub(crate) fn write_file(folder: &TempDir, name: &str, lines: &[String]) -> PathBuf {
    let path = folder.path().join(name);
    let text = lines.join("\n") + "\n";
    let mut file = File::create(&path).unwrap();
    if name.ends_with(".gz") {
        let mut gzip = GzEncoder::new(file, Compression::default());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap();
    } else {
        file.write_all(text.as_bytes()).unwrap();
    }
    path
}

/// An export file of external ids.
pub(crate) fn write_ids(folder: &TempDir, name: &str, ids: &[String]) -> PathBuf {
    let mut lines = vec!["external_id".to_owned()];
    lines.extend_from_slice(ids);
    write_file(folder, name, &lines)
}

/// `u-FIRST` to `u-END`.
pub(crate) fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("u-{n:05}")).collect()
}

/// A deployment whose directory has so many of [`ids`].
pub(crate) async fn shop_of(users: usize) -> Muster {
    let muster = Muster::start().await;
    let records = ids(0..users).iter().map(|id| identified(id)).collect();
    muster.upsert_users(records).await;
    muster
}

/// Exports over gRPC with the partner's data import key, which fixes workspace and partner.
pub(crate) fn grpc(muster: &Muster) -> Target {
    Target::Grpc {
        connection: muster.partner(),
        workspace: String::new(),
        partner: String::new(),
    }
}

/// Exports a file.
pub(crate) async fn send(file: &std::path::Path, target: &Target, mode: Mode) -> FileReport {
    let sent = export::export(file, target, &Options::new(mode), &mut |_| {}).await;
    sent.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

async fn integration(muster: &Muster) -> keys::GetIntegrationResponse {
    let request = keys::GetIntegrationRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
    };
    let page = muster
        .operator
        .integrations()
        .get_integration(request)
        .await;
    page.unwrap().into_inner()
}

#[tokio::test]
async fn step_1_an_operator_creates_a_workspace_a_partner_and_its_key() {
    let muster = Muster::start().await;
    let mut integrations = muster.operator.integrations();
    let workspace = keys::CreateWorkspaceRequest {
        workspace: "bank".into(),
        display_name: "The bank".into(),
        request_id: String::new(),
    };
    let made = integrations
        .create_workspace(workspace.clone())
        .await
        .unwrap();
    assert_eq!(
        made.into_inner().workspace.unwrap().display_name,
        "The bank"
    );
    let twice = integrations.create_workspace(workspace).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);

    // The partner is there for everybody, but this workspace has not enabled it.
    let new_key = keys::CreateKeyRequest {
        workspace: "bank".into(),
        partner: PARTNER.into(),
        ..Default::default()
    };
    let early = muster
        .operator
        .keys()
        .create_key(new_key.clone())
        .await
        .unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    let enable = keys::EnablePartnerRequest {
        workspace: "bank".into(),
        partner: PARTNER.into(),
        request_id: String::new(),
    };
    for _ in 0..2 {
        integrations.enable_partner(enable.clone()).await.unwrap();
    }
    let key = muster
        .operator
        .keys()
        .create_key(new_key)
        .await
        .unwrap()
        .into_inner();
    let rest = muster.rest().with_client_secret(&key.secret);
    rest.change("c", json!([])).await.succeeded();

    // Who did what is on record.
    let trail = keys::ListAuditEventsRequest {
        workspace: "bank".into(),
        ..Default::default()
    };
    let trail = integrations
        .list_audit_events(trail)
        .await
        .unwrap()
        .into_inner();
    let key_id = key.key.unwrap().key_id;
    let created = trail
        .events
        .iter()
        .find(|event| event.resource.ends_with(&key_id));
    let created = created.unwrap_or_else(|| panic!("not on record: {trail:?}"));
    assert!(created.actor.starts_with("service_token:"), "{created:?}");
    assert!(!format!("{trail:?}").contains(&key.secret));
    muster.stop().await;
}

#[tokio::test]
async fn step_2_the_integration_page_has_all_to_hand_over_but_no_secret() {
    let muster = Muster::start().await;
    let page = integration(&muster).await;
    assert!(page.enabled);
    assert_eq!(
        page.rest_endpoint,
        format!("{}/partners/{PARTNER}", muster.rest)
    );
    assert_eq!(page.keys.len(), 1);
    assert!(
        !format!("{page:?}").contains(&muster.client_secret),
        "shown once"
    );
    let hint = page.keys[0].hint.strip_prefix("mst_dik_…").unwrap();
    assert!(
        hint.len() == 4 && muster.client_secret.contains(hint),
        "{hint}"
    );
    muster.stop().await;
}

#[tokio::test]
async fn step_2_keys_are_rotated_without_a_gap_and_invalidated_at_once() {
    let muster = Muster::start().await;
    let first = muster.rest();
    let old = integration(&muster).await.keys.remove(0);
    let rotate = keys::RotateKeyRequest {
        workspace: WORKSPACE.into(),
        key_id: old.key_id.clone(),
        ..Default::default()
    };
    let rotated = muster
        .operator
        .keys()
        .rotate_key(rotate)
        .await
        .unwrap()
        .into_inner();
    let second = first.with_client_secret(&rotated.secret);
    for rest in [&first, &second] {
        rest.change("c", json!([])).await.succeeded();
    }
    // By hand: another key, and the partner moves over before the old one goes.
    let third = muster.create_key().await;
    first
        .with_client_secret(&third.secret)
        .change("c", json!([]))
        .await
        .succeeded();
    muster.revoke_key(&old.key_id).await;
    first
        .change("c", json!([]))
        .await
        .says(401, "Invalid client secret");
    second.change("c", json!([])).await.succeeded();

    let page = integration(&muster).await;
    let states: Vec<_> = page.keys.iter().map(keys::DataImportKey::state).collect();
    let (active, revoked) = (keys::KeyState::Active, keys::KeyState::Revoked);
    assert_eq!(states, [active, active, revoked], "newest first");
    assert_eq!(page.keys[2].replaced_by_key_id, rotated.key.unwrap().key_id);
    assert!(
        page.keys.iter().all(|key| key.last_used_time.is_some()),
        "{page:?}"
    );
    muster.stop().await;
}

#[tokio::test]
async fn step_3_exports_become_cohorts_named_after_their_files() {
    let muster = shop_of(2_500).await;
    let folder = TempDir::new().unwrap();
    let rest = Target::Rest(RestTarget {
        base_url: integration(&muster).await.rest_endpoint,
        partner: PARTNER.into(),
        partner_api_key: muster.partner_api_key.clone(),
        client_secret: muster.client_secret.clone(),
    });
    // A marketer selects several campaigns; some arrive one way, some the other.
    let campaigns = [
        (
            "Spring sale 2026.csv",
            rest.clone(),
            Mode::Delta,
            ids(0..2_500),
        ),
        ("Été – VIP.csv.gz", rest, Mode::Delta, ids(0..7)),
        (
            "win-back_v1.2.csv",
            grpc(&muster),
            Mode::Delta,
            ids(100..1_300),
        ),
        (
            "newsletter.csv.gz",
            grpc(&muster),
            Mode::Replace,
            ids(0..2_400),
        ),
    ];
    for (file, target, mode, people) in &campaigns {
        let path = write_ids(&folder, file, people);
        let report = send(&path, target, *mode).await;
        let stem = file.trim_end_matches(".gz").trim_end_matches(".csv");
        assert_eq!(
            (report.name.as_str(), report.cohort_id.as_str()),
            (stem, stem)
        );
        assert_eq!(report.tally.identifiers, people.len() as u64);
        let cohort = muster.cohort(&report.cohort_id).await;
        assert_eq!(
            (cohort.name.as_str(), cohort.member_count),
            (stem, Some(people.len() as u64))
        );
        assert_eq!(
            &muster.audience_ids(&format!("{PARTNER}:\"{stem}\"")).await,
            people
        );
    }
    muster.stop().await;
}

#[tokio::test]
async fn step_4_everybody_in_a_file_is_accounted_for_by_position() {
    let muster = shop_of(3).await;
    let folder = TempDir::new().unwrap();
    let lines = [
        "external_id,device_id,name",
        "u-00000,,Ann",
        "nobody,,",
        "u-00001,,\"Ben, B.\"",
        ",,without any id",
        "u-00001,,again",
        ",lost-phone,",
        "too,few",
        "ctrl\u{7f},,",
    ];
    let file = write_file(&folder, "mixed.csv", &lines.map(str::to_owned));
    let report = send(&file, &grpc(&muster), Mode::Delta).await;
    let Delivery::Committed {
        import_id, summary, ..
    } = report.delivery
    else {
        panic!("{report:?}");
    };
    assert_eq!((report.tally.rows, report.tally.identifiers), (8, 6));
    let malformed: Vec<u64> = report.tally.malformed.iter().map(|row| row.line).collect();
    assert_eq!(malformed, [5, 8], "rows that name nobody, by line");
    let outcomes = summary.outcomes;
    assert_eq!((outcomes.added, outcomes.duplicate), (2, 1));
    assert_eq!((outcomes.unknown, outcomes.invalid), (2, 1));
    assert_eq!(summary.received, outcomes.total());
    assert_eq!(summary.received, 6);

    let request = ingest::ListRejectedIdentifiersRequest {
        workspace: WORKSPACE.into(),
        import_id,
        page_size: 2,
        ..Default::default()
    };
    let first = muster
        .operator
        .ingest()
        .list_rejected_identifiers(request.clone())
        .await;
    let first = first.unwrap().into_inner();
    let next = ingest::ListRejectedIdentifiersRequest {
        page_token: first.next_page_token,
        ..request
    };
    let second = muster
        .operator
        .ingest()
        .list_rejected_identifiers(next)
        .await;
    let second = second.unwrap().into_inner();
    assert_eq!(second.next_page_token, "");
    let (unknown, invalid) = (
        ingest::RejectionReason::Unknown,
        ingest::RejectionReason::Invalid,
    );
    let listed: Vec<_> = first
        .identifiers
        .iter()
        .chain(&second.identifiers)
        .map(|rejected| (rejected.position, rejected.reason()))
        .collect();
    assert_eq!(listed, [(1, unknown), (4, unknown), (5, invalid)]);
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn step_4_readers_see_the_old_list_or_the_new_one() {
    const USERS: usize = 12_000;
    let muster = shop_of(USERS).await;
    let folder = TempDir::new().unwrap();
    let (even, odd): (Vec<String>, Vec<String>) = ids(0..USERS)
        .into_iter()
        .partition(|id| id.ends_with(['0', '2', '4', '6', '8']));
    let (even, odd) = (even, odd[..5_000].to_vec());
    let target = grpc(&muster);
    send(
        &write_ids(&folder, "list.csv", &even),
        &target,
        Mode::Replace,
    )
    .await;
    let mut before = 1;
    for round in 0..4u64 {
        let people = if round % 2 == 0 { &odd } else { &even };
        let file = write_ids(&folder, "list.csv.gz", people);
        let target = target.clone();
        let writer = tokio::spawn(async move { send(&file, &target, Mode::Replace).await });
        loop {
            let last = writer.is_finished();
            let cohort = muster.cohort("list").await;
            let expected = if cohort.version % 2 == 1 {
                even.len()
            } else {
                odd.len()
            };
            assert_eq!(cohort.member_count, Some(expected as u64), "{cohort:?}");
            let audience = muster.audience_ids(&format!("{PARTNER}:\"list\"")).await;
            assert!(
                audience == even || audience == odd,
                "{} users",
                audience.len()
            );
            if last {
                before += 1;
                assert_eq!(cohort.version, before, "one import is one version");
                break;
            }
        }
        writer.await.unwrap();
    }
    muster.stop().await;
}
