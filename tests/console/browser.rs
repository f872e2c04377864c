//! A Chromium of its own, driven over WebDriver.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    By, ChromiumLikeCapabilities as _, DesiredCapabilities, Key, TypingData, WebDriver, WebElement,
    components::SelectElement,
};

use crate::Stage;

/// Widths at which every page is looked at: a small telephone and a desk.
const WIDTHS: [u32; 2] = [360, 1440];

/// Height of the window, and the most of a page that is in a picture.
const HEIGHT: u64 = 900;
const MOST_HEIGHT: u64 = 4_000;

/// How long the browser may take to show what is expected.
const PATIENCE: Duration = Duration::from_secs(30);

/// The accessibility checker, as `scripts/setup test` fetches it.
const AXE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/axe/node_modules/axe-core/axe.min.js"
);

const SCREENSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/console-screenshots");

pub(crate) struct Browser {
    driver: WebDriver,
    _chromedriver: Chromedriver,
    axe: String,
    _profile: TempDir,
}

/// Ends with whoever holds it, also where that panics.
struct Chromedriver(Child);

impl Drop for Chromedriver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let axe = fs::read_to_string(AXE).expect("`scripts/setup test` fetched axe-core");
        fs::create_dir_all(SCREENSHOTS).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let chromedriver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`scripts/setup test` installed chromium-driver");
        let chromedriver = Chromedriver(chromedriver);
        let profile = tempfile::tempdir().unwrap();
        let mut wishes = DesiredCapabilities::chrome();
        for argument in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
        ] {
            wishes.add_arg(argument).unwrap();
        }
        let directory = profile.path().display();
        wishes
            .add_arg(&format!("--user-data-dir={directory}"))
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let driver = loop {
            match WebDriver::new(&url, wishes.clone()).await {
                Ok(driver) => break driver,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        Self {
            driver,
            _chromedriver: chromedriver,
            axe,
            _profile: profile,
        }
    }

    pub(crate) async fn stop(self) {
        self.driver.clone().quit().await.unwrap();
    }

    /// Forgets all cookies, and whatever a journey that broke has left behind.
    pub(crate) async fn forget(&self) {
        self.allow_scripts(true).await;
        let tools = self.driver.cdp();
        let forget = tools.send_raw("Network.clearBrowserCookies", json!({}));
        forget.await.unwrap();
    }

    /// Name and value of every cookie, also of those that scripts do not see.
    pub(crate) async fn cookies(&self) -> Vec<(String, String)> {
        let all = self.driver.get_all_cookies().await.unwrap().into_iter();
        all.map(|cookie| (cookie.name, cookie.value)).collect()
    }

    pub(crate) async fn go(&self, url: &str) {
        self.driver.goto(url).await.unwrap();
    }

    pub(crate) async fn url(&self) -> String {
        self.driver.current_url().await.unwrap().to_string()
    }

    pub(crate) async fn reload(&self) {
        self.driver.refresh().await.unwrap();
    }

    /// The page as a person reads it.
    pub(crate) async fn text(&self) -> String {
        let body = self.driver.find(By::Tag("body")).await.unwrap();
        body.text().await.unwrap()
    }

    pub(crate) async fn source(&self) -> String {
        self.driver.source().await.unwrap()
    }

    /// Waits until the page says something.
    pub(crate) async fn until_it_says(&self, words: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let body = self.driver.find(By::Tag("body")).await;
            let text = match body {
                Ok(body) => body.text().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            if text.contains(words) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "no {words:?} in {text}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn find(&self, css: &str) -> WebElement {
        let found = self.driver.find(By::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub(crate) async fn write(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses a button or follows a link by the words on it.
    pub(crate) async fn press(&self, words: &str) {
        let xpath = format!(
            "//main//*[self::a or self::button or self::summary][not(@class='hidden')]\
             [contains(normalize-space(.), '{words}')]\
             | //header//*[self::a or self::button][contains(normalize-space(.), '{words}')]"
        );
        let found = self.driver.find(By::XPath(xpath)).await;
        let found = found.unwrap_or_else(|error| panic!("{words}: {error}"));
        found.click().await.unwrap();
    }

    /// Follows the link, or presses the button, that a path names.
    pub(crate) async fn follow(&self, xpath: &str) {
        let found = self.driver.find(By::XPath(xpath)).await;
        let found = found.unwrap_or_else(|error| panic!("{xpath}: {error}"));
        found.click().await.unwrap();
    }

    /// Whether there is what a path names.
    pub(crate) async fn has(&self, xpath: &str) -> bool {
        let found = self.driver.find_all(By::XPath(xpath)).await;
        !found.unwrap().is_empty()
    }

    /// Chooses from a list by the words of an option.
    pub(crate) async fn choose(&self, css: &str, words: &str) {
        let list = SelectElement::new(&self.find(css).await).await.unwrap();
        list.select_by_visible_text(words).await.unwrap();
    }

    /// Puts the focus on something, as if somebody was about to press it.
    pub(crate) async fn focus(&self, css: &str) {
        let focus = format!("document.querySelector({}).focus()", json!(css));
        self.script(&focus).await;
    }

    pub(crate) async fn script(&self, script: &str) -> Value {
        let done = self.driver.execute(script, Vec::new()).await.unwrap();
        done.json().clone()
    }

    /// Looks at the whole page in both widths and colour schemes, keeps pictures, and lets axe check
    /// it, once in either width and either scheme.
    pub(crate) async fn look(&self, name: &str) {
        self.driver.execute(&self.axe, Vec::new()).await.unwrap();
        for width in WIDTHS {
            self.resize(width, HEIGHT).await;
            let wider = "return document.documentElement.scrollWidth - innerWidth";
            let wider = self.script(wider).await;
            assert!(
                wider.as_i64().unwrap() <= 0,
                "{name} is {wider} px too wide at {width}"
            );
            let height = "return document.documentElement.scrollHeight";
            let height = self.script(height).await.as_u64().unwrap();
            self.resize(width, height.clamp(HEIGHT, MOST_HEIGHT)).await;
            for scheme in ["light", "dark"] {
                let media =
                    json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
                self.tool("Emulation.setEmulatedMedia", media).await;
                let path = PathBuf::from(SCREENSHOTS).join(format!("{name}-{width}-{scheme}.png"));
                self.driver.screenshot(&path).await.unwrap();
                if (scheme == "dark") == (width == WIDTHS[0]) {
                    self.check(&format!("{name} at {width} px, {scheme}")).await;
                }
            }
        }
        self.resize(WIDTHS[1], HEIGHT).await;
    }

    async fn resize(&self, width: u32, height: u64) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.tool("Emulation.setDeviceMetricsOverride", size).await;
    }

    async fn tool(&self, command: &str, wishes: Value) {
        let tools = self.driver.cdp();
        tools.send_raw(command, wishes).await.unwrap();
    }

    /// Whether pages may run scripts from now on.
    pub(crate) async fn allow_scripts(&self, allowed: bool) {
        let wish = json!({ "value": !allowed });
        self.tool("Emulation.setScriptExecutionDisabled", wish)
            .await;
    }

    /// Types keys to whatever has the focus.
    pub(crate) async fn keys(&self, keys: impl Into<TypingData>) {
        let chain = self.driver.action_chain();
        chain.send_keys(keys).perform().await.unwrap();
    }

    /// Goes on with the Tab key until what a selector names has the focus.
    pub(crate) async fn tab_to(&self, css: &str) {
        let there = format!("return document.activeElement.matches({})", json!(css));
        for _ in 0..80 {
            if self.script(&there).await == true {
                return;
            }
            self.keys(Key::Tab).await;
        }
        panic!("the Tab key does not lead to {css}");
    }

    async fn check(&self, page: &str) {
        let script = "const done = arguments[0];
            const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
            axe.run(document, { runOnly: { type: 'tag', values: tags } }).then((result) => done(
                result.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html).join(' '))));";
        let found = self.driver.execute_async(script, Vec::new()).await.unwrap();
        assert_eq!(found.json(), &json!([]), "{page}");
    }
}

impl Stage {
    /// Signs in as the operator and ends at a path.
    pub(crate) async fn sign_in(&self, path: &str) {
        let url = format!("{}{path}", self.muster.console);
        self.browser.go(&url).await;
        self.browser
            .write("#token", &self.muster.operator_token)
            .await;
        self.browser.press("Sign in").await;
        self.browser.until_it_says("Sign out").await;
    }
}
