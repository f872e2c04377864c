//! What can be said without a server behind: everything up to the first question over gRPC. The
//! answers of real servers are tested by the journeys.

use std::num::NonZeroU32;

use axum::body::to_bytes;
use bytes::Bytes;
use futures::StreamExt as _;
use muster_domain::credential::{Kind, Secret};
use tower::ServiceExt;

use super::*;

/// Settings whose servers nobody runs.
fn settings() -> RestSettings {
    // Port 9 is "discard"; nobody listens there on a machine that runs tests.
    RestSettings::new(Connection::new("http://127.0.0.1:9", None).unwrap())
}

fn request(method: &str, path: &str, body: impl Into<HttpBody>) -> Request {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, "application/json; charset=utf-8")
        .body(body.into())
        .unwrap()
}

async fn answer(router: &Router, request: Request) -> (u16, String, HeaderMap) {
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    for name in [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ] {
        let value = headers.get(name).and_then(|v| v.to_str().ok()).unwrap();
        assert!(value.parse::<u64>().is_ok(), "{name}: {value}");
    }
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    (
        status,
        body["message"].as_str().unwrap().to_owned(),
        headers,
    )
}

fn signed(fields: Value) -> String {
    let mut body = fields;
    let secret = |kind| Secret::generate(kind).unwrap().expose().to_owned();
    body["partner_api_key"] = secret(Kind::PartnerApiKey).into();
    body["client_secret"] = secret(Kind::DataImportKey).into();
    body.to_string()
}

const USERS: &str = "/partners/tinyclues/cohorts/users";

#[tokio::test]
async fn what_is_not_the_contract_is_told_in_json() {
    let router = router(settings());
    for (method, path, status) in [
        ("POST", "/", 404),
        ("POST", "/partners/tinyclues", 404),
        ("POST", "/partners/tinyclues/cohorts/", 404),
        ("POST", "/partners/%ff/cohorts", 404),
        ("GET", "/partners/tinyclues/cohorts", 405),
        ("PUT", USERS, 405),
    ] {
        let (got, _, headers) = answer(&router, request(method, path, "")).await;
        assert_eq!(got, status, "{method} {path}");
        assert_eq!(headers.contains_key("allow"), status == 405);
    }
    let mut form = request("POST", USERS, "a=b");
    let value = "application/x-www-form-urlencoded".parse().unwrap();
    form.headers_mut().insert(CONTENT_TYPE, value);
    assert_eq!(answer(&router, form).await.0, 415);
    assert_eq!(answer(&router, request("POST", USERS, "{")).await.0, 400);
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    assert_eq!(answer(&router, request("POST", USERS, large)).await.0, 413);
}

#[tokio::test]
async fn the_media_type_may_be_missing() {
    let mut bare = request("POST", USERS, "{}");
    bare.headers_mut().remove(CONTENT_TYPE);
    let (status, message, _) = answer(&router(settings()), bare).await;
    assert_eq!((status, message.as_str()), (401, "Invalid Partner API key"));
}

#[tokio::test]
async fn bad_credentials_come_before_bad_fields_and_are_not_repeated() {
    let router = router(settings());
    let key = Secret::generate(Kind::PartnerApiKey).unwrap();
    for (body, message) in [
        (json!({}), "Invalid Partner API key"),
        (
            json!({ "partner_api_key": "hunter2" }),
            "Invalid Partner API key",
        ),
        (
            json!({ "partner_api_key": key.expose() }),
            "Invalid client secret",
        ),
        (
            json!({ "partner_api_key": key.expose(), "client_secret": "hunter2" }),
            "Invalid client secret",
        ),
    ] {
        for path in ["/partners/tinyclues/cohorts", USERS] {
            let got = answer(&router, request("POST", path, body.to_string())).await;
            assert_eq!((got.0, got.1.as_str()), (401, message));
        }
    }
}

#[tokio::test]
async fn a_partner_that_cannot_exist_is_like_one_that_does_not() {
    let path = "/partners/Tiny%20Clues/cohorts";
    let (status, message, _) = answer(
        &router(settings()),
        request("POST", path, signed(json!({}))),
    )
    .await;
    assert_eq!((status, message.as_str()), (401, "Invalid Partner API key"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_408() {
    let never_ends = futures::stream::pending::<Result<Bytes, std::convert::Infallible>>();
    let call = request("POST", USERS, HttpBody::from_stream(never_ends));
    let (status, _, _) = answer(&router(settings()), call).await;
    assert_eq!(status, 408);
}

#[tokio::test(start_paused = true)]
async fn bodies_take_no_more_memory_than_they_may() {
    let router = router(RestSettings {
        body_memory: 3_000,
        ..settings()
    });
    let begin = || {
        futures::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(vec![
            b' ';
            1_000
        ]))])
    };
    let calls = (0..4).map(|_| {
        let goes_on = begin().chain(futures::stream::pending());
        let call = request("POST", USERS, HttpBody::from_stream(goes_on));
        let router = router.clone();
        async move { answer(&router, call).await.0 }
    });
    let mut statuses = futures::future::join_all(calls).await;
    statuses.sort_unstable();
    // One found no room, the others were waited for.
    assert_eq!(statuses, [408, 408, 408, 503]);
    // What they held is free again.
    let whole = request("POST", USERS, HttpBody::from_stream(begin()));
    assert_eq!(answer(&router, whole).await.0, 400);
}

#[tokio::test]
async fn without_servers_every_signed_call_is_503() {
    let router = router(settings());
    for fields in [
        json!({ "cohort_id": "c", "cohort_changes": [{ "user_ids": ["u"] }] }),
        json!({ "cohort_id": "c", "cohort_changes": [] }),
        // Nobody can say whether the caller may be told what is wrong with it.
        json!({ "cohort_id": 7 }),
    ] {
        let (status, _, headers) = answer(&router, request("POST", USERS, signed(fields))).await;
        assert_eq!(status, 503);
        assert!(headers.contains_key("retry-after"));
        assert_eq!(headers["x-ratelimit-remaining"], "249999");
    }
}

#[tokio::test]
async fn a_key_without_calls_left_is_429() {
    let mut settings = settings();
    settings.requests_per_hour = NonZeroU32::new(1).unwrap();
    let router = router(settings);
    let body = signed(json!({ "cohort_id": "c", "cohort_changes": [] }));
    assert_eq!(
        answer(&router, request("POST", USERS, body.clone()))
            .await
            .0,
        503
    );
    let (status, _, headers) = answer(&router, request("POST", USERS, body)).await;
    assert_eq!(status, 429);
    assert_eq!(headers["x-ratelimit-remaining"], "0");
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_panic_is_a_500_with_an_id() {
    async fn defect() -> StatusCode {
        panic!("client_secret hunter2")
    }
    let router = Router::new()
        .route("/panic", post(defect))
        .layer(CatchPanicLayer::custom(after_panic));
    let response = router.oneshot(request("POST", "/panic", "")).await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(
        body.contains("request id") && !body.contains("hunter2"),
        "{body}"
    );
}
