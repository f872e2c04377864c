// Writes every <time> in the reader's zone; its title keeps the exact instant in UTC.
"use strict";
(() => {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const localise = () => {
    for (const element of document.querySelectorAll("time[datetime]")) {
      const instant = new Date(element.dateTime);
      if (!Number.isNaN(instant.getTime())) element.textContent = format.format(instant);
    }
  };
  document.addEventListener("muster:changed", localise);
  localise();
})();
