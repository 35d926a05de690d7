// What a run's section holds beyond its text is made when it is opened, or printed: a page of 300 runs opens at once.
const numbered = (value) => (value === undefined ? "–" : short(value));

function drawValues(section) {
  const place = section.querySelector(".by-epoch");
  const curves = [...section.querySelectorAll("figure > svg.chart .curve")].map((curve) => ({
    heading: `${curve.closest("figure").querySelector("figcaption").textContent}${curve.dataset.name === "h" ? "" : `: ${curve.dataset.name}`}`,
    values: new Map(JSON.parse(curve.dataset.x).map((epoch, i) => [epoch, JSON.parse(curve.dataset.y)[i]])),
  }));
  const epochs = [...new Set(curves.flatMap(({ values }) => [...values.keys()]))].sort((a, b) => a - b);
  const head = element("tr", {}, ...["epoch", ...curves.map(({ heading }) => heading)].map(
    (text) => element("th", { scope: "col", class: "n" }, text)));
  const lines = epochs.map((epoch) => element("tr", {}, element("th", { scope: "row" }, String(epoch)),
    ...curves.map(({ values }) => element("td", {}, numbered(values.get(epoch))))));
  const grid = element("table", { class: "values" }, element("thead", {}, head), element("tbody", {}, ...lines));
  place.append(element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Values by epoch" }, grid));
}

function fill(section) {
  if (section.dataset.filled) return;
  section.dataset.filled = "yes";
  drawValues(section);
  section.querySelectorAll("svg.chart").forEach(watchChart);
  const place = section.querySelector("[data-maps]");
  if (place) drawRunMaps(place);
}

for (const section of sections) {
  section.addEventListener("toggle", () => section.open && fill(section));
  if (section.open) fill(section);
}
addEventListener("beforeprint", () => sections.forEach(fill));
document.querySelectorAll("article svg.chart").forEach(watchChart);
document.querySelectorAll("svg.parallel").forEach(watchLines);
