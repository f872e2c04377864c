//! Writing users.

use std::collections::BTreeSet;

use muster_proto::users::v1::{self as pb, UserOutcome::*, UserRecord};
use tonic::Code;

use crate::harness::{
    Muster, alias, device, epoch, external_id, outcomes, record, records, refused_as,
};

#[tokio::test]
async fn each_record_is_told_what_became_of_it_and_why() {
    let muster = Muster::start().await;
    muster
        .upsert(records(&["ext=ann dev=a1", "dev=b1", "ext=cid news=c@x"]))
        .await;
    let long = format!("dev=ok dev={}", "x".repeat(513));
    let stories = [
        ("ext=dan dev=d1", Created, Some(3), ""),
        ("ext=ann dev=a2", Updated, Some(0), ""),
        ("ext=ann dev=a2", Unchanged, Some(0), ""),
        (
            "ext=ann dev=b1",
            Conflict,
            None,
            "device_ids[0]: belongs to another user than external_id; use MergeUsers if they are \
             one person",
        ),
        (
            "news=c@x dev=new dev=b1",
            Conflict,
            None,
            "device_ids[1]: belongs to another user than aliases[0]; use MergeUsers if they are \
             one person",
        ),
        (
            "ext=bob dev=b1",
            Conflict,
            None,
            "device_ids[0]: belongs to an anonymous user; use IdentifyUsers to give it the \
             external_id",
        ),
        (
            "ext=eve news=c@x",
            Conflict,
            None,
            "aliases[0]: belongs to a user with another external_id; if they are one person, \
             write the external_id by itself, then use MergeUsers",
        ),
        (
            "",
            Invalid,
            None,
            "external_id: must not be empty without aliases and device_ids",
        ),
        (
            "news=a@x news=",
            Invalid,
            None,
            "aliases[1].name: must not be empty",
        ),
        ("=a@x", Invalid, None, "aliases[0].label: must not be empty"),
        (
            &long,
            Invalid,
            None,
            "device_ids[1]: must be at most 512 bytes, not 513",
        ),
        (
            "ext=a\nb",
            Invalid,
            None,
            "external_id: must not contain control characters",
        ),
    ];
    let sent = stories.iter().map(|story| record(story.0)).collect();
    let results = muster.upsert(sent).await;
    assert_eq!(results.len(), stories.len());
    for ((text, outcome, user, detail), result) in stories.into_iter().zip(&results) {
        assert_eq!(
            (result.outcome(), result.user_no, result.detail.as_str()),
            (outcome, user, detail),
            "{text}"
        );
    }
    // Nothing of a refused record was applied, all of the others was.
    assert!(muster.find(device("new")).await.is_err());
    assert!(muster.find(device("ok")).await.is_err());
    assert_eq!(
        muster
            .find(device("d1"))
            .await
            .unwrap()
            .user
            .unwrap()
            .user_no,
        3
    );
}

#[tokio::test]
async fn a_change_raises_the_token_and_a_repetition_does_not() {
    let muster = Muster::start().await;
    let request = pb::UpsertUsersRequest {
        workspace: "shop".to_owned(),
        users: records(&["ext=ann"]),
        ..Default::default()
    };
    let mut users = muster.users.clone();
    for expected in [Created, Unchanged] {
        let answer = users.upsert_users(request.clone()).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(outcomes(&answer.results), [(expected, Some(0))]);
        assert_eq!(epoch(&answer.consistency_token), 1);
    }
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_again() {
    let muster = Muster::start().await;
    let request = |dev: &str| pb::UpsertUsersRequest {
        workspace: "shop".to_owned(),
        users: records(&[dev]),
        request_id: "once".to_owned(),
    };
    let mut users = muster.users.clone();
    let first = users.upsert_users(request("dev=a")).await.unwrap();
    muster.upsert(records(&["dev=b"])).await;
    let again = users.upsert_users(request("dev=a")).await.unwrap();
    assert_eq!(again.into_inner(), first.into_inner());
    let other = users.upsert_users(request("dev=c")).await.unwrap_err();
    refused_as(&other, Code::InvalidArgument, "INVALID_FIELD", "request_id");
}

#[tokio::test]
async fn calls_take_1_to_1000_entries() {
    let muster = Muster::start().await;
    let mut users = muster.users.clone();
    let workspace = || "shop".to_owned();
    for count in [0, 1_001] {
        let upsert = pb::UpsertUsersRequest {
            workspace: workspace(),
            users: vec![record("dev=a"); count],
            ..Default::default()
        };
        let identify = pb::IdentifyUsersRequest {
            workspace: workspace(),
            entries: vec![pb::identify_users_request::Entry::default(); count],
            ..Default::default()
        };
        let merge = pb::MergeUsersRequest {
            workspace: workspace(),
            entries: vec![pb::merge_users_request::Entry::default(); count],
            ..Default::default()
        };
        let delete = pb::DeleteUsersRequest {
            workspace: workspace(),
            users: vec![external_id("a"); count],
            ..Default::default()
        };
        for (refused, field) in [
            (users.upsert_users(upsert).await.unwrap_err(), "users"),
            (users.identify_users(identify).await.unwrap_err(), "entries"),
            (users.merge_users(merge).await.unwrap_err(), "entries"),
            (users.delete_users(delete).await.unwrap_err(), "users"),
        ] {
            refused_as(&refused, Code::InvalidArgument, "INVALID_FIELD", field);
            assert!(refused.message().contains("1 to 1000"), "{refused:?}");
        }
    }
    let results = muster.upsert(vec![record("dev=a"); 1_000]).await;
    assert_eq!(results[0].outcome(), Created);
    assert!(results[1..].iter().all(|r| r.outcome() == Unchanged));
}

#[tokio::test]
async fn the_longest_entries_fit_a_call() {
    let muster = Muster::start().await;
    let name = |index: usize| alias(&"l".repeat(512), &format!("{index:0>512}"));
    let merges = (0..1_000).map(|index| (name(index), name(index + 1)));
    let results = muster.merge(merges.collect()).await;
    assert!(results.iter().all(|result| result.outcome() == NotFound));
}

#[tokio::test]
async fn a_batch_holds_at_most_10_000_identifiers_and_1_mib() {
    let muster = Muster::start().await;
    let mut users = muster.users.clone();
    let devices = |count: usize, bytes: usize| -> Vec<UserRecord> {
        let device_ids = (0..count).map(|d| format!("{d:0>bytes$}"));
        let device_ids: Vec<String> = device_ids.collect();
        let users = device_ids.chunks(1_000).map(|device_ids| UserRecord {
            device_ids: device_ids.to_vec(),
            ..Default::default()
        });
        users.collect()
    };
    let mut upsert = async |users_sent| {
        let request = pb::UpsertUsersRequest {
            workspace: "shop".to_owned(),
            users: users_sent,
            ..Default::default()
        };
        users.upsert_users(request).await
    };
    assert!(upsert(devices(10_000, 5)).await.is_ok());
    assert!(upsert(devices(2_000, 512)).await.is_ok());
    for (user, limit) in [
        (devices(10_001, 5), "10000 identifiers"),
        (devices(2_100, 512), "1048576 bytes"),
    ] {
        let refused = upsert(user).await.unwrap_err();
        refused_as(&refused, Code::ResourceExhausted, "BATCH_TOO_LARGE", "");
        assert!(refused.message().contains(limit), "{refused:?}");
    }
}

#[tokio::test]
async fn a_user_has_at_most_1_000_identifiers() {
    let muster = Muster::start().await;
    let many = |count: usize| UserRecord {
        device_ids: (0..count)
            .map(|device| format!("{count}-{device}"))
            .collect(),
        ..record("ext=ann")
    };
    let results = muster.upsert(vec![many(1_000), many(999)]).await;
    assert_eq!(outcomes(&results), [(Invalid, None), (Created, Some(0))]);
    assert_eq!(
        results[0].detail,
        "device_ids: a user has at most 1000 identifiers, not 1001"
    );
}

#[tokio::test]
async fn parallel_writers_share_one_dense_row_of_numbers() {
    let muster = Muster::start().await;
    let writers = (0..8).map(|writer| {
        let mut users = muster.users.clone();
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            for call in 0..5 {
                // Every writer also writes the user that all of them write.
                let mut records = vec![record("ext=everybody dev=shared")];
                let own =
                    |n: usize| record(&format!("ext={writer}-{call}-{n} dev={writer}.{call}.{n}"));
                records.extend((0..20).map(own));
                let request = pb::UpsertUsersRequest {
                    workspace: "shop".to_owned(),
                    users: records,
                    ..Default::default()
                };
                let answer = users.upsert_users(request).await.unwrap().into_inner();
                let created = answer.results.iter().filter(|r| r.outcome() == Created);
                numbers.extend(created.map(|result| result.user_no.unwrap()));
            }
            numbers
        })
    });
    let mut numbers = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        numbers.extend(writer.await.unwrap());
    }
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!(numbers.len(), 8 * 5 * 20 + 1);
    assert_eq!(distinct, (0..8 * 5 * 20 + 1).collect());
}
