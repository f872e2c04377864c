//! Muster as its gRPC clients see it.

use std::time::{Duration, Instant};

use futures::stream;
use muster_client::{
    Retry,
    upload::{Outcome, Upload},
};
use muster_domain::{
    identifier::{Identifier, IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest, MAX_BATCH_IDENTIFIERS, Mode},
};
use muster_proto::{
    ingest::v1::{
        self as ingest, ChangeEffect, CohortChange, CommitImport, IdentifierBatch, ImportMode,
        IngestCohortRequest, OpenImport, ingest_cohort_request, ingest_cohort_response,
    },
    segments::v1 as segments,
    users::v1::ImportUsersRequest,
};
use tokio::task::JoinSet;

use crate::{
    Result,
    deployment::{Deployment, PARTNER, WORKSPACE},
    people,
};

/// Users of a batch: two identifiers each make the largest batch there is.
const USERS_A_BATCH: u32 = 5_000;

/// Writes the users with these numbers, none of whom is known, over one stream.
pub(crate) async fn import_users(
    deployment: &Deployment,
    users: std::ops::Range<u32>,
) -> Result<Duration> {
    let end = users.end;
    let expected = u64::from(users.end - users.start);
    let batches = users.step_by(USERS_A_BATCH as usize).map(move |first| {
        let last = end.min(first.saturating_add(USERS_A_BATCH));
        ImportUsersRequest {
            workspace: WORKSPACE.to_owned(),
            users: (first..last).map(people::record).collect(),
        }
    });
    let begun = Instant::now();
    let mut client = deployment.backend.users();
    let answers = client.import_users(stream::iter(batches)).await?;
    let mut answers = answers.into_inner();
    let mut created = 0;
    while let Some(answer) = answers.message().await? {
        created += answer.counts.unwrap_or_default().created;
    }
    let took = begun.elapsed();
    check("users created", created, expected)?;
    Ok(took)
}

/// An import, cut into messages before its time is taken, as the rows of a `COPY` are.
#[derive(Debug, Clone)]
pub(crate) struct Import(Vec<IngestCohortRequest>);

impl Import {
    /// The whole list of a cohort.
    pub(crate) fn of(cohort: &str, ids: &[String]) -> Self {
        let mut digest = ImportDigest::default();
        for id in ids {
            digest.update(Effect::Add, IdentifierRef::external_id(id));
        }
        let mut messages = vec![ingest_cohort_request::Message::Open(OpenImport {
            workspace: WORKSPACE.to_owned(),
            partner: PARTNER.to_owned(),
            cohort_id: cohort.to_owned(),
            mode: ImportMode::Replace.into(),
            import_id: cohort.to_owned(),
            pipelined: true,
            ..Default::default()
        })];
        let mut offset = 0;
        for ids in ids.chunks(MAX_BATCH_IDENTIFIERS) {
            let change = CohortChange {
                effect: ChangeEffect::Add.into(),
                external_ids: ids.iter().collect(),
                ..Default::default()
            };
            messages.push(ingest_cohort_request::Message::Batch(IdentifierBatch {
                offset,
                changes: vec![change],
            }));
            offset += ids.len() as u64;
        }
        messages.push(ingest_cohort_request::Message::Commit(CommitImport {
            total: offset,
            digest: digest.finish().to_vec().into(),
        }));
        let requests = messages.into_iter().map(|message| IngestCohortRequest {
            message: Some(message),
        });
        Self(requests.collect())
    }
}

/// Sends an import, all of whose ids are known, from opening it until it is published.
pub(crate) async fn ingest(deployment: &Deployment, import: Import) -> Result<Duration> {
    let begun = Instant::now();
    let mut client = deployment.partner.ingest();
    let answers = client.ingest_cohort(stream::iter(import.0)).await?;
    let mut answers = answers.into_inner();
    let mut committed: Option<ingest::Committed> = None;
    while let Some(answer) = answers.message().await? {
        if let Some(ingest_cohort_response::Message::Committed(last)) = answer.message {
            committed = Some(last);
            break;
        }
    }
    let took = begun.elapsed();
    let committed = committed.ok_or("an import was not published")?;
    let summary = committed.summary.unwrap_or_default();
    check("ids added", summary.members_after, summary.received)?;
    Ok(took)
}

/// The same through the client library, which packs the ids into batches and digests them on the
/// way, and can resume.
pub(crate) async fn upload(
    deployment: &Deployment,
    cohort: &str,
    ids: Vec<String>,
) -> Result<Duration> {
    let expected = ids.len() as u64;
    let upload = Upload {
        retry: Retry::default(),
        ..Upload::new(WORKSPACE, PARTNER, cohort, Mode::Replace, cohort)
    };
    let source = move || {
        let ids = ids.clone().into_iter();
        Ok(ids.map(|id| Ok((Effect::Add, identifier(id)))))
    };
    let begun = Instant::now();
    let uploaded = upload.run(&deployment.partner, source, &mut |_| ()).await?;
    let took = begun.elapsed();
    match uploaded {
        Outcome::Committed { summary, .. } => {
            check("ids added", summary.members_after, expected)?;
        }
        Outcome::AwaitingConfirmation { .. } => return Err("an upload awaits somebody".into()),
    }
    Ok(took)
}

fn identifier(id: String) -> Identifier {
    Identifier {
        kind: IdentifierKind::ExternalId,
        label: String::new(),
        id,
    }
}

/// Adds people to a cohort, some of whom may be in it: one durable commit.
pub(crate) async fn add(
    deployment: &Deployment,
    cohort: &str,
    import_id: &str,
    ids: Vec<String>,
) -> Result<Duration> {
    let upload = Upload::new(WORKSPACE, PARTNER, cohort, Mode::Delta, import_id);
    let ids = ids.into_iter().map(|id| (Effect::Add, identifier(id)));
    let ids = ids.collect();
    let begun = Instant::now();
    let patience = Duration::from_secs(60);
    let added = upload.run_pipelined(&deployment.partner, ids, patience);
    let added = added.await.map_err(|refusal| refusal.message)?;
    let took = begun.elapsed();
    match added {
        Outcome::Committed { .. } => Ok(took),
        Outcome::AwaitingConfirmation { .. } => Err("an import awaits somebody".into()),
    }
}

/// Whoever is in one cohort and not in another.
pub(crate) fn difference(one: &str, other: &str) -> segments::FilterExpression {
    let text = format!("{PARTNER}:id(\"{one}\") and not {PARTNER}:id(\"{other}\")");
    segments::FilterExpression {
        form: Some(segments::filter_expression::Form::Text(text)),
    }
}

/// Counts an audience.
pub(crate) async fn count(
    deployment: &Deployment,
    filter: segments::FilterExpression,
) -> Result<(u64, Duration)> {
    let request = segments::CountSegmentRequest {
        workspace: WORKSPACE.to_owned(),
        audience: Some(segments::count_segment_request::Audience::Filter(filter)),
        ..Default::default()
    };
    let begun = Instant::now();
    let mut client = deployment.backend.segments();
    let answer = client.count_segment(request).await?;
    Ok((answer.into_inner().user_count, begun.elapsed()))
}

/// Streams an audience, user_no and external id, to its end.
pub(crate) async fn resolve(
    deployment: &Deployment,
    filter: segments::FilterExpression,
) -> Result<(u64, Duration)> {
    use segments::resolve_segment_response::Message;

    let request = segments::ResolveSegmentRequest {
        workspace: WORKSPACE.to_owned(),
        audience: Some(segments::resolve_segment_request::Audience::Filter(filter)),
        view: segments::AudienceView::ExternalId.into(),
        ..Default::default()
    };
    let begun = Instant::now();
    let mut client = deployment.backend.segments();
    let mut answers = client.resolve_segment(request).await?.into_inner();
    let mut received = 0;
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Batch(batch)) => {
                let named = batch
                    .users
                    .iter()
                    .filter(|user| !user.external_id.is_empty());
                received += named.count() as u64;
            }
            Some(Message::End(end)) => {
                let took = begun.elapsed();
                check("users of the audience", received, end.user_count)?;
                return Ok((received, took));
            }
            Some(Message::Header(_)) | None => {}
        }
    }
    Err("an audience has no end".into())
}

/// Runs so many of the same at once and waits for all of them.
pub(crate) async fn at_once<F>(tasks: impl IntoIterator<Item = F>) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut running: JoinSet<Result<()>> = tasks.into_iter().collect();
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// That a measurement measured what it should.
pub(crate) fn check(what: &str, found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found} instead of {expected}").into())
}
