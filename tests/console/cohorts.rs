//! The cohorts and their imports.

use std::time::{Duration, Instant};

use muster_client::upload::Outcome;
use muster_domain::{
    identifier::IdentifierRef,
    import::{Effect, ImportDigest},
};
use muster_proto::{
    ingest::v1::{
        ChangeEffect, CohortChange, CommitImport, IdentifierBatch, ImportMode, IngestCohortRequest,
        OpenImport, ingest_cohort_request::Message, ingest_cohort_response,
    },
    keys::v1::CreateWorkspaceRequest,
    segments::v1::CreateSegmentRequest,
};
use muster_tests::{PARTNER, WORKSPACE, text};
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Stage,
    exports::{export, replace, users},
    sessions::{client, cookie},
};

/// Markup, quotes, a formula, text from right to left, and something very long: whatever a partner
/// sends is text.
const MARKUP: &str = "<script>document.title='taken'</script>\"'&amp;";
const RIGHT_TO_LEFT: &str = "קמפיין אביב של החנות הגדולה";

pub(crate) async fn an_export_arrives_and_is_found_by_the_name_of_its_file(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    stage.sign_in("/w/calm/cohorts").await;
    browser.until_it_says("No cohort has come yet").await;
    browser.look("cohorts-empty").await;
    // It comes while the list is open.
    browser
        .go(&format!("{}/w/shop/cohorts", muster.console))
        .await;
    browser.until_it_says("Cohorts").await;
    let ids = json!({ "user_ids": users(1..=300) });
    export(muster, "c-77", "2026 spring sale, women.csv", ids).await;
    browser.until_it_says("2026 spring sale, women.csv").await;
    // And is found by that name also after it was renamed.
    muster.rest().name("c-77", "early summer.csv").await;
    let long = format!(
        "{} {RIGHT_TO_LEFT}",
        "a-very-long-name-without-a-break-".repeat(6)
    );
    export(
        muster,
        "../<b>&\"",
        MARKUP,
        json!({ "user_ids": users(1..=20) }),
    )
    .await;
    export(
        muster,
        "c-79",
        RIGHT_TO_LEFT,
        json!({ "user_ids": users(5..=90) }),
    )
    .await;
    export(
        muster,
        "c-80",
        &long,
        json!({ "user_ids": ["nobody", "=1+1"] }),
    )
    .await;
    browser.reload().await;
    browser.until_it_says(MARKUP).await;
    browser.look("cohorts").await;
    assert_eq!(
        browser
            .script("return document.querySelectorAll('main script, main b').length")
            .await,
        0
    );
    browser.write("#search", "SPRING SALE, w").await;
    browser.press("Search").await;
    browser
        .until_it_says("formerly 2026 spring sale, women.csv")
        .await;
    assert!(!browser.text().await.contains(RIGHT_TO_LEFT));
    browser.press("early summer.csv").await;
    browser.until_it_says("Former names").await;
    assert!(
        browser
            .text()
            .await
            .contains("Every identifier matched somebody")
    );
    // An id that is no part of a path leads to its cohort all the same.
    browser
        .go(&format!("{}/w/shop/cohorts?search=%3Cb%3E", muster.console))
        .await;
    browser.press("document.title").await;
    browser.until_it_says("../<b>&\"").await;
    browser.look("cohort-markup").await;
    browser
        .go(&format!(
            "{}/w/shop/cohorts?search=there+is+none",
            muster.console
        ))
        .await;
    browser.until_it_says("No cohort matches").await;
    let nowhere = "/w/shop/cohort?partner=tinyclues&id=nowhere";
    browser.go(&format!("{}{nowhere}", muster.console)).await;
    browser.until_it_says("There is nothing here").await;
    browser.look("cohort-not-found").await;
}

pub(crate) async fn who_did_not_match_is_counted_listed_and_downloaded(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    let mut ids = users(1..=200);
    ids.extend((0..120).map(|number| format!("stranger-{number}")));
    ids.extend([MARKUP, RIGHT_TO_LEFT, "=HYPERLINK(\"evil\")", "", "user-1"].map(str::to_owned));
    let devices: Vec<String> = (501..=510)
        .map(|number| format!("device-{number}"))
        .collect();
    let ids = json!({ "user_ids": ids, "device_ids": devices });
    export(muster, "winter", "winter coats.csv", ids).await;
    let more = json!([{ "user_ids": ["stranger-last"], "should_remove": true }]);
    muster.rest().change("winter", more).await.succeeded();
    stage.sign_in("/w/shop/cohorts?search=winter").await;
    browser.press("winter coats.csv").await;
    // An export comes in many calls; people think of it as one.
    browser
        .until_it_says("135 of 336 identifiers matched nobody")
        .await;
    browser.until_it_says("in 2 calls").await;
    browser.look("cohort").await;
    let file = browser
        .script("return document.querySelector('a[download]').href")
        .await;
    let cookie = cookie(stage).await;
    let answer = client()
        .get(file.as_str().unwrap())
        .header("cookie", &cookie);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/csv; charset=utf-8");
    let lines = answer.text().await.unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 1 + 135);
    assert_eq!(
        lines[0],
        r#""import","position","effect","reason","kind","label","id""#
    );
    assert!(lines[1].ends_with(r#","200","add","unknown","external id","","stranger-0""#));
    assert!(
        lines[123].ends_with(r#""'=HYPERLINK(""evil"")""#),
        "{}",
        lines[123]
    );
    assert!(lines[135].ends_with(r#","0","remove","unknown","external id","","stranger-last""#));
    // Without a session there is no file.
    let answer = client().get(file.as_str().unwrap()).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let second = "//main//tr[td[normalize-space(.)='134']]//a";
    browser.follow(second).await;
    browser
        .until_it_says("What became of every identifier")
        .await;
    let said = browser.text().await;
    assert!(said.contains("Device of an identified user") && said.contains("Malformed"));
    browser.press("Next page").await;
    browser.until_it_says(MARKUP).await;
    browser.until_it_says("First page").await;
    browser.look("import-rejected").await;
    assert_eq!(
        browser
            .script("return document.title.includes('taken')")
            .await,
        false
    );
}

pub(crate) async fn a_running_import_is_seen_growing_until_it_is_published(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    let (send, requests) = tokio::sync::mpsc::channel(4);
    let say = |message| IngestCohortRequest {
        message: Some(message),
    };
    let mut digest = ImportDigest::default();
    let mut batch = |offset: u64, ids: &[&str]| {
        for id in ids {
            digest.update(Effect::Add, IdentifierRef::external_id(id));
        }
        let change = CohortChange {
            effect: ChangeEffect::Add.into(),
            external_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        say(Message::Batch(IdentifierBatch {
            offset,
            changes: vec![change],
        }))
    };
    let open = say(Message::Open(OpenImport {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: "slow".into(),
        name: "slow export.csv".into(),
        mode: ImportMode::Delta.into(),
        import_id: "slow import".into(),
        ..Default::default()
    }));
    send.send(open).await.unwrap();
    send.send(batch(0, &["user-1", "user-2"])).await.unwrap();
    let mut ingest = muster.operator.ingest();
    let answers = ingest.ingest_cohort(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    stage
        .sign_in("/w/shop/import?partner=tinyclues&id=slow%20import")
        .await;
    browser.until_it_says("running").await;
    browser
        .until_it_says("Nothing of it is published before it is complete")
        .await;
    browser.look("import-running").await;
    let second = batch(2, &["user-3", "nobody-4"]);
    send.send(second).await.unwrap();
    browser.until_it_says("nobody-4").await;
    browser
        .go(&format!(
            "{}/w/shop/cohort?partner=tinyclues&id=slow",
            muster.console
        ))
        .await;
    browser.until_it_says("4 so far").await;
    let commit = CommitImport {
        total: 4,
        digest: digest.finish().to_vec().into(),
    };
    send.send(say(Message::Commit(commit))).await.unwrap();
    browser
        .until_it_says("1 of 4 identifiers matched nobody")
        .await;
    drop(send);
    let mut committed = false;
    while let Some(answer) = answers.message().await.unwrap() {
        let is_last = matches!(
            answer.message,
            Some(ingest_cohort_response::Message::Committed(_))
        );
        committed |= is_last;
    }
    assert!(committed);
}

pub(crate) async fn a_held_replacement_is_confirmed_or_aborted(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    let first = json!({ "user_ids": users(1..=250) });
    export(muster, "vip", "vip customers.csv", first).await;
    let held = |import, last| async move {
        let asked = replace(muster, "vip", import, users(1..=last)).await;
        assert!(matches!(asked, Outcome::AwaitingConfirmation { .. }));
    };
    held("too few", 40).await;
    stage.sign_in("/w/shop").await;
    browser.until_it_says("210 of 250 people would leave").await;
    browser.press("vip customers.csv").await;
    browser.until_it_says("A replacement waits for you").await;
    // A form of another page, or of another site, decides nothing.
    let cookie = cookie(stage).await;
    let forged = |path: &'static str, body: &'static str| {
        let request = client()
            .post(format!("{}{path}", muster.console))
            .header("cookie", &cookie)
            .header("sec-fetch-site", "same-origin")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        async move { assert_eq!(request.send().await.unwrap().status(), 403) }
    };
    let decision = "id=too+few&csrf=0";
    forged("/w/shop/import/confirm", decision).await;
    forged("/w/shop/import/abort", decision).await;
    let archive = "partner=tinyclues&id=vip&etag=&csrf=0";
    forged("/w/shop/cohort/archive", archive).await;
    assert_eq!(muster.cohort("vip").await.member_count, Some(250));
    browser.press("Abort it").await;
    browser.until_it_says("nothing of it is published").await;
    browser.until_it_says("aborted").await;
    assert_eq!(muster.cohort("vip").await.member_count, Some(250));
    held("fewer", 45).await;
    browser.reload().await;
    browser.until_it_says("A replacement waits for you").await;
    browser.look("cohort-waiting").await;
    // By the time somebody decides, it was decided: what they are about to press stays where it is,
    // they are told, and nothing happens.
    let abort = "//form[contains(@action, 'abort')]//button";
    let aborted = muster_proto::ingest::v1::AbortImportRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        import_id: "fewer".into(),
        request_id: String::new(),
    };
    browser.focus(".waits button.primary").await;
    muster
        .operator
        .ingest()
        .abort_import(aborted)
        .await
        .unwrap();
    browser.press("Publish it").await;
    browser.until_it_says("the import had ended by then").await;
    assert_eq!(muster.cohort("vip").await.member_count, Some(250));
    held("fewest", 50).await;
    browser
        .go(&format!(
            "{}/w/shop/cohort?partner=tinyclues&id=vip",
            muster.console
        ))
        .await;
    browser.until_it_says("A replacement waits for you").await;
    assert!(browser.has(abort).await);
    browser.press("Publish it: 200 leave").await;
    browser
        .until_it_says("published as version 2: 200 left, 0 joined")
        .await;
    assert_eq!(muster.cohort("vip").await.member_count, Some(50));
    browser.press("The same as a table").await;
    browser.look("cohort-published").await;
}

pub(crate) async fn ten_thousand_cohorts_are_searched_sorted_and_paged(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    let crowd = CreateWorkspaceRequest {
        workspace: "crowd".into(),
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    integrations.create_workspace(crowd).await.unwrap();
    let mut connection = muster.store.connection().await.unwrap();
    // As imports leave them behind, without the people.
    sqlx::raw_sql(
        "INSERT INTO cohort (workspace_id, cohort_id, partner, partner_cohort_id, name, former_names,
                             version, member_count, imported_at)
         SELECT workspace_id, gen_random_uuid(), 'tinyclues', 'c-' || n, 'campaign ' || n,
                ARRAY['draft ' || n], 20, n, now() - n * interval '1 minute'
         FROM workspace, generate_series(1, 10000) n WHERE slug = 'crowd';
         INSERT INTO cohort_version (workspace_id, cohort_id, version, import_id, member_count,
                                     added_count, removed_count, received_count, matched_count)
         SELECT workspace_id, cohort_id, v, 'i', member_count * v / 20, 0, 0, 100, 90 + v / 2
         FROM cohort JOIN workspace USING (workspace_id), generate_series(11, 20) v
         WHERE slug = 'crowd';
         ANALYZE cohort; ANALYZE cohort_version;",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    stage.sign_in("/w/crowd/cohorts").await;
    let began = Instant::now();
    for order in ["last-import", "stalest", "name", "largest", "newest"] {
        let url = format!("{}/w/crowd/cohorts?order={order}", muster.console);
        browser.go(&url).await;
        browser.until_it_says("Next page").await;
    }
    let took = began.elapsed();
    println!("       five lists of 10,000 cohorts took {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    browser.press("People").await;
    browser.until_it_says("10,000").await;
    browser.press("Next page").await;
    browser.until_it_says("campaign 9950").await;
    browser.write("#search", "draft 777").await;
    browser.press("Search").await;
    browser.until_it_says("campaign 7771").await;
    browser.look("cohorts-many").await;
}

pub(crate) async fn a_cohort_is_archived_once_no_segment_uses_it(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    export(
        muster,
        "old",
        "old news.csv",
        json!({ "user_ids": users(1..=3) }),
    )
    .await;
    let segment = CreateSegmentRequest {
        workspace: WORKSPACE.into(),
        name: "old <i>hands</i>".into(),
        filter: Some(text("tinyclues:\"old news.csv\"")),
        request_id: String::new(),
    };
    let mut segments = muster.operator.segments();
    let segment = segments.create_segment(segment).await.unwrap();
    let segment = segment.into_inner().segment.unwrap();
    stage
        .sign_in("/w/shop/cohort?partner=tinyclues&id=old")
        .await;
    browser.until_it_says("old <i>hands</i>").await;
    browser.press("Archive this cohort").await;
    browser.press("Archive “old news.csv”").await;
    browser.until_it_says("because segments use it").await;
    browser.press("old <i>hands</i>").await;
    browser.until_it_says("Who was targeted").await;
    browser.press("Archive this segment").await;
    browser.press(&format!("Archive “{}”", segment.name)).await;
    browser.until_it_says("is archived").await;
    browser
        .go(&format!(
            "{}/w/shop/cohort?partner=tinyclues&id=old",
            muster.console
        ))
        .await;
    browser.press("Archive this cohort").await;
    browser.press("Archive “old news.csv”").await;
    browser
        .until_it_says("The cohort “old news.csv” is archived")
        .await;
    browser
        .go(&format!(
            "{}/w/shop/cohorts?search=old+news",
            muster.console
        ))
        .await;
    browser.until_it_says("No cohort matches").await;
}
