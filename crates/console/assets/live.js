// Keeps parts of a page up to date: <div id="x" data-live="2"> is asked for again every 2 seconds,
// for as long as the page that comes back says so. Only the parts with data-live are replaced, and
// only where they differ.
"use strict";
(() => {
  const seconds = () => {
    const all = [...document.querySelectorAll("[data-live]")].map((part) => Number(part.dataset.live));
    return Math.min(...all.filter((wait) => wait > 0));
  };
  const refresh = async () => {
    const answer = await fetch(location.href, { headers: { "x-muster-live": "1" }, cache: "no-store" });
    if (answer.redirected) return location.reload();
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    let changed = false;
    for (const old of document.querySelectorAll("[data-live]")) {
      const part = fresh.getElementById(old.id);
      // Nobody wants the field or button they are in taken away.
      if (!part || part.isEqualNode(old.pristine ?? old) || old.contains(document.activeElement)) continue;
      const pristine = part.cloneNode(true);
      old.replaceWith(part);
      part.pristine = pristine;
      changed = true;
    }
    if (changed) document.dispatchEvent(new Event("muster:changed"));
  };
  const wait = () => {
    const pause = seconds();
    if (!Number.isFinite(pause)) return;
    setTimeout(async () => {
      if (!document.hidden) await refresh().catch(() => {});
      wait();
    }, pause * 1000);
  };
  for (const part of document.querySelectorAll("[data-live]")) part.pristine = part.cloneNode(true);
  wait();
})();
