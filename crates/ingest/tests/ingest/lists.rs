//! What lists of cohorts, versions and imports show, and in which order.

use crate::harness::*;
use muster_proto::ingest::v1 as pb;
use tonic::Code;

fn into(cohort_id: &str, import_id: &str) -> pb::OpenImport {
    pb::OpenImport {
        cohort_id: cohort_id.into(),
        ..delta(import_id)
    }
}

async fn list(muster: &Harness, wanted: pb::ListCohortsRequest) -> pb::ListCohortsResponse {
    let request = pb::ListCohortsRequest {
        workspace: "shop".into(),
        ..wanted
    };
    let listed = muster.operator.ingest().list_cohorts(request).await;
    listed.unwrap().into_inner()
}

/// The ids of all cohorts, fetched two at a time.
async fn ordered(muster: &Harness, order: pb::CohortOrder) -> Vec<String> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let wanted = pb::ListCohortsRequest {
            order: order.into(),
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = list(muster, wanted).await;
        ids.extend(page.cohorts.into_iter().map(|cohort| cohort.cohort_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

fn versions(cohort_id: &str) -> pb::ListCohortVersionsRequest {
    pb::ListCohortVersionsRequest {
        workspace: "shop".into(),
        partner: "tinyclues".into(),
        cohort_id: cohort_id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn cohorts_come_in_the_order_asked_for_page_by_page() {
    let muster = start().await;
    muster.seed_users(5).await;
    let named = |name: &str, open: pb::OpenImport| pb::OpenImport {
        name: name.into(),
        ..open
    };
    let partner = &muster.partner;
    import(
        partner,
        named("beta", into("one", "i-1")),
        vec![add(&["u-1"])],
    )
    .await;
    let three = add(&["u-1", "u-2", "u-3"]);
    import(partner, named("Alpha", into("three", "i-2")), vec![three]).await;
    let two = add(&["u-1", "u-2"]);
    import(partner, named("gamma", into("two", "i-3")), vec![two]).await;
    muster
        .partner
        .ingest()
        .upsert_cohort(pb::UpsertCohortRequest {
            cohort_id: "none".into(),
            name: "beta".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    // One more import into the first: it is the last one imported, and still the smallest.
    import(partner, into("one", "i-4"), vec![add(&["u-1", "nobody"])]).await;

    use pb::CohortOrder::{Largest, LastImport, Name, Newest, Stalest, Unspecified};
    let expected = [
        (Unspecified, ["none", "two", "three", "one"]),
        (Newest, ["none", "two", "three", "one"]),
        (Name, ["three", "one", "none", "two"]),
        (Largest, ["three", "two", "one", "none"]),
        (LastImport, ["one", "none", "two", "three"]),
        (Stalest, ["three", "two", "none", "one"]),
    ];
    for (order, expected) in expected {
        assert_eq!(ordered(&muster, order).await, expected, "{order:?}");
    }

    let all = list(&muster, pb::ListCohortsRequest::default())
        .await
        .cohorts;
    let latest = all[3].latest_version.as_ref().unwrap();
    assert_eq!((latest.version, latest.import_id.as_str()), (2, "i-4"));
    assert_eq!(
        (latest.received_count, latest.matched_count),
        (Some(2), Some(1))
    );
    assert_eq!(all[3].recent_member_counts, [1, 1]);
    assert_eq!(
        (&all[0].latest_version, all[0].recent_member_counts.len()),
        (&None, 0)
    );
}

#[tokio::test]
async fn a_page_token_goes_with_its_order() {
    let muster = start().await;
    for cohort_id in ["a", "b"] {
        let named = pb::UpsertCohortRequest {
            cohort_id: cohort_id.into(),
            name: cohort_id.into(),
            ..Default::default()
        };
        muster.partner.ingest().upsert_cohort(named).await.unwrap();
    }
    let mut request = pb::ListCohortsRequest {
        workspace: "shop".into(),
        page_size: 1,
        ..Default::default()
    };
    request.page_token = list(&muster, request.clone()).await.next_page_token;
    request.order = pb::CohortOrder::Largest.into();
    let mut ingest = muster.operator.ingest();
    let refused = ingest.list_cohorts(request.clone()).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    request.page_token = "e30".into();
    let refused = ingest.list_cohorts(request).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn every_version_keeps_what_it_counted() {
    let muster = start().await;
    muster.seed_users(5).await;
    let partner = &muster.partner;
    let changes = vec![add(&["u-0", "u-1", "u-1", "nobody"])];
    import(partner, delta("i-1"), changes).await;
    let changes = vec![add(&["u-2"]), remove(&["u-0", "u-4"])];
    import(partner, delta("i-2"), changes).await;
    import(partner, replace("i-3"), vec![add(&["u-3"])]).await;
    // The numbers stay when the imports are forgotten.
    let now = muster_storage::Timestamp::now_utc();
    let forgotten = muster
        .store
        .forget_imports(now, std::time::Duration::ZERO)
        .await;
    assert_eq!(forgotten.unwrap(), 3);

    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListCohortVersionsRequest {
            page_size: 2,
            page_token,
            ..versions("spring")
        };
        let page = muster.operator.ingest().list_cohort_versions(request).await;
        let page = page.unwrap().into_inner();
        found.extend(page.versions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let numbers = found.iter().map(|it| {
        let counts = (it.member_count, it.added_count, it.removed_count);
        (
            it.version,
            it.import_id.as_str(),
            counts,
            it.received_count,
            it.matched_count,
        )
    });
    let expected = [
        (3, "i-3", (1, 1, 2), Some(1), Some(1)),
        (2, "i-2", (2, 1, 1), Some(3), Some(3)),
        (1, "i-1", (2, 2, 0), Some(4), Some(3)),
    ];
    assert_eq!(numbers.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn versions_are_seen_by_whom_the_cohort_is() {
    let muster = start().await;
    muster.seed_users(2).await;
    import(&muster.partner, delta("i-1"), vec![add(&["u-1"])]).await;
    let own = pb::ListCohortVersionsRequest {
        workspace: String::new(),
        partner: String::new(),
        ..versions("spring")
    };
    let seen = muster
        .partner
        .ingest()
        .list_cohort_versions(own.clone())
        .await;
    assert_eq!(seen.unwrap().into_inner().versions.len(), 1);
    let other = muster.other_partner().await;
    let foreign = other.ingest().list_cohort_versions(own).await;
    assert_refused(foreign, Code::NotFound, "NOT_FOUND");

    let mut operator = muster.operator.ingest();
    let none = operator.list_cohort_versions(versions("autumn")).await;
    assert_refused(none, Code::NotFound, "NOT_FOUND");
    let elsewhere = pb::ListCohortVersionsRequest {
        workspace: "other".into(),
        ..versions("spring")
    };
    let elsewhere = operator.list_cohort_versions(elsewhere).await;
    assert_refused(elsewhere, Code::NotFound, "NOT_FOUND");
    for (page_size, page_token) in [(1_001, ""), (0, "!")] {
        let wrong = pb::ListCohortVersionsRequest {
            page_size,
            page_token: page_token.into(),
            ..versions("spring")
        };
        let wrong = operator.list_cohort_versions(wrong).await;
        assert_refused(wrong, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn imports_are_listed_since_a_time_with_the_name_of_their_cohort() {
    let muster = start().await;
    muster.seed_users(2).await;
    let named = pb::OpenImport {
        name: "spring sale".into(),
        ..delta("i-1")
    };
    import(&muster.partner, named, vec![add(&["u-1"])]).await;
    import(&muster.partner, delta("i-2"), vec![add(&["u-1"])]).await;
    muster
        .sql("UPDATE cohort_import SET created_at = created_at - interval '1 day' WHERE partner_import_id = 'i-1'")
        .await;
    let now = muster_storage::Timestamp::now_utc().unix_timestamp();
    for (ago, expected) in [(3_600, vec!["i-2"]), (2 * 86_400, vec!["i-2", "i-1"])] {
        let request = pb::ListImportsRequest {
            workspace: "shop".into(),
            since: Some(prost_types::Timestamp {
                seconds: now - ago,
                nanos: 0,
            }),
            ..Default::default()
        };
        let listed = muster.operator.ingest().list_imports(request).await;
        let imports = listed.unwrap().into_inner().imports;
        let ids: Vec<_> = imports
            .iter()
            .map(|import| import.import_id.as_str())
            .collect();
        assert_eq!(ids, expected);
        assert!(
            imports
                .iter()
                .all(|import| import.cohort_name == "spring sale")
        );
    }
    let wrong = pb::ListImportsRequest {
        workspace: "shop".into(),
        since: Some(prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        }),
        ..Default::default()
    };
    let wrong = muster.operator.ingest().list_imports(wrong).await;
    assert_refused(wrong, Code::InvalidArgument, "INVALID_FIELD");
}
