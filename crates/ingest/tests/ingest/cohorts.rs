//! Cohorts and imports as things to look at, and whom they are visible to.

use crate::harness::*;
use muster_proto::ingest::v1 as pb;
use tonic::Code;

fn name(cohort_id: &str, name: &str) -> pb::UpsertCohortRequest {
    pb::UpsertCohortRequest {
        workspace: "shop".into(),
        partner: "tinyclues".into(),
        cohort_id: cohort_id.into(),
        name: name.into(),
        ..Default::default()
    }
}

fn search(text: &str) -> pb::ListCohortsRequest {
    pb::ListCohortsRequest {
        workspace: "shop".into(),
        name_contains: text.into(),
        ..Default::default()
    }
}

async fn found(muster: &Harness, text: &str) -> Vec<String> {
    let cohorts = muster
        .operator
        .ingest()
        .list_cohorts(search(text))
        .await
        .unwrap();
    let cohorts = cohorts.into_inner().cohorts.into_iter();
    cohorts.map(|cohort| cohort.cohort_id).collect()
}

#[tokio::test]
async fn a_cohort_is_found_by_its_current_and_former_names() {
    let muster = start().await;
    let mut partner = muster.partner.ingest();
    let created = partner
        .upsert_cohort(name("c-1", "spring sale"))
        .await
        .unwrap()
        .into_inner();
    assert!(created.created);
    let again = partner
        .upsert_cohort(name("c-1", "spring sale"))
        .await
        .unwrap()
        .into_inner();
    assert!(!again.created);
    assert_eq!(again.cohort.unwrap().etag, created.cohort.unwrap().etag);
    partner
        .upsert_cohort(name("c-1", "Spring 100% SALE"))
        .await
        .unwrap();
    partner
        .upsert_cohort(name("c-2", "autumn_sale"))
        .await
        .unwrap();
    assert_eq!(found(&muster, "spring sale").await, ["c-1"]);
    assert_eq!(found(&muster, "SALE").await, ["c-2", "c-1"]);
    // Search is literal.
    assert_eq!(found(&muster, "100%").await, ["c-1"]);
    assert_eq!(found(&muster, "n_s").await, ["c-2"]);
    for nothing in ["%", "_", "\\"] {
        let expected = found(&muster, nothing).await;
        assert!(expected.len() <= 1, "{nothing} is literal: {expected:?}");
    }
    let stale = pb::UpsertCohortRequest {
        etag: "1".into(),
        ..name("c-1", "other")
    };
    assert_refused(
        partner.upsert_cohort(stale).await,
        Code::Aborted,
        "ETAG_MISMATCH",
    );
}

#[tokio::test]
async fn an_import_into_an_unnamed_cohort_creates_it_under_its_id_until_a_name_arrives() {
    let muster = start().await;
    muster.seed_users(3).await;
    import(&muster.partner, delta("i-1"), vec![add(&["u-1"])]).await;
    let get = pb::GetCohortRequest {
        workspace: String::new(),
        partner: String::new(),
        cohort_id: "spring".into(),
    };
    let mut partner = muster.partner.ingest();
    let cohort = partner
        .get_cohort(get.clone())
        .await
        .unwrap()
        .into_inner()
        .cohort
        .unwrap();
    assert_eq!(
        (cohort.name.as_str(), cohort.member_count),
        ("spring", Some(1))
    );
    partner
        .upsert_cohort(name("spring", "Spring sale"))
        .await
        .unwrap();
    let cohort = partner
        .get_cohort(get)
        .await
        .unwrap()
        .into_inner()
        .cohort
        .unwrap();
    assert_eq!(cohort.name, "Spring sale");
    assert_eq!(cohort.former_names, [""; 0]);
}

#[tokio::test]
async fn an_archived_cohort_takes_no_more_imports() {
    let muster = start().await;
    let mut operator = muster.operator.ingest();
    operator
        .upsert_cohort(name("spring", "spring sale"))
        .await
        .unwrap();
    let archive = pb::ArchiveCohortRequest {
        workspace: "shop".into(),
        partner: "tinyclues".into(),
        cohort_id: "spring".into(),
        ..Default::default()
    };
    operator.archive_cohort(archive.clone()).await.unwrap();
    operator.archive_cohort(archive).await.unwrap();
    assert_eq!(found(&muster, "").await, [""; 0]);
    let (_, answer) = Upload::start(&muster.partner, delta("i-1")).await;
    assert_refused(answer, Code::FailedPrecondition, "COHORT_ARCHIVED");
    let renamed = operator.upsert_cohort(name("spring", "other")).await;
    assert_refused(renamed, Code::FailedPrecondition, "COHORT_ARCHIVED");
}

#[tokio::test]
async fn a_partner_sees_only_what_is_its_own() {
    let muster = start().await;
    muster.seed_users(3).await;
    import(&muster.partner, delta("i-1"), vec![add(&["u-1", "zz"])]).await;
    let other = muster.other_partner().await;
    let mut ingest = other.ingest();
    let cohorts = ingest
        .list_cohorts(pb::ListCohortsRequest::default())
        .await
        .unwrap();
    assert!(cohorts.into_inner().cohorts.is_empty());
    let imports = ingest
        .list_imports(pb::ListImportsRequest::default())
        .await
        .unwrap();
    assert!(imports.into_inner().imports.is_empty());
    let mine = |import_id: &str| pb::GetImportRequest {
        workspace: String::new(),
        import_id: import_id.into(),
        ..Default::default()
    };
    let foreign = ingest.get_import(mine("i-1")).await.unwrap_err();
    let missing = ingest.get_import(mine("i-2")).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound);
    assert_eq!(foreign.message().replace("i-1", "i-2"), missing.message());
    let rejected = pb::ListRejectedIdentifiersRequest {
        import_id: "i-1".into(),
        ..Default::default()
    };
    assert_refused(
        ingest.list_rejected_identifiers(rejected).await,
        Code::NotFound,
        "NOT_FOUND",
    );
    let abort = pb::AbortImportRequest {
        import_id: "i-1".into(),
        ..Default::default()
    };
    assert_refused(
        ingest.abort_import(abort).await,
        Code::NotFound,
        "NOT_FOUND",
    );
    let named = pb::GetCohortRequest {
        partner: "tinyclues".into(),
        cohort_id: "spring".into(),
        workspace: String::new(),
    };
    assert_refused(
        ingest.get_cohort(named).await,
        Code::Unauthenticated,
        "CREDENTIAL_INVALID",
    );
    let elsewhere = pb::ListCohortsRequest {
        workspace: "other".into(),
        ..Default::default()
    };
    assert_refused(
        ingest.list_cohorts(elsewhere).await,
        Code::NotFound,
        "NOT_FOUND",
    );
}

#[tokio::test]
async fn imports_are_listed_newest_first_page_by_page() {
    let muster = start().await;
    muster.seed_users(3).await;
    for id in ["i-1", "i-2", "i-3"] {
        import(&muster.partner, delta(id), vec![add(&["u-1"])]).await;
    }
    Upload::open(&muster.partner, delta("i-4")).await;
    let mut ids = Vec::new();
    let mut token = String::new();
    loop {
        let request = pb::ListImportsRequest {
            workspace: "shop".into(),
            partner: "tinyclues".into(),
            cohort_id: "spring".into(),
            state: pb::ImportState::Committed.into(),
            page_size: 2,
            page_token: token,
            ..Default::default()
        };
        let page = muster
            .operator
            .ingest()
            .list_imports(request)
            .await
            .unwrap()
            .into_inner();
        ids.extend(page.imports.into_iter().map(|import| import.import_id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, ["i-3", "i-2", "i-1"]);
}

#[tokio::test]
async fn a_resumed_import_does_not_give_a_renamed_cohort_its_old_name_back() {
    let muster = start().await;
    muster.seed_users(3).await;
    let named = pb::OpenImport {
        name: "spring sale".into(),
        ..delta("i-1")
    };
    import(&muster.partner, named.clone(), vec![add(&["u-1"])]).await;
    let mut partner = muster.partner.ingest();
    partner
        .upsert_cohort(name("spring", "summer sale"))
        .await
        .unwrap();
    Upload::open(&muster.partner, named).await;
    assert_eq!(found(&muster, "summer sale").await, ["spring"]);
    let get = pb::GetCohortRequest {
        cohort_id: "spring".into(),
        ..Default::default()
    };
    let cohort = partner.get_cohort(get).await.unwrap().into_inner();
    assert_eq!(cohort.cohort.unwrap().name, "summer sale");
}

#[tokio::test]
async fn no_input_is_an_internal_error() {
    let muster = start().await;
    muster.seed_users(3).await;
    import(&muster.partner, delta("i-1"), vec![add(&["zz"])]).await;
    let mut ingest = muster.operator.ingest();
    let get = pb::GetImportRequest {
        workspace: "shop".into(),
        import_id: "a\0b".into(),
        ..Default::default()
    };
    assert_refused(
        ingest.get_import(get).await,
        Code::InvalidArgument,
        "INVALID_VALUE",
    );
    for workspace in ["sh\0op", "", "SHOP"] {
        let list = pb::ListImportsRequest {
            workspace: workspace.into(),
            ..Default::default()
        };
        let status = ingest.list_imports(list).await.unwrap_err();
        assert!(
            [Code::NotFound, Code::InvalidArgument].contains(&status.code()),
            "{status:?}"
        );
    }
    // A token that the server never gave out, past every position.
    let forged = pb::ListRejectedIdentifiersRequest {
        workspace: "shop".into(),
        import_id: "i-1".into(),
        page_token: muster_service::page::encode(&u64::MAX),
        ..Default::default()
    };
    let page = ingest.list_rejected_identifiers(forged).await.unwrap();
    assert!(page.into_inner().identifiers.is_empty());
}

#[tokio::test]
async fn a_finished_import_keeps_nothing_of_its_identifiers() {
    let muster = start().await;
    muster.seed_users(3).await;
    import(&muster.partner, delta("i-1"), vec![add(&["u-1"])]).await;
    let left = "SELECT sum(octet_length(digest_state))::bigint FROM cohort_import";
    assert_eq!(muster.number(left).await, 0);
}

#[tokio::test]
async fn old_history_is_forgotten_and_the_current_version_stays() {
    let muster = start().await;
    muster.seed_users(30_000).await;
    for round in 0..8 {
        let ids: Vec<String> = (0..9_000)
            .map(|n| format!("u-{}", n * 3 + round % 2))
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        import(
            &muster.partner,
            replace(&format!("i-{round}")),
            vec![add(&ids)],
        )
        .await;
    }
    let before = muster.members("spring").await;
    assert!(
        muster
            .number("SELECT count(*) FROM cohort_checkpoint")
            .await
            >= 1
    );
    let retention = std::time::Duration::ZERO;
    let now = muster_storage::Timestamp::now_utc();
    assert!(muster.store.forget_history(now, retention).await.unwrap() > 0);
    assert_eq!(muster.members("spring").await, before);
    assert_eq!(
        muster.store.forget_imports(now, retention).await.unwrap(),
        8
    );
    assert_eq!(muster.members("spring").await, before);
}
