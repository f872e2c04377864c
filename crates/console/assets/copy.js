// Buttons that copy the text of another element: <button data-copy="id" hidden>. Without this script
// they stay hidden, and the text can be selected.
"use strict";
(() => {
  const reveal = () => {
    for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const said = button.dataset.said ?? button.textContent;
    button.dataset.said = said;
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: copy it";
    }
    setTimeout(() => { button.textContent = said; }, 2000);
  });
  document.addEventListener("muster:changed", reveal);
  reveal();
})();
