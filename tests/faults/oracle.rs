//! What must hold whatever was broken: what a source committed is what is published, to the last
//! identifier; every version can be read; every identifier is accounted for; an audience has
//! neither gap nor duplicate.

use std::{collections::BTreeSet, io};

use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode, Summary},
};
use muster_proto::keys::v1 as keys;
use muster_storage::{Store, versions};
use muster_tests::{PARTNER, Shop, WORKSPACE, identified};
use rand::{Rng as _, RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use sha2::{Digest as _, Sha256};

/// External id of the `n`-th user of the shop.
pub(crate) fn user(n: usize) -> String {
    format!("user-{n:07}")
}

/// Fills the shop with `count` identified users, [`user`] 0 and up.
pub(crate) async fn fill(shop: &Shop, count: usize) {
    let records = (0..count).map(|n| identified(&user(n)));
    shop.upsert_users(records.collect()).await;
}

/// A list of external ids that a source wants in a cohort, in the order it sends them.
#[derive(Debug, Clone)]
pub(crate) struct List {
    /// The ids, known and unknown ones.
    pub(crate) ids: Vec<String>,
    /// Those of them that are users, sorted.
    pub(crate) known: BTreeSet<String>,
}

impl List {
    /// `count` of the first `users` users, and some ids of nobody, shuffled.
    pub(crate) fn draw(rng: &mut StdRng, users: usize, count: usize) -> Self {
        let mut numbers: Vec<usize> = (0..users).collect();
        numbers.shuffle(rng);
        let known: BTreeSet<String> = numbers.iter().take(count).map(|n| user(*n)).collect();
        let unknown = (0..count / 50 + 1).map(|n| format!("nobody-{n}-{:x}", rng.next_u32()));
        let mut ids: Vec<String> = known.iter().cloned().chain(unknown).collect();
        ids.shuffle(rng);
        Self { ids, known }
    }

    /// The ids as an upload reads them.
    pub(crate) fn source(
        &self,
    ) -> impl Fn() -> io::Result<std::vec::IntoIter<io::Result<(Effect, Identifier)>>>
    + Send
    + Sync
    + 'static {
        let ids = self.ids.clone();
        move || {
            let rows = ids.iter().map(|id| Ok((Effect::Add, external_id(id))));
            Ok(rows.collect::<Vec<_>>().into_iter())
        }
    }

    /// That an upload of it was committed, with every identifier accounted for; returns the
    /// version.
    #[track_caller]
    pub(crate) fn check_committed(&self, outcome: &Outcome) -> u64 {
        let Outcome::Committed {
            summary, version, ..
        } = outcome
        else {
            panic!("not committed: {outcome:?}");
        };
        check_accounted(summary);
        assert_eq!(summary.received, self.ids.len() as u64, "{summary:?}");
        let unknown = self.ids.len() - self.known.len();
        assert_eq!(summary.outcomes.unknown, unknown as u64, "{summary:?}");
        *version
    }
}

/// An external id as an identifier.
pub(crate) fn external_id(id: &str) -> Identifier {
    Identifier {
        kind: IdentifierKind::ExternalId,
        label: String::new(),
        id: id.to_owned(),
    }
}

/// An upload into a cohort of the shop.
pub(crate) fn upload(cohort: &str, mode: Mode, import_id: &str) -> Upload {
    Upload::new(WORKSPACE, PARTNER, cohort, mode, import_id)
}

/// An import id that nobody has used.
pub(crate) fn import_id(rng: &mut StdRng) -> String {
    format!("import-{:016x}", rng.random::<u64>())
}

/// That received = the sum of the outcomes.
#[track_caller]
pub(crate) fn check_accounted(summary: &Summary) {
    assert_eq!(summary.received, summary.outcomes.total(), "{summary:?}");
}

/// Count, and digest of the sorted set.
pub(crate) fn fingerprint<'a>(ids: impl IntoIterator<Item = &'a String>) -> (usize, [u8; 32]) {
    let sorted: BTreeSet<&String> = ids.into_iter().collect();
    let mut digest = Sha256::new();
    for id in &sorted {
        digest.update(id.as_bytes());
        digest.update([0]);
    }
    (sorted.len(), digest.finalize().into())
}

/// That a cohort, by its partner's id, holds exactly these users.
pub(crate) async fn check_published(shop: &Shop, cohort: &str, expected: &BTreeSet<String>) {
    let audience = shop
        .audience_ids(&format!("{PARTNER}:id(\"{cohort}\")"))
        .await;
    assert_eq!(
        fingerprint(&audience),
        fingerprint(expected),
        "{cohort} holds {} users, not the {} expected",
        audience.len(),
        expected.len()
    );
}

/// That every version of every cohort can be read and has as many members as it is said to.
pub(crate) async fn check_versions(store: &Store) {
    let mut tx = store.snapshot("check_versions").await.unwrap();
    let told: Vec<(i64, uuid::Uuid, i64, i64)> = sqlx::query_as(
        "SELECT workspace_id, cohort_id, version, member_count FROM cohort_version
         ORDER BY workspace_id, cohort_id, version",
    )
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    for (workspace, cohort, version, members) in told {
        let workspace = muster_storage::WorkspaceId(workspace);
        let set = versions::stored(&mut tx, workspace, cohort, version)
            .await
            .unwrap();
        assert_eq!(set.len(), members as u64, "version {version} of {cohort}");
    }
}

impl List {
    /// As [`draw`](Self::draw), with so many ids of nobody more, which are as long as ids may be: a
    /// batch holds about 2,000 of those, so that the stream has many points to break at.
    pub(crate) fn draw_long(rng: &mut StdRng, users: usize, count: usize, nobodies: usize) -> Self {
        let mut list = Self::draw(rng, users, count);
        let long = (0..nobodies).map(|n| format!("nobody-{n:0>500}-{:04x}", rng.random::<u16>()));
        list.ids.extend(long);
        list.ids.shuffle(rng);
        list
    }
}

impl List {
    /// As [`check_committed`](Self::check_committed), for an answer as it is on the wire to a
    /// replacement with this list.
    #[track_caller]
    pub(crate) fn check_answer(
        &self,
        committed: &muster_proto::ingest::v1::Committed,
        version: u64,
    ) {
        assert_eq!(committed.version, version, "published once");
        let summary = committed.summary.as_ref().unwrap();
        assert_eq!(summary.received, self.ids.len() as u64, "{summary:?}");
        assert_eq!(
            summary.members_after,
            self.known.len() as u64,
            "{summary:?}"
        );
    }
}

/// How far an import is, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Identifiers that are durable.
    pub(crate) next_offset: u64,
    /// The version it published, if it is committed.
    pub(crate) version: Option<u64>,
}

/// How far an import is; `None` if it was never opened.
pub(crate) async fn standing(store: &Store, import_id: &str) -> Option<Standing> {
    let mut connection = store.connection().await.unwrap();
    let found: Option<(i64, Option<i64>)> = sqlx::query_as(
        "SELECT next_offset, version FROM cohort_import WHERE partner_import_id = $1",
    )
    .bind(import_id)
    .fetch_optional(&mut *connection)
    .await
    .unwrap();
    found.map(|(next_offset, version)| Standing {
        next_offset: next_offset.try_into().unwrap(),
        version: version.map(|version| version.try_into().unwrap()),
    })
}

/// The version a cohort of the shop has, by its partner's id; 0 if there is none.
pub(crate) async fn version(store: &Store, cohort: &str) -> u64 {
    let mut connection = store.connection().await.unwrap();
    let found: Option<i64> =
        sqlx::query_scalar("SELECT version FROM cohort WHERE partner_cohort_id = $1")
            .bind(cohort)
            .fetch_optional(&mut *connection)
            .await
            .unwrap();
    found.unwrap_or(0).try_into().unwrap()
}

/// Waits until an import has so many durable identifiers, or is committed; returns how far it is.
/// Polls without a pause to speak of, because the moment matters.
pub(crate) async fn reached(store: &Store, import_id: &str, offset: u64) -> Standing {
    let look = async {
        loop {
            match standing(store, import_id).await {
                Some(far) if far.next_offset >= offset || far.version.is_some() => return far,
                _ => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            }
        }
    };
    let limit = std::time::Duration::from_secs(60);
    let reached = tokio::time::timeout(limit, look).await;
    reached.expect("an import makes progress")
}

/// A service token for everything, for calls over a channel of one's own.
pub(crate) async fn service_token(shop: &Shop) -> String {
    let request = keys::CreateServiceTokenRequest {
        label: "faults".into(),
        scopes: vec!["*".into()],
        ..Default::default()
    };
    let mut integrations = shop.operator.integrations();
    let created = integrations.create_service_token(request).await.unwrap();
    created.into_inner().secret
}

/// A request with a bearer credential.
pub(crate) fn signed<T>(secret: &str, body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    let bearer = format!("Bearer {secret}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}
