//! Muster as a partner's HTTP client sees it.

use std::time::{Duration, Instant};

use reqwest::{Client, header::CONTENT_TYPE};
use serde_json::json;

use crate::{
    Result,
    deployment::{Deployment, PARTNER},
    muster::at_once,
};

/// Connections that call at once.
const CONNECTIONS: usize = 8;

/// Identifiers of a call: the most it may have.
const IDS_A_CALL: usize = 1_000;

/// Adds ids to a cohort, a thousand a call, over eight connections.
pub(crate) async fn ingest(
    deployment: &Deployment,
    cohort: &str,
    ids: &[String],
) -> Result<Duration> {
    // reqwest wants a provider for TLS also where there is none; one set before is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("{}/partners/{PARTNER}/cohorts/users", deployment.rest);
    let calls = ids.chunks(IDS_A_CALL).map(|ids| {
        let body = json!({
            "partner_api_key": deployment.partner_api_key,
            "client_secret": deployment.client_secret,
            "cohort_id": cohort,
            "cohort_changes": [{ "user_ids": ids }],
        });
        body.to_string()
    });
    let mut queues = vec![Vec::new(); CONNECTIONS];
    for (index, call) in calls.enumerate() {
        queues[index % CONNECTIONS].push(call);
    }
    let mut callers = Vec::new();
    for queue in queues {
        callers.push((Client::builder().build()?, queue));
    }
    let begun = Instant::now();
    let calling = callers.into_iter().map(|(client, queue)| {
        let url = url.clone();
        async move {
            for body in queue {
                let request = client.post(&url).header(CONTENT_TYPE, "application/json");
                let answer = request.body(body).send().await?;
                let status = answer.status();
                let text = answer.text().await?;
                if status != 201 {
                    return Err(format!("a call was answered with {status}: {text}").into());
                }
            }
            Ok(())
        }
    });
    at_once(calling).await?;
    Ok(begun.elapsed())
}
