//! The story of the product from the segment to the people who get the campaign.

use std::collections::BTreeSet;

use muster_client::Connection;
use muster_domain::import::Mode;
use muster_proto::{
    ingest::v1 as ingest,
    keys::v1 as keys,
    segments::v1::{
        self as segments, count_segment_request, resolve_segment_request::Audience,
        resolve_segment_response::Message,
    },
};
use muster_tests::{Muster, PARTNER, WORKSPACE, connect, read_audience, text};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Code, Streaming};

use crate::story::{grpc, ids, send, shop_of, write_ids};

fn named(segment: &str) -> segments::SegmentReference {
    segments::SegmentReference {
        segment: Some(segments::segment_reference::Segment::Name(segment.into())),
    }
}

async fn create_segment(muster: &Muster, name: &str, filter: &str) -> segments::Segment {
    let request = segments::CreateSegmentRequest {
        workspace: WORKSPACE.into(),
        name: name.into(),
        filter: Some(text(filter)),
        ..Default::default()
    };
    let made = muster.operator.segments().create_segment(request).await;
    let made = made.unwrap_or_else(|status| panic!("{filter}: {status}"));
    made.into_inner().segment.unwrap()
}

async fn count(connection: &Connection, segment: &str) -> u64 {
    let request = segments::CountSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(count_segment_request::Audience::Segment(named(segment))),
        consistency_token: String::new(),
    };
    connection
        .segments()
        .count_segment(request)
        .await
        .unwrap()
        .into_inner()
        .user_count
}

/// The campaign service's own connection: bound to a workspace, and allowed what it needs.
async fn service(muster: &Muster, workspace: &str, scopes: &[&str]) -> (Connection, String) {
    let request = keys::CreateServiceTokenRequest {
        workspace: workspace.into(),
        label: "campaigns".into(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..Default::default()
    };
    let made = muster
        .operator
        .integrations()
        .create_service_token(request)
        .await;
    let made = made.unwrap().into_inner();
    (
        connect(&muster.grpc, &made.secret),
        made.token.unwrap().token_id,
    )
}

/// Asks for a segment in the view of a campaign.
fn resolve(segment: &str) -> segments::ResolveSegmentRequest {
    segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(Audience::Segment(named(segment))),
        view: segments::AudienceView::ExternalId.into(),
        ..Default::default()
    }
}

async fn stream(
    connection: &Connection,
    request: segments::ResolveSegmentRequest,
) -> Streaming<segments::ResolveSegmentResponse> {
    connection
        .segments()
        .resolve_segment(request)
        .await
        .unwrap()
        .into_inner()
}

/// A whole stream, in raw messages.
async fn messages(mut stream: Streaming<segments::ResolveSegmentResponse>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        messages.push(answer.message.unwrap());
    }
    messages
}

fn external_ids(members: &[segments::AudienceMember]) -> BTreeSet<String> {
    members
        .iter()
        .map(|member| member.external_id.clone())
        .collect()
}

/// Three cohorts of a shop of 100: the first 60, the last 60, and every user below 20.
async fn three_cohorts() -> Muster {
    let muster = shop_of(100).await;
    let folder = TempDir::new().unwrap();
    let lists = [("spring sale", 0..60), ("churned", 40..100), ("vip", 0..20)];
    for (name, range) in lists {
        let file = write_ids(&folder, &format!("{name}.csv"), &ids(range));
        send(&file, &grpc(&muster), Mode::Delta).await;
    }
    muster
}

#[tokio::test]
async fn step_5_segments_combine_cohorts_with_and_or_and_not() {
    let muster = three_cohorts().await;
    let table = [
        (r#"tinyclues:"spring sale""#, ids(0..60)),
        (r#"not tinyclues:"spring sale""#, ids(60..100)),
        (
            r#"tinyclues:"spring sale" and tinyclues:"churned""#,
            ids(40..60),
        ),
        (
            r#"tinyclues:"spring sale" or tinyclues:"churned""#,
            ids(0..100),
        ),
        (
            r#"tinyclues:("vip", "churned")"#,
            [ids(0..20), ids(40..100)].concat(),
        ),
        (
            r#"tinyclues:"spring sale" and not tinyclues:"churned""#,
            ids(0..40),
        ),
        (
            r#"tinyclues:"spring sale" and not (tinyclues:"churned" or tinyclues:"vip")"#,
            ids(20..40),
        ),
        (
            r#"not (tinyclues:"spring sale" or tinyclues:"churned")"#,
            ids(0..0),
        ),
    ];
    for (n, (filter, expected)) in table.into_iter().enumerate() {
        let name = format!("segment {n}");
        create_segment(&muster, &name, filter).await;
        let members = read_audience(stream(&muster.operator, resolve(&name)).await).await;
        assert_eq!(
            external_ids(&members),
            expected.iter().cloned().collect(),
            "{filter}"
        );
        assert_eq!(
            count(&muster.operator, &name).await,
            expected.len() as u64,
            "{filter}"
        );
    }
    // As the marketer clicks it together: includes, and does not include any of two.
    let cohort = |names: &[&str], rule: segments::CohortMembershipRule| segments::Filter {
        node: Some(segments::filter::Node::Cohort(segments::CohortFilter {
            partner: PARTNER.into(),
            cohorts: names
                .iter()
                .map(|name| segments::CohortReference {
                    cohort: Some(segments::cohort_reference::Cohort::Name((*name).into())),
                })
                .collect(),
            rule: rule.into(),
        })),
    };
    let group = segments::FilterGroup {
        filters: vec![
            cohort(&["spring sale"], segments::CohortMembershipRule::Includes),
            cohort(
                &["churned", "vip"],
                segments::CohortMembershipRule::DoesNotInclude,
            ),
        ],
    };
    let tree = segments::Filter {
        node: Some(segments::filter::Node::AllOf(group)),
    };
    let request = segments::CreateSegmentRequest {
        workspace: WORKSPACE.into(),
        name: "clicked".into(),
        filter: Some(segments::FilterExpression {
            form: Some(segments::filter_expression::Form::Tree(tree)),
        }),
        ..Default::default()
    };
    muster
        .operator
        .segments()
        .create_segment(request)
        .await
        .unwrap();
    let members = read_audience(stream(&muster.operator, resolve("clicked")).await).await;
    assert_eq!(external_ids(&members), ids(20..40).into_iter().collect());
    muster.stop().await;
}

#[tokio::test]
async fn step_5_a_segment_survives_the_renaming_of_its_cohorts() {
    let muster = three_cohorts().await;
    create_segment(
        &muster,
        "sale",
        r#"tinyclues:"spring sale" and not tinyclues:"vip""#,
    )
    .await;
    muster
        .rest()
        .name("spring sale", "Summer sale")
        .await
        .succeeded();
    muster.rest().name("vip", "spring sale").await.succeeded();
    assert_eq!(count(&muster.operator, "sale").await, 40);
    muster.stop().await;
}

#[tokio::test]
async fn step_6_a_campaign_service_sees_its_workspace_and_nothing_else() {
    let muster = three_cohorts().await;
    create_segment(&muster, "sale", r#"tinyclues:"spring sale""#).await;
    let (campaigns, token_id) = service(&muster, WORKSPACE, &["audiences:read"]).await;
    let members = read_audience(stream(&campaigns, resolve("sale")).await).await;
    assert_eq!(members.len(), 60);

    // Not what its scopes do not say.
    let list = ingest::ListCohortsRequest {
        workspace: WORKSPACE.into(),
        ..Default::default()
    };
    let refused = campaigns.ingest().list_cohorts(list).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Not another workspace, which looks the same whether it exists or not.
    let bank = keys::CreateWorkspaceRequest {
        workspace: "bank".into(),
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .create_workspace(bank)
        .await
        .unwrap();
    let mut texts = Vec::new();
    for workspace in ["bank", "none"] {
        let request = segments::ResolveSegmentRequest {
            workspace: workspace.into(),
            ..resolve("sale")
        };
        let refused = campaigns
            .segments()
            .resolve_segment(request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        texts.push(refused.message().replace(workspace, "…"));
    }
    assert_eq!(texts[0], texts[1]);
    // Nothing at all once the token is revoked.
    let revoke = keys::RevokeServiceTokenRequest {
        token_id,
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .revoke_service_token(revoke)
        .await
        .unwrap();
    let refused = campaigns
        .segments()
        .resolve_segment(resolve("sale"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // Nor can a partner's key read an audience.
    let refused = muster
        .partner()
        .segments()
        .resolve_segment(resolve("sale"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn step_6_workers_that_share_a_request_id_split_one_snapshot() {
    const WORKERS: u32 = 4;
    let muster = shop_of(10_000).await;
    let folder = TempDir::new().unwrap();
    let file = write_ids(&folder, "sale.csv", &ids(0..9_000));
    send(&file, &grpc(&muster), Mode::Replace).await;
    create_segment(&muster, "sale", r#"tinyclues:"sale""#).await;
    let (campaigns, _) = service(&muster, WORKSPACE, &["audiences:read"]).await;

    let mut workers = JoinSet::new();
    for index in 0..WORKERS {
        let (campaigns, rest) = (campaigns.clone(), muster.rest());
        workers.spawn(async move {
            let request = segments::ResolveSegmentRequest {
                partition: Some(segments::Partition {
                    index,
                    count: WORKERS,
                }),
                request_id: "campaign-7".into(),
                ..resolve("sale")
            };
            let received = messages(stream(&campaigns, request).await).await;
            // The cohort changes under the feet of the others.
            let newcomer =
                json!([{ "user_ids": ids(9_000 + index as usize..9_001 + index as usize) }]);
            rest.change("sale", newcomer).await.succeeded();
            received
        });
    }
    let (mut resolutions, mut everybody, mut total) = (BTreeSet::new(), BTreeSet::new(), 0);
    while let Some(received) = workers.join_next().await {
        let mut digest = Sha256::new();
        let mut users = 0;
        for message in received.unwrap() {
            match message {
                Message::Header(header) => {
                    let resolution = header.resolution.unwrap();
                    resolutions.insert((resolution.resolution_id, resolution.user_count));
                }
                Message::Batch(batch) => {
                    for user in batch.users {
                        digest.update(user.user_no.to_be_bytes());
                        users += 1;
                        assert!(everybody.insert(user.external_id), "nobody comes out twice");
                    }
                }
                Message::End(end) => {
                    assert_eq!((end.user_count, end.withheld_count), (users, 0));
                    assert_eq!(&end.digest[..], &digest.finalize_reset()[..]);
                    total += users;
                }
            }
        }
    }
    assert_eq!(
        resolutions.len(),
        1,
        "one snapshot for all: {resolutions:?}"
    );
    assert_eq!(total, 9_000);
    assert_eq!(everybody, ids(0..9_000).into_iter().collect());
    muster.stop().await;
}

#[tokio::test]
async fn step_6_a_dropped_stream_is_resumed_and_comes_out_the_same() {
    let muster = shop_of(20_000).await;
    let folder = TempDir::new().unwrap();
    let file = write_ids(&folder, "sale.csv", &ids(0..20_000));
    send(&file, &grpc(&muster), Mode::Replace).await;
    create_segment(&muster, "sale", r#"tinyclues:"sale""#).await;
    let (campaigns, _) = service(&muster, WORKSPACE, &["audiences:read"]).await;

    let whole = messages(stream(&campaigns, resolve("sale")).await).await;
    let Message::Header(header) = &whole[0] else {
        panic!("the header comes first");
    };
    let resolution_id = header.resolution.clone().unwrap().resolution_id;
    let end = whole.last().unwrap().clone();
    assert!(
        matches!(end, Message::End(_)) && whole.len() > 4,
        "{} messages",
        whole.len()
    );
    // The cohort is emptied to a single person in between.
    send(
        &write_ids(&folder, "sale.csv", &ids(0..1)),
        &grpc(&muster),
        Mode::Replace,
    )
    .await;
    assert_eq!(count(&muster.operator, "sale").await, 1);

    let again = segments::ResolveSegmentRequest {
        audience: Some(Audience::ResolutionId(resolution_id)),
        ..resolve("sale")
    };
    let replayed = messages(stream(&campaigns, again.clone()).await).await;
    assert_eq!(replayed[1..], whole[1..], "the same again");

    // Each stream is dropped after its first batch, and the next one goes on behind it.
    let mut token = String::new();
    let mut pieces = Vec::new();
    let last = loop {
        let request = segments::ResolveSegmentRequest {
            resume_token: token.clone(),
            ..again.clone()
        };
        let mut stream = stream(&campaigns, request).await;
        let header = stream.message().await.unwrap().unwrap().message.unwrap();
        assert!(matches!(header, Message::Header(_)), "{header:?}");
        match stream.message().await.unwrap().unwrap().message.unwrap() {
            Message::Batch(batch) => {
                token.clone_from(&batch.resume_token);
                pieces.push(Message::Batch(batch));
            }
            last => break last,
        }
    };
    let users = |messages: &[Message]| {
        let mut all = Vec::new();
        for message in messages {
            if let Message::Batch(batch) = message {
                all.extend(batch.users.clone());
            }
        }
        all
    };
    assert_eq!(users(&pieces), users(&whole));
    assert_eq!(last, end, "count and digest are of the whole");
    muster.stop().await;
}

#[tokio::test]
async fn step_7_a_cohort_is_found_by_the_name_its_file_once_had() {
    let muster = three_cohorts().await;
    let rest = muster.rest();
    rest.name("spring sale", "Q2 push (final)")
        .await
        .succeeded();
    rest.name("spring sale", "Q2 push (final) 100%")
        .await
        .succeeded();
    for (wanted, found) in [
        ("Q2 push", vec!["spring sale"]),
        ("q2 PUSH (final) 100%", vec!["spring sale"]),
        ("(final)", vec!["spring sale"]),
        ("spring", vec!["spring sale"]),
        ("%", vec!["spring sale"]),
        ("churn", vec!["churned"]),
        ("_", vec![]),
        ("never sent", vec![]),
    ] {
        let request = ingest::ListCohortsRequest {
            workspace: WORKSPACE.into(),
            name_contains: wanted.into(),
            ..Default::default()
        };
        let listed = muster
            .operator
            .ingest()
            .list_cohorts(request)
            .await
            .unwrap();
        let cohorts = listed.into_inner().cohorts;
        let listed: Vec<_> = cohorts
            .iter()
            .map(|cohort| cohort.cohort_id.as_str())
            .collect();
        assert_eq!(listed, found, "{wanted}");
    }
    // The file's name was the id, too; under a number only the former name tells.
    rest.name("4711", "autumn.csv").await.succeeded();
    rest.name("4711", "winter.csv").await.succeeded();
    let request = ingest::ListCohortsRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        name_contains: "Autumn".into(),
        ..Default::default()
    };
    let listed = muster
        .operator
        .ingest()
        .list_cohorts(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.cohorts.len(), 1);
    assert_eq!(listed.cohorts[0].name, "winter.csv");
    assert_eq!(listed.cohorts[0].former_names, ["autumn.csv"]);
    muster.stop().await;
}
