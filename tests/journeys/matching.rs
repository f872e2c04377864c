//! The matching rule that the partner page promises, over both doors.

use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode, Outcomes},
};
use muster_proto::users::v1 as users;
use muster_tests::{Muster, PARTNER, WORKSPACE, identified};
use serde_json::json;
use uuid::Uuid;

/// How a partner sends.
#[derive(Debug, Clone, Copy)]
enum Door {
    Rest,
    Grpc,
}

const DOORS: [Door; 2] = [Door::Rest, Door::Grpc];

fn external(id: &str) -> Identifier {
    Identifier {
        kind: IdentifierKind::ExternalId,
        label: String::new(),
        id: id.into(),
    }
}

fn alias(label: &str, name: &str) -> Identifier {
    Identifier {
        kind: IdentifierKind::Alias,
        label: label.into(),
        id: name.into(),
    }
}

fn device(id: &str) -> Identifier {
    Identifier {
        kind: IdentifierKind::DeviceId,
        label: String::new(),
        id: id.into(),
    }
}

fn wire(identifier: &Identifier) -> users::Identifier {
    use users::identifier::Kind;
    let id = identifier.id.clone();
    let kind = match identifier.kind {
        IdentifierKind::ExternalId => Kind::ExternalId(id),
        IdentifierKind::DeviceId => Kind::DeviceId(id),
        IdentifierKind::Alias => Kind::Alias(users::Alias {
            label: identifier.label.clone(),
            name: id,
        }),
    };
    users::Identifier { kind: Some(kind) }
}

/// Sends changes in one import and returns what became of them.
async fn send(
    muster: &Muster,
    door: Door,
    cohort: &str,
    changes: &[(Effect, Identifier)],
) -> Outcomes {
    match door {
        Door::Rest => {
            let objects: Vec<_> = changes
                .iter()
                .map(|(effect, identifier)| {
                    let Identifier { kind, label, id } = identifier;
                    let mut object = json!({ "should_remove": *effect == Effect::Remove });
                    let (key, element) = match kind {
                        IdentifierKind::ExternalId => ("user_ids", json!(id)),
                        IdentifierKind::DeviceId => ("device_ids", json!(id)),
                        IdentifierKind::Alias => {
                            ("aliases", json!({ "alias_label": label, "alias_name": id }))
                        }
                    };
                    object[key] = json!([element]);
                    object
                })
                .collect();
            let answer = muster
                .rest()
                .change(cohort, json!(objects))
                .await
                .succeeded();
            serde_json::from_value(answer.body["counts"].clone()).unwrap()
        }
        Door::Grpc => {
            let import_id = Uuid::now_v7().to_string();
            let upload = Upload::new("", "", cohort, Mode::Delta, import_id);
            let rows = changes.to_vec();
            let rows = move || Ok(rows.clone().into_iter().map(Ok));
            let outcome = upload
                .run(&muster.partner(), rows, &mut |_| {})
                .await
                .unwrap();
            let Outcome::Committed { summary, .. } = outcome else {
                panic!("not committed: {outcome:?}");
            };
            assert_eq!(summary.received, changes.len() as u64);
            assert_eq!(summary.outcomes.total(), summary.received);
            summary.outcomes
        }
    }
}

async fn add(muster: &Muster, door: Door, cohort: &str, who: Identifier) -> Outcomes {
    send(muster, door, cohort, &[(Effect::Add, who)]).await
}

async fn remove(muster: &Muster, door: Door, cohort: &str, who: Identifier) -> Outcomes {
    send(muster, door, cohort, &[(Effect::Remove, who)]).await
}

/// One identifier that ended so.
fn one(set: impl FnOnce(&mut Outcomes) -> &mut u64) -> Outcomes {
    let mut outcomes = Outcomes::default();
    *set(&mut outcomes) = 1;
    outcomes
}

fn added() -> Outcomes {
    one(|o| &mut o.added)
}

fn removed() -> Outcomes {
    one(|o| &mut o.removed)
}

fn unknown() -> Outcomes {
    one(|o| &mut o.unknown)
}

fn of_identified() -> Outcomes {
    one(|o| &mut o.device_of_identified_user)
}

/// A user with the alias `mail:NAME` and the device `NAME-phone`; identified if `NAME` is so.
fn person(name: &str, identified: bool) -> users::UserRecord {
    users::UserRecord {
        external_id: if identified {
            name.into()
        } else {
            String::new()
        },
        aliases: vec![users::Alias {
            label: "mail".into(),
            name: name.into(),
        }],
        device_ids: vec![format!("{name}-phone")],
    }
}

async fn size(muster: &Muster, cohort: &str) -> Option<u64> {
    muster.cohort(cohort).await.member_count
}

async fn identify(muster: &Muster, who: Identifier, external_id: &str) {
    let request = users::IdentifyUsersRequest {
        workspace: WORKSPACE.into(),
        entries: vec![users::identify_users_request::Entry {
            user: Some(wire(&who)),
            external_id: external_id.into(),
        }],
        request_id: String::new(),
    };
    let answer = muster
        .operator
        .users()
        .identify_users(request)
        .await
        .unwrap();
    let result = answer.into_inner().results.remove(0);
    assert_eq!(
        result.outcome(),
        users::UserOutcome::Identified,
        "{result:?}"
    );
}

async fn merge(muster: &Muster, from: Identifier, into: Identifier) {
    let request = users::MergeUsersRequest {
        workspace: WORKSPACE.into(),
        entries: vec![users::merge_users_request::Entry {
            from: Some(wire(&from)),
            into: Some(wire(&into)),
        }],
        request_id: String::new(),
    };
    let answer = muster.operator.users().merge_users(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    assert_eq!(result.outcome(), users::UserOutcome::Merged, "{result:?}");
}

async fn delete(muster: &Muster, who: Identifier) {
    let request = users::DeleteUsersRequest {
        workspace: WORKSPACE.into(),
        users: vec![wire(&who)],
        request_id: String::new(),
    };
    let answer = muster.operator.users().delete_users(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    assert_eq!(result.outcome(), users::UserOutcome::Deleted, "{result:?}");
}

/// The filter of everybody in a cohort.
fn filter(cohort: &str) -> String {
    format!("{PARTNER}:id(\"{cohort}\")")
}

#[tokio::test]
async fn each_identifier_matches_whom_the_partner_page_says() {
    let muster = Muster::start().await;
    muster
        .upsert_users(vec![person("ann", true), person("ben", false)])
        .await;
    for door in DOORS {
        let table = [
            (external("ann"), added(), removed()),
            (alias("mail", "ann"), added(), removed()),
            (device("ann-phone"), of_identified(), of_identified()),
            (external("ben"), unknown(), unknown()),
            (alias("mail", "ben"), added(), removed()),
            (device("ben-phone"), added(), removed()),
            (alias("sms", "ann"), unknown(), unknown()),
            (device("ann"), unknown(), unknown()),
            (external("ann-phone"), unknown(), unknown()),
        ];
        for (n, (who, when_added, when_removed)) in table.into_iter().enumerate() {
            let cohort = format!("{door:?}-{n}");
            assert_eq!(
                add(&muster, door, &cohort, who.clone()).await,
                when_added,
                "{door:?} {who}"
            );
            assert_eq!(
                size(&muster, &cohort).await,
                Some(when_added.added),
                "{door:?} {who}"
            );
            // Everybody in, to see whom a removal reaches.
            add(&muster, door, &cohort, external("ann")).await;
            add(&muster, door, &cohort, device("ben-phone")).await;
            let outcome = remove(&muster, door, &cohort, who.clone()).await;
            assert_eq!(outcome, when_removed, "{door:?} {who}");
            assert_eq!(
                size(&muster, &cohort).await,
                Some(2 - when_removed.removed),
                "{door:?} {who}"
            );
        }
    }
    muster.stop().await;
}

#[tokio::test]
async fn identifiers_match_byte_by_byte() {
    let muster = Muster::start().await;
    let record = users::UserRecord {
        external_id: "Zoë".into(),
        aliases: vec![users::Alias {
            label: "Mail".into(),
            name: "Zoë@Example.org".into(),
        }],
        ..Default::default()
    };
    let mut anonymous = person("x", false);
    anonymous.device_ids = vec!["AB-12".into()];
    muster
        .upsert_users(vec![
            record,
            anonymous,
            identified("007"),
            identified("a b"),
        ])
        .await;
    for door in DOORS {
        let cohort = format!("{door:?}");
        for who in [
            external("zoë"),
            external("ZOË"),
            external("Zoe"),
            // The same letters, composed otherwise.
            external("Zoe\u{308}"),
            external(" Zoë"),
            external("Zoë "),
            external("7"),
            external("07"),
            external("a  b"),
            external("a\u{a0}b"),
            alias("mail", "Zoë@Example.org"),
            alias("Mail", "zoë@example.org"),
            device("ab-12"),
            device("AB12"),
        ] {
            assert_eq!(
                add(&muster, door, &cohort, who.clone()).await,
                unknown(),
                "{door:?} {who}"
            );
        }
        let exact = [
            external("Zoë"),
            device("AB-12"),
            external("007"),
            external("a b"),
        ];
        for who in exact {
            assert_eq!(
                add(&muster, door, &cohort, who.clone()).await,
                added(),
                "{door:?} {who}"
            );
        }
        let again = add(&muster, door, &cohort, alias("Mail", "Zoë@Example.org")).await;
        assert_eq!(again, one(|o| &mut o.already_member));
    }
    muster.stop().await;
}

#[tokio::test]
async fn an_import_creates_nobody_and_one_who_comes_later_is_matched_by_the_next() {
    let muster = Muster::start().await;
    for (n, door) in DOORS.into_iter().enumerate() {
        let name = format!("late-{n}");
        for who in [
            external(&name),
            alias("mail", &name),
            device(&format!("{name}-phone")),
        ] {
            assert_eq!(add(&muster, door, &name, who.clone()).await, unknown());
            let request = users::FindUserRequest {
                workspace: WORKSPACE.into(),
                user: Some(users::find_user_request::User::Identifier(wire(&who))),
            };
            let error = muster
                .operator
                .users()
                .find_user(request)
                .await
                .unwrap_err();
            assert_eq!(error.code(), tonic::Code::NotFound, "{who}");
        }
        // A user written before an import is matched by it, always.
        muster.upsert_users(vec![person(&name, true)]).await;
        assert_eq!(
            size(&muster, &name).await,
            Some(0),
            "nobody enters by being created"
        );
        assert_eq!(add(&muster, door, &name, external(&name)).await, added());
    }
    muster.stop().await;
}

#[tokio::test]
async fn who_signs_up_stays_a_member_and_is_no_longer_matched_by_device() {
    let muster = Muster::start().await;
    for door in DOORS {
        let name = format!("{door:?}");
        let phone = device(&format!("{name}-phone"));
        muster.upsert_users(vec![person(&name, false)]).await;
        assert_eq!(add(&muster, door, &name, phone.clone()).await, added());
        identify(&muster, alias("mail", &name), &name).await;
        assert_eq!(muster.audience_ids(&filter(&name)).await, [name.as_str()]);
        assert_eq!(
            add(&muster, door, &name, phone.clone()).await,
            of_identified()
        );
        assert_eq!(remove(&muster, door, &name, phone).await, of_identified());
        assert_eq!(muster.audience_ids(&filter(&name)).await, [name.as_str()]);
        assert_eq!(
            remove(&muster, door, &name, external(&name)).await,
            removed()
        );
        assert_eq!(muster.audience_ids(&filter(&name)).await, [""; 0]);
    }
    muster.stop().await;
}

#[tokio::test]
async fn a_stale_add_by_device_does_not_bring_back_who_was_removed() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![person("ann", true)]).await;
    let (ann, phone) = (external("ann"), device("ann-phone"));
    for door in DOORS {
        // In one upload, in either order.
        for (n, order) in [[0, 1], [1, 0]].into_iter().enumerate() {
            let cohort = format!("{door:?}-{n}");
            add(&muster, door, &cohort, ann.clone()).await;
            let changes = [(Effect::Remove, ann.clone()), (Effect::Add, phone.clone())];
            let changes = order.map(|place| changes[place].clone());
            let outcomes = send(&muster, door, &cohort, &changes).await;
            assert_eq!(
                (outcomes.removed, outcomes.device_of_identified_user),
                (1, 1)
            );
            assert_eq!(size(&muster, &cohort).await, Some(0), "{door:?} {order:?}");
        }
        // In two uploads, the stale one last.
        let cohort = format!("{door:?}-two");
        add(&muster, door, &cohort, ann.clone()).await;
        remove(&muster, door, &cohort, ann.clone()).await;
        assert_eq!(
            add(&muster, door, &cohort, phone.clone()).await,
            of_identified()
        );
        assert_eq!(size(&muster, &cohort).await, Some(0), "{door:?}");
    }
    muster.stop().await;
}

#[tokio::test]
async fn after_a_merge_the_survivor_is_in_both_cohorts_and_has_all_identifiers() {
    let muster = Muster::start().await;
    for door in DOORS {
        let (old, new) = (format!("old-{door:?}"), format!("new-{door:?}"));
        let (only_old, only_new, both) = (
            format!("o{door:?}"),
            format!("n{door:?}"),
            format!("b{door:?}"),
        );
        muster
            .upsert_users(vec![person(&old, false), person(&new, true)])
            .await;
        add(&muster, door, &only_old, alias("mail", &old)).await;
        add(&muster, door, &only_new, external(&new)).await;
        let everybody = [
            (Effect::Add, alias("mail", &old)),
            (Effect::Add, external(&new)),
        ];
        assert_eq!(send(&muster, door, &both, &everybody).await.added, 2);

        merge(&muster, alias("mail", &old), external(&new)).await;
        for cohort in [&only_old, &only_new, &both] {
            assert_eq!(
                muster.audience_ids(&filter(cohort)).await,
                [new.as_str()],
                "{cohort}"
            );
            assert_eq!(
                size(&muster, cohort).await,
                Some(1),
                "two became one: {cohort}"
            );
        }
        // Two identifiers of one person are one person.
        let outcomes = send(&muster, door, "fresh", &everybody).await;
        assert_eq!((outcomes.added, outcomes.duplicate), (1, 1));
        // What was an anonymous user's device is now one of an identified user.
        let phone = device(&format!("{old}-phone"));
        assert_eq!(add(&muster, door, "fresh", phone).await, of_identified());
        assert_eq!(
            remove(&muster, door, &only_old, alias("mail", &old)).await,
            removed()
        );
        assert_eq!(size(&muster, &only_old).await, Some(0));
    }
    muster.stop().await;
}

#[tokio::test]
async fn who_was_deleted_is_in_no_cohort_and_a_namesake_is_somebody_else() {
    let muster = Muster::start().await;
    for door in DOORS {
        let name = format!("{door:?}");
        muster
            .upsert_users(vec![person(&name, true), identified("other")])
            .await;
        let all = [
            (Effect::Add, external(&name)),
            (Effect::Add, external("other")),
        ];
        send(&muster, door, &name, &all).await;
        delete(&muster, alias("mail", &name)).await;
        assert_eq!(size(&muster, &name).await, Some(1), "the count follows");
        assert_eq!(muster.audience_ids(&filter(&name)).await, ["other"]);
        let phone = device(&format!("{name}-phone"));
        for who in [external(&name), alias("mail", &name), phone] {
            assert_eq!(add(&muster, door, &name, who).await, unknown());
        }
        muster.upsert_users(vec![person(&name, true)]).await;
        assert_eq!(muster.audience_ids(&filter(&name)).await, ["other"]);
        assert_eq!(add(&muster, door, &name, external(&name)).await, added());
        assert_eq!(size(&muster, &name).await, Some(2));
    }
    muster.stop().await;
}
