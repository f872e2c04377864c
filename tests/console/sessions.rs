//! Signing in and out, and what keeps others out.

use crate::Stage;

pub(crate) fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    client.build().unwrap()
}

/// What the browser keeps, as a header.
pub(crate) async fn cookie(stage: &Stage) -> String {
    let cookies = stage.browser.cookies().await;
    let [(name, value)] = &cookies[..] else {
        panic!("one cookie: {cookies:?}");
    };
    format!("{name}={value}")
}

pub(crate) async fn a_token_opens_a_session_and_signing_out_ends_it_on_the_server(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    browser
        .go(&format!("{}/w/shop/integrations", muster.console))
        .await;
    browser.look("sign-in").await;
    browser.write("#token", &muster.operator_token).await;
    browser.press("Sign in").await;
    browser.until_it_says("Sign out").await;
    // It went on to what was asked for, and the token is nowhere on the way.
    assert_eq!(
        browser.url().await,
        format!("{}/w/shop/integrations", muster.console)
    );
    assert!(!browser.source().await.contains(&muster.operator_token));
    // Out of reach of scripts, and sent only over safe connections to this host.
    assert_eq!(browser.script("return document.cookie").await, "");
    let cookie = cookie(stage).await;
    assert!(cookie.starts_with("__Host-muster="));
    let page = || async {
        let url = format!("{}/w/shop/integrations", muster.console);
        let request = client().get(url).header("cookie", &cookie);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(page().await, 200);
    browser.press("Sign out").await;
    browser.until_it_says("You are signed out").await;
    browser.look("signed-out").await;
    assert_eq!(
        page().await,
        303,
        "the id is worth nothing after the sign-out"
    );
    // An id from before the sign-in is not taken over.
    let before = "__Host-muster=00000000000000000000000000000000";
    let answer = client()
        .post(format!("{}/sign-in", muster.console))
        .header("cookie", before)
        .header("sec-fetch-site", "same-origin")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("token={}", muster.operator_token))
        .send()
        .await
        .unwrap();
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(set.contains("; Secure; HttpOnly; SameSite=Lax") && !set.starts_with(before));
}

pub(crate) async fn a_wrong_token_is_told_beside_the_field_and_not_repeated(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    browser.go(&format!("{}/sign-in", muster.console)).await;
    browser.write("#token", "\"><b>mst_svc_nonsense").await;
    browser.press("Sign in").await;
    browser.until_it_says("This is not a token of Muster").await;
    assert!(!browser.source().await.contains("nonsense"));
    browser.look("sign-in-refused").await;
    browser.write("#token", &muster.client_secret).await;
    browser.press("Sign in").await;
    browser.until_it_says("This is a data import key").await;
}

pub(crate) async fn every_answer_forbids_inline_code_frames_and_keeping(stage: &Stage) {
    for path in ["/sign-in", "/", "/w/shop", "/nowhere", "/assets/nothing"] {
        let url = format!("{}{path}", stage.muster.console);
        let answer = client().get(url).send().await.unwrap();
        let header = |name| answer.headers()[name].to_str().unwrap();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"));
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
    }
}

pub(crate) async fn a_form_without_the_signature_of_the_session_changes_nothing(stage: &Stage) {
    stage.sign_in("/w/shop/integrations/tinyclues").await;
    let cookie = cookie(stage).await;
    let keys = |status: u16, site: &'static str, body: String| {
        let url = format!(
            "{}/w/shop/integrations/tinyclues/keys",
            stage.muster.console
        );
        let request = client()
            .post(url)
            .header("cookie", &cookie)
            .header("sec-fetch-site", site)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        async move { assert_eq!(request.send().await.unwrap().status().as_u16(), status) }
    };
    let script = "return document.querySelector('[name=csrf]').value";
    let csrf = stage.browser.script(script).await;
    let csrf = csrf.as_str().unwrap();
    keys(403, "same-origin", "request_id=a&label=forged".to_owned()).await;
    keys(
        403,
        "same-origin",
        "request_id=a&label=forged&csrf=0".to_owned(),
    )
    .await;
    keys(
        403,
        "cross-site",
        format!("request_id=a&label=forged&csrf={csrf}"),
    )
    .await;
    stage.browser.reload().await;
    assert!(!stage.browser.text().await.contains("forged"));
    keys(
        303,
        "same-origin",
        format!("request_id=a&label=honest&csrf={csrf}"),
    )
    .await;
    stage.browser.reload().await;
    assert!(stage.browser.text().await.contains("honest"));
}
