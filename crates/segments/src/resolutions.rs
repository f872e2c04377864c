//! Resolutions: evaluations that are kept.

use std::{collections::HashMap, time::Duration};

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    filter::SegmentRef,
    user_set::UserSet,
};
use muster_service::{Caller, Once, Page, answered, once};
use muster_storage::{
    Connection, Store, Timestamp, WorkspaceId, audit,
    resolutions::{self as storage, CohortRead, NewResolution, Resolution, Selection},
};
use prost::Message;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    evaluation::{Demands, Source, Turns},
    references::find_segment,
};

/// A resolution and the cohort versions it read.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) resolution: Resolution,
    pub(crate) cohorts: Vec<CohortRead>,
}

/// The name under which answers to a `request_id` are kept.
const METHOD: &str = "resolve_segment";

/// A resolution to make: who asks for it, and what defines it.
pub(crate) struct Wanted<'a, M> {
    pub(crate) workspace: WorkspaceId,
    pub(crate) turns: &'a Turns,
    pub(crate) source: &'a Source,
    pub(crate) demands: &'a Demands,
    pub(crate) request_id: &'a str,
    /// The parts of the request that define the resolution: calls that share a `request_id` must
    /// agree in them, and may differ in all else.
    pub(crate) defining: &'a M,
    pub(crate) retention: Duration,
}

/// Evaluates now and keeps the result, unless that was done for the same `request_id`.
pub(crate) async fn make<M: Message>(
    store: &Store,
    caller: &Caller,
    wanted: Wanted<'_, M>,
) -> Result<(Described, UserSet)> {
    let (workspace, request_id) = (wanted.workspace, wanted.request_id);
    let earlier: Option<String> = answered(
        store,
        caller,
        Some(workspace),
        METHOD,
        request_id,
        wanted.defining,
    )
    .await?;
    if let Some(id) = earlier {
        return get_remembered(store, caller, workspace, &id).await;
    }
    // Ahead of the transaction that keeps it, so that no call ever waits for a second connection
    // while it holds one. Workers that start together may each evaluate; the first one's is kept.
    let made = wanted
        .turns
        .evaluate(store, workspace, wanted.source, wanted.demands);
    let made = made.await?;
    let attempt = once::<String>(
        store,
        caller,
        Some(workspace),
        METHOD,
        request_id,
        wanted.defining,
    );
    let mut first = match attempt.await? {
        Once::Done(id) => return get_remembered(store, caller, workspace, &id).await,
        Once::First(first) => first,
    };
    let new = NewResolution {
        segment: made.segment,
        filter_text: &made.filter_text,
        users: &made.users,
        directory_epoch: made.directory_epoch,
        cohorts: &made.cohorts,
        created_by: &caller.actor,
        retention: wanted.retention,
    };
    let id = storage::insert(first.tx(), workspace, &new).await?;
    let kept = describe(first.tx(), workspace, id).await?;
    let resource = format!("resolution:{id}");
    let (tx, by) = (first.tx(), caller.by());
    audit::append(tx, Some(workspace), by, "segment.resolve", &resource).await?;
    first.commit(&id.to_string()).await?;
    Ok((kept, made.users))
}

async fn get_remembered(
    store: &Store,
    caller: &Caller,
    workspace: WorkspaceId,
    id: &str,
) -> Result<(Described, UserSet)> {
    let id = id
        .parse()
        .map_err(|error: uuid::Error| Error::internal(error))?;
    read_again(store, caller, workspace, id).await
}

/// Finds a kept resolution.
pub(crate) async fn get(store: &Store, workspace: WorkspaceId, id: Uuid) -> Result<Described> {
    let mut conn = store.read_in("get_resolution", workspace).await?;
    describe(&mut conn, workspace, id).await
}

/// Finds a kept resolution with its users, for somebody who is about to read who they are: that is an
/// event of the trail, as the resolution itself was.
pub(crate) async fn read_again(
    store: &Store,
    caller: &Caller,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<(Described, UserSet)> {
    let found = get_with_users(store, workspace, id).await?;
    let mut tx = store.begin_in("read_again", workspace).await?;
    let resource = format!("resolution:{id}");
    audit::append(
        &mut tx,
        Some(workspace),
        caller.by(),
        "resolution.read",
        &resource,
    )
    .await?;
    tx.commit().await?;
    Ok(found)
}

/// Finds a kept resolution with its users.
async fn get_with_users(
    store: &Store,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<(Described, UserSet)> {
    // One snapshot: it may expire and be deleted between two statements.
    let mut tx = store.snapshot_in("get_resolution", workspace).await?;
    let described = describe(&mut tx, workspace, id).await?;
    let users = storage::users(&mut tx, workspace, id).await?;
    tx.commit().await?;
    if users.len() != described.resolution.user_count {
        return Err(Error::internal(format!("resolution {id} is damaged")));
    }
    Ok((described, users))
}

async fn describe(conn: &mut Connection, workspace: WorkspaceId, id: Uuid) -> Result<Described> {
    let found = storage::find(conn, workspace, id).await?;
    let resolution = found.ok_or_else(|| Error::not_found("resolution", id))?;
    let cohorts = storage::cohorts(conn, workspace, &[id]).await?;
    Ok(Described {
        resolution,
        cohorts: cohorts.into_iter().map(|(_, cohort)| cohort).collect(),
    })
}

/// A page of resolutions, newest first, made within a time, and where the next one begins.
pub(crate) async fn list(
    store: &Store,
    workspace: WorkspaceId,
    segment: Option<&SegmentRef>,
    (since, until): (Option<Timestamp>, Option<Timestamp>),
    page: &Page<Uuid>,
) -> Result<(Vec<Described>, String)> {
    let mut conn = store.read_in("list_resolutions", workspace).await?;
    let segment = match segment {
        Some(segment) => Some(find_segment(&mut conn, workspace, segment).await?.id),
        None => None,
    };
    let selection = Selection {
        segment,
        since,
        until,
    };
    let (before, limit) = (page.after, page.limit());
    let mut found = storage::list(&mut conn, workspace, selection, before, limit).await?;
    let next = page.cut(&mut found, |last| last.id);
    let ids: Vec<Uuid> = found.iter().map(|resolution| resolution.id).collect();
    let mut cohorts: HashMap<Uuid, Vec<CohortRead>> = HashMap::new();
    for (resolution, cohort) in storage::cohorts(&mut conn, workspace, &ids).await? {
        cohorts.entry(resolution).or_default().push(cohort);
    }
    let described = found.into_iter().map(|resolution| Described {
        cohorts: cohorts.remove(&resolution.id).unwrap_or_default(),
        resolution,
    });
    Ok((described.collect(), next))
}

/// Reads the id of a resolution.
///
/// # Errors
/// `INVALID_ARGUMENT` on `field`.
pub(crate) fn parse_id(text: &str, field: &str) -> Result<Uuid> {
    text.parse()
        .map_err(|_| Error::field("", "must be a UUID"))
        .field(field)
}

/// How often expired resolutions are looked for.
const ROUND: Duration = Duration::from_secs(60);

/// Resolutions deleted in one statement: each may be many MiB.
const BATCH: u64 = 20;

/// Deletes expired resolutions, a few at a time, until `shutdown`. Nothing depends on it but disk
/// space: an expired resolution is not found, deleted or not.
pub async fn housekeeping(store: Store, shutdown: CancellationToken) {
    let rounds = async {
        loop {
            if let Err(error) = delete_expired(&store).await {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(cause, "expired resolutions were not deleted; trying again");
            }
            tokio::time::sleep(ROUND).await;
        }
    };
    shutdown.run_until_cancelled(rounds).await;
}

async fn delete_expired(store: &Store) -> Result<()> {
    let Some(now) = store.clean_up_time().await? else {
        return Ok(());
    };
    loop {
        let limit = i64::try_from(BATCH).expect("a small number");
        let deleted = store.delete_expired_resolutions(now, limit).await?;
        if deleted > 0 {
            tracing::info!(deleted, "deleted expired resolutions");
        }
        if deleted < BATCH {
            return Ok(());
        }
    }
}
