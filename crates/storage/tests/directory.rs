//! The user directory under every kind of change.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use muster_domain::{
    error::Kind,
    identifier::IdentifierRef,
    import::Effect,
    user_set::{Standing, UserSet},
};
use muster_storage::{
    Error, Store, WorkspaceId,
    directory::{
        self, Conflict, Deleted, Identification, Identified, Likely, Match, Merge, Merged,
        Upserted, UserRecord,
    },
    rejected::{self, Reason, Rejection},
    workspaces,
};

fn external_id(id: &str) -> IdentifierRef<'_> {
    IdentifierRef::external_id(id)
}

fn device(id: &str) -> IdentifierRef<'_> {
    IdentifierRef::device_id(id)
}

fn newsletter(name: &str) -> IdentifierRef<'_> {
    IdentifierRef::alias("newsletter", name)
}

/// Reads `ext=a news=b dev=c`, in the order of the notation.
fn record(text: &str) -> UserRecord<'_> {
    let mut record = UserRecord::default();
    for part in text.split_whitespace() {
        match part.split_once('=').unwrap() {
            ("ext", id) => record.external_id = Some(id),
            ("news", name) => record.aliases.push(("newsletter", name)),
            ("dev", id) => record.device_ids.push(id),
            (other, _) => panic!("{other}?"),
        }
    }
    record
}

/// One workspace and its directory.
struct Shop {
    store: Store,
    id: WorkspaceId,
}

impl Shop {
    async fn open() -> Self {
        let store = muster_testbed::store().await;
        let mut connection = store.connection().await.unwrap();
        let shop = workspaces::insert(&mut connection, "shop", "").await;
        let id = shop.unwrap().id;
        Self { store, id }
    }

    async fn upsert(&self, records: &[&str]) -> Vec<Upserted> {
        let records: Vec<UserRecord<'_>> = records.iter().map(|text| record(text)).collect();
        let mut tx = self.store.begin("upsert").await.unwrap();
        let changed = directory::upsert(&mut tx, self.id, &records, Likely::Anyone)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(changed.epoch, self.epoch().await);
        changed.outcomes
    }

    async fn identify(&self, user: IdentifierRef<'_>, external_id: &str) -> Identified {
        let mut tx = self.store.begin("identify").await.unwrap();
        let entries = [Identification { user, external_id }];
        let changed = directory::identify(&mut tx, self.id, &entries).await;
        tx.commit().await.unwrap();
        changed.unwrap().outcomes[0]
    }

    async fn merge(&self, entries: &[(IdentifierRef<'_>, IdentifierRef<'_>)]) -> Vec<Merged> {
        let entries: Vec<Merge<'_>> = entries
            .iter()
            .map(|&(from, into)| Merge { from, into })
            .collect();
        let mut tx = self.store.begin("merge").await.unwrap();
        let changed = directory::merge(&mut tx, self.id, &entries).await.unwrap();
        tx.commit().await.unwrap();
        changed.outcomes
    }

    async fn delete(&self, users: &[IdentifierRef<'_>]) -> Vec<Deleted> {
        let mut tx = self.store.begin("delete").await.unwrap();
        let changed = directory::delete(&mut tx, self.id, users).await.unwrap();
        tx.commit().await.unwrap();
        changed.outcomes
    }

    async fn matches(&self, identifiers: &[IdentifierRef<'_>]) -> Vec<Match> {
        let mut connection = self.store.connection().await.unwrap();
        directory::match_identifiers(&mut connection, self.id, identifiers)
            .await
            .unwrap()
    }

    async fn find(&self, user: u32) -> directory::User {
        let mut tx = self.store.snapshot("find").await.unwrap();
        let found = directory::find(&mut tx, self.id, user).await.unwrap();
        found.expect("the user exists")
    }

    async fn epoch(&self) -> i64 {
        let mut connection = self.store.connection().await.unwrap();
        directory::epoch(&mut connection, self.id).await.unwrap()
    }

    async fn identified_since(&self, epoch: i64) -> UserSet {
        let mut connection = self.store.connection().await.unwrap();
        directory::identified_since(&mut connection, self.id, epoch, u32::MAX)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn identifiers_match_as_the_partner_page_promises() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann news=ann@x dev=phone", "news=bob@x dev=tablet"])
        .await;
    let table = [
        (external_id("ann"), Match::User(0)),
        (newsletter("ann@x"), Match::User(0)),
        (device("phone"), Match::DeviceOfIdentifiedUser(0)),
        (newsletter("bob@x"), Match::User(1)),
        (device("tablet"), Match::User(1)),
        (external_id("Ann"), Match::Unknown),
        (device("ann"), Match::Unknown),
        (external_id("bob@x"), Match::Unknown),
        (IdentifierRef::alias("other", "bob@x"), Match::Unknown),
    ];
    let (sent, expected): (Vec<_>, Vec<_>) = table.into_iter().unzip();
    assert_eq!(shop.matches(&sent).await, expected);
}

#[tokio::test]
async fn another_workspace_shares_nothing() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann"]).await;
    let mut connection = shop.store.connection().await.unwrap();
    let other = workspaces::insert(&mut connection, "other", "").await;
    let other = Shop {
        store: shop.store.clone(),
        id: other.unwrap().id,
    };
    assert_eq!(other.matches(&[external_id("ann")]).await, [Match::Unknown]);
    assert_eq!(other.upsert(&["ext=ann"]).await, [Upserted::Created(0)]);
    assert_eq!(
        other.delete(&[external_id("ann")]).await,
        [Deleted::Deleted(0)]
    );
    assert_eq!(shop.matches(&[external_id("ann")]).await, [Match::User(0)]);
}

#[tokio::test]
async fn a_batch_is_applied_in_order_and_a_conflict_spoils_only_itself() {
    use Conflict::{AnonymousUser, OtherExternalId, SeveralUsers};
    use Upserted::{Created, Unchanged, Updated};
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann dev=a1", "dev=b1"]).await;
    let outcomes = [
        ("ext=ann", Unchanged(0)),
        ("ext=ann dev=a2 dev=a2", Updated(0)),
        ("dev=a2 news=ann@x", Updated(0)),
        ("ext=cid dev=c1", Created(2)),
        ("ext=cid dev=c1", Unchanged(2)),
        ("dev=c1 dev=c2", Updated(2)),
        // Nothing of these is applied.
        (
            "ext=ann dev=x dev=b1",
            Upserted::Conflict(SeveralUsers(0, 2)),
        ),
        (
            "dev=x dev=b1 dev=c2",
            Upserted::Conflict(SeveralUsers(1, 2)),
        ),
        ("ext=bob dev=x dev=b1", Upserted::Conflict(AnonymousUser(2))),
        (
            "ext=new news=ann@x dev=x",
            Upserted::Conflict(OtherExternalId(1)),
        ),
        ("dev=x", Created(3)),
        ("ext=bob", Created(4)),
    ];
    let (records, expected): (Vec<_>, Vec<_>) = outcomes.into_iter().unzip();
    assert_eq!(shop.upsert(&records).await, expected);
    assert_eq!(shop.find(0).await.device_ids, ["a1", "a2"]);
    assert_eq!(shop.find(1).await.device_ids, ["b1"]);
    assert_eq!(shop.find(2).await.device_ids, ["c1", "c2"]);
    assert_eq!(shop.matches(&[external_id("new")]).await, [Match::Unknown]);
}

#[tokio::test]
async fn the_epoch_moves_only_when_something_changed() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann dev=a1", "dev=b1"]).await;
    assert_eq!(shop.epoch().await, 1);
    shop.upsert(&["ext=ann", "dev=b1", "ext=bob dev=b1"]).await;
    shop.upsert(&[]).await;
    shop.identify(device("a1"), "ann").await;
    shop.identify(device("b1"), "ann").await;
    shop.identify(device("nobody's"), "eve").await;
    let both = (device("a1"), external_id("ann"));
    shop.merge(&[both, (device("nobody's"), device("a1"))])
        .await;
    shop.delete(&[device("nobody's")]).await;
    assert_eq!(shop.epoch().await, 1);
    shop.upsert(&["dev=b1 dev=b2"]).await;
    assert_eq!(shop.epoch().await, 2);
}

#[tokio::test]
async fn an_identified_user_keeps_everything_but_device_matches() {
    let shop = Shop::open().await;
    shop.upsert(&["news=bob@x dev=b1", "ext=ann dev=a1", "dev=c1"])
        .await;
    let before = shop.epoch().await;
    assert_eq!(
        shop.identify(device("b1"), "bob").await,
        Identified::Identified(0)
    );
    let sent = [newsletter("bob@x"), device("b1"), external_id("bob")];
    assert_eq!(
        shop.matches(&sent).await,
        [
            Match::User(0),
            Match::DeviceOfIdentifiedUser(0),
            Match::User(0)
        ]
    );
    assert_eq!(shop.identified_since(before).await, UserSet::from([0]));
    let again = [
        (newsletter("bob@x"), "bob", Identified::Unchanged(0)),
        (external_id("bob"), "bob", Identified::Unchanged(0)),
        (device("b1"), "robert", Identified::OtherExternalId),
        (external_id("bob"), "robert", Identified::OtherExternalId),
        (device("c1"), "ann", Identified::ExternalIdTaken),
        (device("b1"), "ann", Identified::ExternalIdTaken),
        (external_id("robert"), "robert", Identified::NotFound),
    ];
    for (user, id, expected) in again {
        assert_eq!(shop.identify(user, id).await, expected, "{user:?} {id}");
    }
}

#[tokio::test]
async fn merges_apply_in_order_and_every_identifier_leads_to_the_survivor() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann dev=a1", "dev=b1", "ext=cid dev=c1", "dev=d1"])
        .await;
    let before = shop.epoch().await;
    let merged = shop
        .merge(&[
            (external_id("ann"), device("b1")),
            (device("b1"), external_id("ann")),
            (device("a1"), external_id("cid")),
            (device("nobody's"), device("d1")),
            (device("d1"), device("nobody's")),
        ])
        .await;
    let expected = [
        Merged::Merged(1),
        Merged::Unchanged(1),
        Merged::Merged(2),
        Merged::FromNotFound,
        Merged::IntoNotFound,
    ];
    assert_eq!(merged, expected);
    let survivor = shop.find(2).await;
    assert_eq!(survivor.external_id.as_deref(), Some("cid"));
    assert_eq!(survivor.merged_external_ids, ["ann"]);
    assert_eq!(survivor.device_ids, ["a1", "b1", "c1"]);
    for gone in [0, 1] {
        let gone = shop.find(gone).await;
        assert_eq!(gone.standing, Standing::Merged(2));
        assert!(gone.external_id.is_none() && gone.device_ids.is_empty());
    }
    // A record with a secondary external id is the survivor.
    assert_eq!(
        shop.upsert(&["ext=ann dev=a9", "ext=ann news=cid@x"]).await,
        [Upserted::Updated(2), Upserted::Updated(2)]
    );
    assert_eq!(
        shop.identify(device("b1"), "ann").await,
        Identified::Unchanged(2)
    );
    // Whoever was matched by the device b1 lives on in somebody who is identified.
    assert!(shop.identified_since(before).await.contains(2));
}

#[tokio::test]
async fn an_anonymous_survivor_becomes_identified() {
    let shop = Shop::open().await;
    shop.upsert(&["dev=b1", "ext=ann dev=a1", "ext=eve"]).await;
    let before = shop.epoch().await;
    let into_b = [
        (external_id("ann"), device("b1")),
        (external_id("eve"), device("b1")),
    ];
    shop.merge(&into_b).await;
    let survivor = shop.find(0).await;
    assert_eq!(survivor.external_id.as_deref(), Some("ann"));
    assert_eq!(survivor.merged_external_ids, ["eve"]);
    assert!(shop.identified_since(before).await.contains(0));
    assert_eq!(
        shop.matches(&[device("b1")]).await,
        [Match::DeviceOfIdentifiedUser(0)]
    );
}

#[tokio::test]
async fn a_deleted_user_leaves_a_number_that_is_never_used_again() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann dev=a1", "ext=bob", "dev=c1"]).await;
    shop.merge(&[(external_id("ann"), external_id("bob"))])
        .await;
    let deleted = shop
        .delete(&[device("a1"), external_id("bob"), device("nobody's")])
        .await;
    let expected = [Deleted::Deleted(1), Deleted::Deleted(1), Deleted::NotFound];
    assert_eq!(deleted, expected);
    // Ann lived on as Bob, so she is gone with him.
    for gone in [0, 1] {
        let gone = shop.find(gone).await;
        assert_eq!(gone.standing, Standing::Deleted);
        assert!(gone.external_id.is_none() && gone.merged_external_ids.is_empty());
    }
    assert_eq!(
        shop.upsert(&["ext=ann", "ext=bob"]).await,
        [Upserted::Created(3), Upserted::Created(4)]
    );
    let mut connection = shop.store.connection().await.unwrap();
    let directory = shop.store.directory(&mut connection, shop.id).await;
    assert_eq!(directory.unwrap().live(), UserSet::from([2, 3, 4]));
}

#[tokio::test]
async fn erasure_reaches_the_lists_of_rejected_identifiers() {
    let shop = Shop::open().await;
    shop.upsert(&["ext=ann news=ann@x dev=phone", "ext=bob dev=ann"])
        .await;
    let mut sql = shop.store.begin("rejected").await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO cohort (workspace_id, cohort_id, partner, partner_cohort_id, name)
         VALUES (1, '00000000-0000-0000-0000-000000000001', 'p', 'c', 'c');
         INSERT INTO cohort_import (workspace_id, import_id, cohort_id, mode, digest_state,
             refuse_if_older, created_by, expires_at, partner, partner_import_id)
         VALUES (1, 'i', '00000000-0000-0000-0000-000000000001', 1, '', false, 'x', now(), 'p', 'i');
         INSERT INTO import_rejected VALUES
         (1, 'i', 0, '{0,2,3,5,7}', '{2,3,1,1,1}', '{1,1,1,1,1}', '{3,3,2,2,1}',
          ARRAY['', '', 'newsletter', 'other', '']::bytea[],
          ARRAY['phone', '\\x7068006f6e65', 'ann@x', 'ann@x', 'ann']::bytea[]),
         (1, 'i', 9, '{9}', '{2}', '{1}', '{3}', ARRAY['']::bytea[], ARRAY['ann']::bytea[])",
    )
    .execute(&mut *sql)
    .await
    .unwrap();
    for (offset, ids) in [(20, &["ann", "dan"][..]), (30, &["dan"])] {
        let rejected: Vec<Rejection<'_>> = (offset..)
            .zip(ids)
            .map(|(position, id)| Rejection {
                position,
                reason: Reason::Unknown,
                effect: Effect::Add,
                identifier: IdentifierRef::external_id(id),
            })
            .collect();
        rejected::insert(&mut sql, shop.id, "i", offset, &rejected)
            .await
            .unwrap();
    }
    sql.commit().await.unwrap();
    shop.delete(&[external_id("ann")]).await;
    let mut sql = shop.store.connection().await.unwrap();
    // As this build writes it: found by its hashes, of which those of the erased are gone.
    let hash_is_gone: bool = sqlx::query_scalar(
        "SELECT hashes = '\\x00000000'::bytea || substring(sha256('dan') FOR 4)
         FROM import_rejected WHERE first_offset = 20",
    )
    .fetch_one(&mut *sql)
    .await
    .unwrap();
    assert!(hash_is_gone);
    let untouched: bool = sqlx::query_scalar(
        "SELECT changed.xmin <> same.xmin FROM import_rejected changed, import_rejected same
         WHERE changed.first_offset = 20 AND same.first_offset = 30",
    )
    .fetch_one(&mut *sql)
    .await
    .unwrap();
    assert!(untouched, "a list without them was rewritten");
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT positions::text || reasons::text || effects::text || kinds::text,
                (SELECT array_agg(convert_from(label, 'UTF8')) FROM unnest(labels) label)::text,
                (SELECT array_agg(encode(id, 'escape')) FROM unnest(ids) id)::text
         FROM import_rejected WHERE first_offset < 20 ORDER BY first_offset",
    )
    .fetch_all(&mut *sql)
    .await
    .unwrap();
    let expected = [
        (
            "{0,2,3,5,7}{2,3,1,1,1}{1,1,1,1,1}{3,3,2,2,1}",
            r#"{NULL,"",NULL,other,NULL}"#,
            r#"{NULL,"ph\\000one",NULL,ann@x,NULL}"#,
        ),
        // Bob has a device of that name.
        ("{9}{2}{1}{3}", r#"{""}"#, "{ann}"),
    ];
    for (row, (rest, labels, ids)) in rows.iter().zip(expected) {
        assert_eq!((&*row.0, &*row.1, &*row.2), (rest, labels, ids));
    }
}

#[tokio::test]
async fn the_last_number_is_given_out_and_no_further_one() {
    let shop = Shop::open().await;
    let mut sql = shop.store.connection().await.unwrap();
    sqlx::raw_sql("UPDATE directory SET next_user_no = 4294967295")
        .execute(&mut *sql)
        .await
        .unwrap();
    assert_eq!(
        shop.upsert(&["ext=last"]).await,
        [Upserted::Created(u32::MAX)]
    );
    let records = [record("ext=last dev=new"), record("ext=more")];
    for likely in [Likely::Anyone, Likely::New] {
        let refused = directory::upsert(&mut sql, shop.id, &records, likely).await;
        let Err(Error::Domain(refused)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused.kind, Kind::ResourceExhausted);
    }
    assert_eq!(shop.find(u32::MAX).await.device_ids, [""; 0]);
    assert_eq!(
        shop.upsert(&["ext=last dev=new"]).await,
        [Upserted::Updated(u32::MAX)]
    );
}
