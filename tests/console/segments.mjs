// Somebody builds a segment, is told what is wrong beside the field, compares and checks.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const { CONSOLE_URL, CONSOLE_TOKEN, LOYAL, DRIVER, SCREENSHOTS } = process.env;
const require = createRequire(`${DRIVER}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const problems = [];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });

async function signedIn(width, options = {}) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, ...options });
  context.setDefaultTimeout(30000);
  const page = await context.newPage();
  page.on("console", (message) => {
    // The browser says so of each 4xx; those that are meant are looked at below.
    if (message.type() === "error" && !message.text().includes("422")) problems.push(`${page.url()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`${page.url()}: ${error.message}`));
  await page.goto(`${CONSOLE_URL}/sign-in`);
  await page.fill("#token", CONSOLE_TOKEN);
  await page.click("button.primary");
  await page.waitForURL((url) => !url.pathname.startsWith("/sign-in"));
  return page;
}

/** Photographs a page, and looks for what keeps people out. */
async function look(page, name) {
  await page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });
  // Through the debugger, which the policy against scripts does not bind.
  const debug = await page.context().newCDPSession(page);
  await debug.send("Runtime.evaluate", { expression: axe });
  const { result } = await debug.send("Runtime.evaluate", {
    expression: `axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] })
      .then(({ violations }) => JSON.stringify(violations.map((it) => it.id + ": " + it.nodes.slice(0, 3).map((n) => n.target + " " + n.failureSummary).join("; "))))`,
    awaitPromise: true,
  });
  for (const violation of JSON.parse(result.value)) problems.push(`${name}: ${violation}`);
  const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (sideways > 0) problems.push(`${name}: scrolls sideways by ${sideways}`);
}

const equal = (what, found, expected) => {
  if (found !== expected) problems.push(`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(expected)}`);
};
const text = (page, selector) => page.locator(selector).first().innerText();
const counted = (page, count) =>
  page.waitForFunction((count) => document.querySelector("#count .big").textContent === count, count);
const segments = `${CONSOLE_URL}/w/shop/segments`;

try {
  const page = await signedIn(1440);
  await page.goto(`${segments}/new`);
  await look(page, "builder-empty-1440");
  // A cohort is searched for and ticked; the count follows without a click.
  await page.fill("#g0c0-search", "spring");
  await page.locator("#g0c0 label", { hasText: "spring sale" }).first().click();
  await counted(page, "610");
  await page.fill("#g0c0-search", "");
  await page.click("text=Add a cohort filter");
  await page.selectOption("#g0c1-rule", "excludes");
  await page.fill("#g0c1-search", "churn");
  await page.locator("#g0c1 label", { hasText: "churned" }).first().click();
  await counted(page, "405");
  await page.fill("#g0c1-search", "");
  await page.click("text=Add a group");
  await page.selectOption("#g1", "any");
  await page.fill("#g1c0-search", "حملة");
  await page.locator("#g1c0 label", { hasText: "حملة" }).first().click();
  await counted(page, "250");
  equal("text", await page.inputValue("#text"),
    'tinyclues:"spring sale" and not tinyclues:"churned" and tinyclues:"حملة الربيع ٢٠٢٦"');
  equal("funnel", (await page.locator(".funnel .num").allInnerTexts()).join(" "), "2,000 610 405 250");
  equal("overlap", await page.locator(".upset .fill").count() > 2, true);
  await look(page, "builder-1440");

  // What is wrong stands beside its field, and nothing is lost.
  await page.click("text=Save as a segment");
  equal("mistake", await text(page, "#name-error"), "Give it a name.");
  await page.fill("#name", "loyal");
  await page.click("text=Save as a segment");
  equal("mistake", await text(page, "#name-error"), "Another segment has this name already.");
  await look(page, "builder-mistake-1440");
  await page.fill("#name", "Spring, not churned");
  const good = await page.inputValue("#text");
  await page.fill("#text", 'tinyclues:"no such thing"');
  await page.waitForFunction(() => document.querySelector("#count .big").textContent === "–");
  await page.locator(".result button", { hasText: "Update the count" }).click();
  equal("mistake", await text(page, "#text-error"), 'Tinyclues has no cohort named "no such thing".');
  await page.fill("#text", good);
  await counted(page, "250");
  await page.click("text=Save as a segment");
  await page.waitForURL(/segments\/[0-9a-f-]{36}$/);
  equal("saved", await text(page, ".count .big"), "250");
  const saved = page.url();

  // Somebody else changes it meanwhile.
  const other = await signedIn(1440);
  await other.goto(`${saved}/edit`);
  await page.goto(`${saved}/edit`);
  await page.fill("#name", "Spring, first");
  await page.click(".result button.primary");
  await page.waitForURL(saved);
  await other.fill("#name", "Spring, second");
  await other.click(".result button.primary");
  equal("conflict", (await text(other, "#mistakes")).startsWith("Somebody changed this segment"), true);
  await other.click(".result button.primary");
  await other.waitForURL(saved);
  equal("renamed", await text(other, "h1"), "Spring, second");

  // Who was targeted, and what changed in between.
  const loyal = `${segments}/${LOYAL}`;
  await page.goto(loyal);
  equal("resolutions", await page.locator("tbody input[name=base]").count(), 2);
  await look(page, "segment-1440");
  await page.click("text=Compare from and to");
  equal("difference", (await page.locator(".facts .big").allInnerTexts()).join(" "), "10 5 395");
  await look(page, "compare-1440");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("text=Download them as CSV")]);
  const lines = readFileSync(await download.path(), "utf8").trim().split("\r\n");
  equal("lines", lines.length, 16);
  equal("line", lines[1], '"left","0","u-0",""');
  await page.goto(`${loyal}?on=2020-01-01`);
  equal("day", await page.locator("tbody input[name=base]").count(), 0);
  await page.goto(`${loyal}/check`);
  await page.fill("#id", "u-450");
  await page.click("main button.primary");
  equal("check", (await text(page, "#answer-title")).includes("They are not in the segment"), true);
  equal("address", page.url().includes("u-450"), false);
  await look(page, "check-1440");

  // Names are text, whatever is in them.
  await page.goto(`${segments}/new?partner=tinyclues&cohort=c_4&name=x`);
  equal("markup", await text(page, "#g0c0 .option-name"), "<script>alert(1)</script>");

  for (const [width, colorScheme] of [[360, "light"], [360, "dark"], [1440, "dark"]]) {
    const narrow = await signedIn(width, { colorScheme });
    for (const [name, url] of [["segments", segments], ["segment", loyal], ["builder", `${saved}/edit`]]) {
      await narrow.goto(url);
      await look(narrow, `${name}-${colorScheme}-${width}`);
    }
  }

  // Without JavaScript the buttons do the same.
  const plain = await signedIn(1440, { javaScriptEnabled: false });
  await plain.goto(`${segments}/new`);
  await plain.fill("#g0c0-search", "churn");
  await plain.press("#g0c0-search", "Enter");
  await plain.locator("#g0c0 input[type=checkbox]").first().check();
  await plain.locator(".result button", { hasText: "Update the count" }).click();
  equal("plain count", await plain.locator("#count .big").textContent(), "405");
  await plain.click("text=Add a segment");
  await plain.selectOption("select[name=segment]", { label: "loyal" });
  await plain.fill("#name", "Nested");
  await plain.click("text=Save as a segment");
  equal("plain saved", await plain.locator(".count .big").textContent(), "0");
  await plain.goto(loyal);
  await plain.click("summary:has-text('Archive')");
  await plain.click("button.danger");
  equal("in use", (await plain.locator(".notice").textContent()).includes("“Nested”"), true);
} catch (error) {
  problems.push(String(error.stack ?? error));
} finally {
  await browser.close();
}
if (problems.length) {
  console.error(problems.join("\n"));
  process.exit(1);
}
