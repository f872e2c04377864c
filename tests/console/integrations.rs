//! The page of a partner.

use muster_proto::keys::v1::{CreatePartnerRequest, EnablePartnerRequest};

use crate::Stage;

pub(crate) async fn a_key_is_generated_shown_once_and_invalidated(stage: &Stage) {
    let browser = &stage.browser;
    stage.sign_in("/w/shop/integrations").await;
    browser.look("integrations").await;
    browser.press("tinyclues").await;
    browser.until_it_says("REST endpoint").await;
    browser.look("integration").await;
    // What a person calls it is shown as it is, whatever it looks like.
    let label = "<b>spring</b> & \"co\"";
    browser.write("#label", label).await;
    browser.press("Generate a key").await;
    browser.until_it_says("shown once and kept nowhere").await;
    browser.look("key-secret").await;
    let secret = browser.find("#secret").await.text().await.unwrap();
    assert!(secret.starts_with("mst_dik_"));
    assert!(!browser.url().await.contains(&secret));
    browser.reload().await;
    assert!(
        !browser.source().await.contains(&secret),
        "it is shown once"
    );
    browser.press("To the keys").await;
    browser.until_it_says(label).await;
    browser.press(&format!("Invalidate {}", "<b>spring")).await;
    browser.until_it_says("This cannot be undone").await;
    assert!(
        browser.text().await.contains("never"),
        "it says when it was last used"
    );
    browser.look("key-invalidate").await;
    browser.press("Invalidate the key").await;
    browser
        .until_it_says("nothing sent with it is published any more")
        .await;
}

pub(crate) async fn the_page_notices_the_first_call_by_itself(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    stage.sign_in("/w/shop/integrations/tinyclues").await;
    browser.until_it_says("Waiting for the first call").await;
    let rest = muster.rest();
    let change = serde_json::json!([{ "user_ids": ["nobody"] }]);
    rest.change("spring sale", change).await;
    browser.until_it_says("The last upload arrived").await;
    // A partner that is not enabled says so, and is enabled from its page.
    let partner = CreatePartnerRequest {
        partner: "other".into(),
        display_name: "שלום partner with quite a long name indeed".into(),
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    integrations.create_partner(partner).await.unwrap();
    browser
        .go(&format!("{}/w/shop/integrations/other", muster.console))
        .await;
    browser.look("integration-not-enabled").await;
    browser.press("Enable").await;
    browser.until_it_says("may now push cohorts").await;
    let enable = EnablePartnerRequest {
        workspace: "shop".into(),
        partner: "other".into(),
        request_id: String::new(),
    };
    integrations.enable_partner(enable).await.unwrap();
}
