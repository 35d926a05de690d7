"use strict";
document.documentElement.classList.add("scripted");

// Sorting: a click on a heading sorts by it, the next one turns the order round; what has no value stays last.
// Values that must not be ranked together, as under two attacks, are ranked apart, under a line that says of what.
const table = document.getElementById("runs");
const headings = [...table.tHead.rows[0].cells];
const body = table.tBodies[0];
const rows = [...body.rows];
const names = new Intl.Collator(undefined, { numeric: true });

function compareKeys(a, b, numeric, direction) {
  if (!numeric) return direction * names.compare(a, b);
  if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
  return direction * (a - b);
}

function rankRow(text) {
  const row = document.createElement("tr");
  const cell = document.createElement("th");
  row.className = "rank";
  cell.colSpan = headings.length;
  cell.scope = "rowgroup";
  const words = document.createElement("span");
  words.textContent = text;
  cell.append(words);
  row.append(cell);
  return row;
}

function sortBy(index) {
  const heading = headings[index];
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const numeric = heading.classList.contains("n");
  const keyed = rows.map((row) => {
    const cell = row.cells[index];
    return { row, rank: cell.dataset.r || "", key: numeric ? parseFloat(cell.dataset.v) : cell.textContent };
  });
  keyed.sort((a, b) => (!a.rank - !b.rank) || names.compare(a.rank, b.rank) || compareKeys(a.key, b.key, numeric, direction));
  const apart = "ranks" in heading.dataset;
  const placed = [];
  keyed.forEach(({ row, rank }, i) => {
    if (apart && (i === 0 || rank !== keyed[i - 1].rank)) placed.push(rankRow(rank || "no value"));
    placed.push(row);
  });
  body.replaceChildren(...placed);
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  hideEmptyRanks();
}

function hideEmptyRanks() {
  let line = null;
  for (const row of body.rows) {
    if (row.className === "rank") {
      line = row;
      line.hidden = true;
    } else if (line && !row.hidden) line.hidden = false;
  }
}

headings.forEach((heading, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(index));
  heading.append(button);
});

// Columns: those that are ticked.
document.querySelectorAll("[data-column]").forEach((box) => {
  const index = Number(box.dataset.column);
  box.addEventListener("change", () => {
    for (const row of [table.tHead.rows[0], ...rows]) row.cells[index].hidden = !box.checked;
  });
});

// Filters: a run is left out everywhere in the page, in the table, the pictures and the sections below.
const find = document.getElementById("find");
const selects = [...document.querySelectorAll("[data-filter]")];
const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
const ofRun = new Map();
document.querySelectorAll("[data-run]").forEach((element) => {
  ofRun.set(element.dataset.run, [...(ofRun.get(element.dataset.run) || []), element]);
});

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, i) => {
    const values = row.dataset.f.split(",");
    const kept = words.every((word) => texts[i].includes(word))
      && selects.every((select) => select.value === "" || select.value === values[Number(select.dataset.filter)]);
    shown += kept;
    for (const element of ofRun.get(row.dataset.run)) {
      if (element instanceof HTMLElement) element.hidden = !kept;
      else element.classList.toggle("out", !kept);
    }
  });
  hideEmptyRanks();
  const all = shown === rows.length;
  document.getElementById("count").textContent = all ? "" : `${shown} of ${rows.length} runs`;
}

find.addEventListener("input", filter);
selects.forEach((select) => select.addEventListener("change", filter));
