// Days in forms are days of the reader's zone: <input data-zone-of="on"> gets the minutes that it is
// behind UTC on the day chosen. Without this script, days are those of UTC, and the label says so.
"use strict";
(() => {
  for (const zone of document.querySelectorAll("[data-zone-of]")) {
    const day = document.getElementById(zone.dataset.zoneOf);
    const set = () => {
      const noon = day.value ? new Date(`${day.value}T12:00`) : new Date();
      zone.value = String(noon.getTimezoneOffset());
    };
    day.addEventListener("input", set);
    set();
  }
  for (const note of document.querySelectorAll("[data-zone-note]")) note.hidden = true;
})();
