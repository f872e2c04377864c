//! The console in a real browser: each journey is a function whose name is the guarantee.
//!
//! One deployment and one browser serve all of them, one after the other; before each the browser
//! forgets its cookies. Screenshots of every page, in both widths and both colour schemes, are in
//! `target/console-screenshots`.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a broken guarantee is told"
)]

mod browser;
mod cohorts;
mod exports;
mod home;
mod integrations;
mod segments;
mod sessions;

use std::process::ExitCode;

use browser::Browser;
use futures::FutureExt as _;
use muster_tests::Muster;

/// What a journey has at hand.
struct Stage {
    muster: Muster,
    browser: Browser,
}

macro_rules! journeys {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// Runs the journeys whose names contain one of the words; says how many were broken.
        async fn run(stage: &Stage, words: &[String]) -> usize {
            let mut broken = 0;
            $({
                let name = concat!(stringify!($module), "::", stringify!($name));
                if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
                    stage.browser.forget().await;
                    let journey = std::panic::AssertUnwindSafe($module::$name(stage));
                    let began = std::time::Instant::now();
                    let ended = journey.catch_unwind().await;
                    let how = if ended.is_ok() { "ok    " } else { "BROKEN" };
                    println!("{how} {:5.1} s {name}", began.elapsed().as_secs_f32());
                    broken += usize::from(ended.is_err());
                }
            })*
            broken
        }
    };
}

journeys![
    sessions::a_token_opens_a_session_and_signing_out_ends_it_on_the_server,
    sessions::a_wrong_token_is_told_beside_the_field_and_not_repeated,
    sessions::every_answer_forbids_inline_code_frames_and_keeping,
    sessions::a_form_without_the_signature_of_the_session_changes_nothing,
    integrations::a_key_is_generated_shown_once_and_invalidated,
    integrations::the_page_notices_the_first_call_by_itself,
    cohorts::an_export_arrives_and_is_found_by_the_name_of_its_file,
    cohorts::who_did_not_match_is_counted_listed_and_downloaded,
    cohorts::a_running_import_is_seen_growing_until_it_is_published,
    cohorts::a_held_replacement_is_confirmed_or_aborted,
    cohorts::ten_thousand_cohorts_are_searched_sorted_and_paged,
    cohorts::a_cohort_is_archived_once_no_segment_uses_it,
    segments::a_segment_is_built_by_keyboard_with_live_counts,
    segments::a_segment_is_built_without_scripts,
    segments::who_was_targeted_is_compared_downloaded_and_explained,
    home::it_says_what_waits_what_came_in_and_what_fails,
    home::what_the_token_may_not_see_is_said_in_its_place,
    home::servers_out_of_reach_are_said_so_and_end_no_session,
];

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    // The driver's client insists on one, although it speaks to the own machine only.
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().unwrap();
    let stage = Stage {
        muster: Muster::start().await,
        browser: Browser::start().await,
    };
    exports::prepare(&stage.muster).await;
    let broken = run(&stage, &words).await;
    stage.browser.stop().await;
    stage.muster.stop().await;
    ExitCode::from(u8::from(broken > 0))
}
