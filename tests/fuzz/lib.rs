//! What reads bytes of strangers, each as a function of bytes that panics where a promise breaks.
//!
//! `cargo test` runs each for a moment, on the seeds in `fuzz/seeds` and on what becomes of them when
//! they are damaged; `make fuzz` gives them to a fuzzer. A target of the same name is in
//! `fuzz/fuzz_targets`.

use muster_domain::{credential::Secret, filter::WrittenFilter, user_set};
use muster_service::{ConsistencyToken, Page};
use muster_storage::cohorts::Position;
use uuid::Uuid;

/// A target: its name, which is that of its folder of seeds, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("filter_text", filter_text),
    ("tokens", tokens),
    ("user_set", user_set),
    ("audience_file", muster_bridge::export::fuzz_file),
    ("users_csv", muster_cli::fuzzing::users_csv),
    ("rest_body", muster_bridge::rest::fuzzing::body),
];

/// A filter that can be read can be written, and is then the same filter.
///
/// # Panics
/// If it is not.
pub fn filter_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(filter) = text.parse::<WrittenFilter>() {
        let written = filter.to_string();
        // What was short may be too long once every character that can be is escaped.
        match written.parse::<WrittenFilter>() {
            Ok(again) => assert_eq!(again, filter, "{written}"),
            Err(error) => assert!(written.len() > 64 * 1024, "{written}: {error}"),
        }
    }
}

/// Secrets, and page, resume and consistency tokens: refused, or what they say.
///
/// # Panics
/// If what was read from a secret or a consistency token is written as something else.
pub fn tokens(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = Page::<Uuid>::parse(0, token);
    let _ = Page::<String>::parse(0, token);
    let _ = Page::<u64>::parse(0, token);
    let _ = Page::<i64>::parse(0, token);
    let _ = Page::<(i128, String)>::parse(0, token);
    let _ = Page::<(String, Uuid)>::parse(0, token);
    let _ = Page::<Position>::parse(0, token);
    muster_segments::fuzz_resume_token(token);
    if let Ok(secret) = Secret::parse(token) {
        assert_eq!(secret.expose(), token);
    }
    if let Ok(read) = ConsistencyToken::decode(token) {
        let again = ConsistencyToken::decode(&read.encode());
        assert_eq!(again.ok(), Some(read));
    }
}

/// A set that can be read is cut into parts that make it up again.
///
/// # Panics
/// If they do not.
pub fn user_set(bytes: &[u8]) {
    let Ok(set) = user_set::from_bytes(bytes) else {
        return;
    };
    let mut joined = user_set::UserSet::new();
    for part in user_set::split(&set) {
        match user_set::from_bytes(&part.bytes) {
            Ok(users) => joined |= users,
            Err(error) => panic!("a part that was just written: {error}"),
        }
    }
    assert_eq!(joined, set);
}
