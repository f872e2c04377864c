use std::collections::HashMap;

use axum::body::to_bytes;
use muster_domain::error::FieldViolation;

use super::*;

fn refusal(code: Code, reason: &str) -> Refusal {
    Refusal {
        code,
        reason: reason.to_owned(),
        message: "what the server says".to_owned(),
        fields: Vec::new(),
        metadata: HashMap::new(),
        request_id: String::new(),
        retry_after: None,
        connection_lost: false,
    }
}

async fn answer(refusal: &Refusal) -> (u16, Option<String>, String) {
    let response = Problem::from_refusal(refusal).into_response();
    let status = response.status().as_u16();
    let wait = response.headers().get(RETRY_AFTER);
    let wait = wait.map(|w| w.to_str().unwrap().to_owned());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    (status, wait, body["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn every_refusal_has_the_status_and_message_of_the_contract() {
    for (code, reason, status, message) in [
        (
            Code::Unauthenticated,
            "PARTNER_API_KEY_INVALID",
            401,
            "Invalid Partner API key",
        ),
        (
            Code::Unauthenticated,
            "CREDENTIAL_INVALID",
            401,
            "Invalid client secret",
        ),
        (Code::Unauthenticated, "", 401, "Invalid client secret"),
        (
            Code::PermissionDenied,
            "SCOPE_MISSING",
            401,
            "Invalid client secret",
        ),
        (
            Code::PermissionDenied,
            "PARTNER_NOT_ENABLED",
            401,
            "Partner not enabled for client",
        ),
        (
            Code::Unauthenticated,
            "PARTNER_NOT_ENABLED",
            401,
            "Partner not enabled for client",
        ),
        (Code::Aborted, "COHORT_LOCKED", 423, "Resource locked"),
        (
            Code::FailedPrecondition,
            "COHORT_LOCKED",
            423,
            "Resource locked",
        ),
        (
            Code::FailedPrecondition,
            "COHORT_ARCHIVED",
            400,
            "The cohort is archived and takes no more changes",
        ),
        (
            Code::InvalidArgument,
            "INVALID_FIELD",
            400,
            "what the server says",
        ),
        (
            Code::ResourceExhausted,
            "RATE",
            429,
            "Too many requests: try again later",
        ),
    ] {
        let (got, _, text) = answer(&refusal(code, reason)).await;
        assert_eq!((got, text.as_str()), (status, message), "{code:?} {reason}");
    }
}

#[tokio::test]
async fn what_may_pass_is_503_with_a_time_to_wait() {
    for code in [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Unknown,
        Code::Aborted,
    ] {
        let (status, wait, _) = answer(&refusal(code, "")).await;
        assert_eq!((status, wait.as_deref()), (503, Some("2")), "{code:?}");
    }
    let mut slow = refusal(Code::Unavailable, "");
    slow.retry_after = Some(Duration::from_millis(6_001));
    assert_eq!(answer(&slow).await.1.as_deref(), Some("7"));
}

#[tokio::test]
async fn a_defect_is_500_and_says_only_its_id() {
    for code in [
        Code::Internal,
        Code::NotFound,
        Code::Unimplemented,
        Code::OutOfRange,
    ] {
        let (status, _, text) = answer(&refusal(code, "")).await;
        assert_eq!(status, 500);
        assert!(text.starts_with("Internal error; request id "), "{text}");
    }
}

#[tokio::test]
async fn an_invalid_argument_names_its_field() {
    let mut invalid = refusal(Code::InvalidArgument, "INVALID_FIELD");
    invalid.fields.push(FieldViolation {
        field: "cohort_id".to_owned(),
        description: "must not be empty".to_owned(),
    });
    assert_eq!(answer(&invalid).await.2, "`cohort_id` must not be empty");
}

/// Clients retry 408, 423, 429 and 5xx other than 501, and drop every other 4xx.
#[test]
fn contention_is_never_a_conflict() {
    let conflict = |code, reason| {
        let status = Problem::from_refusal(&refusal(code, reason)).status();
        status == StatusCode::CONFLICT || status == StatusCode::NOT_IMPLEMENTED
    };
    for code in (0..=16).map(Code::from_i32) {
        for reason in ["", "COHORT_LOCKED", "ANYTHING"] {
            assert!(!conflict(code, reason), "{code:?} {reason}");
        }
    }
}
