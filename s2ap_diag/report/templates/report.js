"use strict";
document.documentElement.classList.add("scripted");

// Sorting: a click on a heading sorts by it, the next one turns the order round; what has no value stays last.
const table = document.getElementById("runs");
const headings = [...table.tHead.rows[1].cells];
const names = new Intl.Collator(undefined, { numeric: true });

function sortBy(index) {
  const heading = headings[index];
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const numeric = heading.classList.contains("n");
  const keyed = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[index];
    return { row, key: numeric ? parseFloat(cell.dataset.v) : cell.textContent };
  });
  keyed.sort((a, b) => {
    if (!numeric) return direction * names.compare(a.key, b.key);
    if (isNaN(a.key) || isNaN(b.key)) return isNaN(a.key) - isNaN(b.key);
    return direction * (a.key - b.key);
  });
  table.tBodies[0].append(...keyed.map((entry) => entry.row));
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

headings.forEach((heading, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(index));
  heading.append(button);
});

// Sections: opened by a link to them, all at once, and for printing.
const sections = [...document.querySelectorAll("details.run")];

function openTarget() {
  const target = sections.find((section) => "#" + section.id === location.hash);
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
}

addEventListener("hashchange", openTarget);
table.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link && link.hash === location.hash) openTarget();
});
openTarget();

const controls = document.createElement("div");
controls.className = "controls";
for (const [text, open] of [["Open all", true], ["Close all", false]]) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => sections.forEach((section) => { section.open = open; }));
  controls.append(button);
}
document.getElementById("each").after(controls);

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));

// Values: those nearest to the pointer, or to where the arrow keys have moved.
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);

function showTip(text, box) {
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  const left = box.right + 10 + width < document.documentElement.clientWidth ? box.right + 10 : box.left - width - 10;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, box.top - height - 6) + "px";
}

function inPicture(svg, event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
}

function watch(svg, { at, move, start, select, leave }) {
  let place = null;
  const go = (next) => {
    place = next;
    select(place);
  };
  const away = () => {
    tip.textContent = "";
    leave();
  };
  svg.tabIndex = 0;
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-description", "Arrow keys read the values.");
  svg.addEventListener("pointermove", (event) => go(at(inPicture(svg, event))));
  svg.addEventListener("pointerdown", (event) => go(at(inPicture(svg, event))));
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("blur", away);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") away();
    if (!step) return;
    event.preventDefault();
    go(place === null ? start : move(place, ...step));
  });
}

function addShape(svg, name, attributes) {
  const shape = document.createElementNS(svg.namespaceURI, name);
  Object.entries(attributes).forEach(([key, value]) => shape.setAttribute(key, value));
  svg.append(shape);
  return shape;
}

const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

function watchChart(svg) {
  // All curves are read together at an epoch.
  const columns = new Map();
  for (const curve of svg.querySelectorAll(".curve")) {
    const [epochs, values] = [curve.dataset.x, curve.dataset.y].map(JSON.parse);
    [...curve.points].forEach(({ x, y }, i) => {
      const text = `${curve.dataset.name}, epoch ${epochs[i]}: ${values[i]}`;
      columns.set(x, [...(columns.get(x) || []), { x, y, text }]);
    });
  }
  const xs = [...columns.keys()].sort((a, b) => a - b);
  const clear = () => svg.querySelectorAll(".near").forEach((circle) => circle.remove());
  watch(svg, {
    start: 0,
    at: ({ x }) => xs.reduce((best, other, i) => (Math.abs(other - x) < Math.abs(xs[best] - x) ? i : best), 0),
    move: (index, right) => clamp(index + right, xs.length),
    select: (index) => {
      clear();
      const points = columns.get(xs[index]);
      const circles = points.map(({ x, y }) => addShape(svg, "circle", { class: "near", cx: x, cy: y, r: 4 }));
      showTip(points.map((point) => point.text).join("\n"), circles[0].getBoundingClientRect());
    },
    leave: clear,
  });
}

function watchHeatMap(svg) {
  const values = JSON.parse(svg.dataset.h);
  const image = svg.querySelector("image");
  const [left, width, height] = ["x", "width", "height"].map((name) => image[name].baseVal.value);
  const labels = [...svg.querySelectorAll("text")].slice(0, values.length);
  const layers = labels.map((label) => (label.querySelector("title") || label).textContent);
  const [across, down] = [width / values[0].length, height / values.length];
  let cursor = null;
  const leave = () => cursor?.remove();
  watch(svg, {
    start: [0, 0],
    at: ({ x, y }) => [clamp(Math.floor(y / down), values.length), clamp(Math.floor((x - left) / across), values[0].length)],
    move: ([layer, epoch], right, below) => [clamp(layer + below, values.length), clamp(epoch + right, values[0].length)],
    select: ([layer, epoch]) => {
      leave();
      const place = { x: left + epoch * across, y: layer * down, width: across, height: down };
      cursor = addShape(svg, "rect", { class: "cursor", ...place });
      showTip(`${layers[layer]}, epoch ${epoch + 1}: h = ${values[layer][epoch]}`, cursor.getBoundingClientRect());
    },
    leave,
  });
}

document.querySelectorAll("svg.chart").forEach(watchChart);
document.querySelectorAll("svg.heat").forEach(watchHeatMap);
