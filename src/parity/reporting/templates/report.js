"use strict";
(() => {
  const root = document.documentElement;
  addEventListener("error", (event) => { root.dataset.error = event.message; });
  addEventListener("load", () => {
    root.dataset.broken = Array.from(document.images).filter((image) => !image.naturalWidth).length;
  });
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const buttons = Array.from(table.querySelectorAll("thead button"));
  const find = document.getElementById("find");
  const verdict = document.getElementById("verdict");
  const run = document.getElementById("run");
  const shown = document.getElementById("shown");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const gravity = ["ERROR", "MISMATCH", "VACUOUS", "INACCURATE", "UNDECIDED", "SKIPPED", "MATCH"];

  const apply = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const fits = words.every((word) => texts[i].includes(word))
        && (!verdict.value || (verdict.value === "failed" ? "failed" in row.dataset : row.dataset.v === verdict.value))
        && (!run || !run.value || row.dataset.run === run.value);
      row.hidden = !fits;
      count += fits;
    });
    shown.textContent = `${count} of ${rows.length} rows`;
    root.dataset.shown = count;
  };

  const value = (row, place, key) => {
    const text = row.cells[place].textContent;
    if (key === "verdict") return gravity.indexOf(text.trim());
    if (["error", "allowance", "share"].includes(key)) {
      const number = Number(text === "inf" ? Infinity : text);
      return Number.isNaN(number) ? -1 : number;
    }
    return text;
  };

  const sort = (button, descending) => {
    const head = button.closest("th");
    const place = head.cellIndex;
    const key = button.dataset.key;
    const values = new Map(rows.map((row) => [row, value(row, place, key)]));
    const order = Array.from(rows).sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      const sign = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x < y ? -1 : x > y ? 1 : 0;
      return descending ? -sign : sign;
    });
    body.append(...order);
    buttons.forEach((other) => other.closest("th").setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  // What is filtered and sorted stands in the address, so that a view can be passed on.
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("find")) find.value = asked.get("find");
    if (asked.has("verdict")) verdict.value = asked.get("verdict");
    if (run && asked.has("run")) run.value = asked.get("run");
    const key = (asked.get("sort") || "").replace(/^-/, "");
    const button = buttons.find((item) => item.dataset.key === key);
    if (button) sort(button, asked.get("sort").startsWith("-"));
    apply();
  };
  const write = (sorted) => {
    const asked = new URLSearchParams();
    if (find.value) asked.set("find", find.value);
    if (verdict.value) asked.set("verdict", verdict.value);
    if (run && run.value) asked.set("run", run.value);
    const head = table.querySelector("th[aria-sort$=ending]");
    if (head) asked.set("sort", (head.getAttribute("aria-sort") === "descending" ? "-" : "") + head.firstElementChild.dataset.key);
    const text = asked.toString();
    try { history.replaceState(null, "", text ? `#${text}` : "#"); } catch { /* a page in a frame may not */ }
  };

  [find, verdict, run].forEach((control) => {
    if (control) control.addEventListener("input", () => { apply(); write(); });
  });
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  buttons.forEach((button) => {
    button.addEventListener("click", () => {
      const numeric = ["error", "allowance", "share"].includes(button.dataset.key);
      const state = button.closest("th").getAttribute("aria-sort");
      sort(button, state === "none" ? numeric : state === "ascending");
      write();
    });
  });
  addEventListener("hashchange", read);
  read();
  root.dataset.ready = rows.length;
})();
