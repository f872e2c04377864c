// The segment builder counts while one builds: after each change the form goes to the server, and
// the parts of the page that came back take the place of those that are there. Without this script
// the buttons do the same.
"use strict";
(() => {
  const form = document.getElementById("builder");
  if (!form) return;
  let timer;
  let running;
  const replace = (fresh, sent) => {
    for (const old of document.querySelectorAll("[data-part]")) {
      const part = old.isConnected && fresh.getElementById(old.id);
      if (!part || part.innerHTML === old.innerHTML) continue;
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      // Nobody wants the field they type in taken away; the parts inside are looked at on their own.
      if (focused && old.dataset.part === "unless-focused") continue;
      old.replaceChildren(...part.cloneNode(true).childNodes);
      if (focused?.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
    }
    // A text that was understood is no news: the next change of a group shall not be undone by it.
    if (!fresh.getElementById("text-error").textContent) form.elements.text_shown.value = shown(fresh, sent);
    document.dispatchEvent(new Event("muster:changed"));
  };
  const shown = (fresh, sent) => {
    const theirs = fresh.querySelector("[name=text_shown]").value;
    return form.elements.text.value === theirs ? theirs : sent;
  };
  const preview = async () => {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    const body = new URLSearchParams(new FormData(form));
    body.set("do", "preview");
    form.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(location.href, { method: "POST", body, signal, cache: "no-store" });
      if (answer.redirected) return location.reload();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (fresh.getElementById("builder")) replace(fresh, body.get("text"));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      if (running.signal === signal) form.removeAttribute("aria-busy");
    }
  };
  form.addEventListener("input", (event) => {
    if (event.target.name === "name") return;
    clearTimeout(timer);
    timer = setTimeout(preview, event.target.matches("input[type=checkbox], select") ? 0 : 250);
  });
  form.addEventListener("submit", () => {
    clearTimeout(timer);
    running?.abort();
  });
})();
