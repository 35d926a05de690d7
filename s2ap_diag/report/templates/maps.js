// Where and since when: maps of two arms, or of two runs, side by side, and their difference.
const stored = document.getElementById("atlas");
const atlas = stored ? JSON.parse(stored.textContent) : { runs: {}, sides: [] };
const runNames = [...document.querySelectorAll("#runs tbody th a")].map((link) => link.textContent);

function scaleOf(kind, values) {
  const all = values.flat(2).filter((value) => value !== null);
  const stops = atlas.colours.values;
  if (kind.log && Math.min(...all) > 0) {
    const [low, high] = [Math.log10(Math.min(...all)), Math.log10(Math.max(...all))];
    return { stops, share: (value) => (Math.log10(value) - low) / (high - low || 1), low: short(10 ** low), high: short(10 ** high) };
  }
  const [low, high] = [Math.min(...(kind.zero ? [0] : []), ...all), Math.max(...all)];
  return { stops, share: (value) => (value - low) / (high - low || 1), low: short(low), high: short(high) };
}

function differenceScale(kind, values) {
  const top = Math.max(...values.flat().filter((value) => value !== null).map(Math.abs), 0);
  const said = (value) => (kind.log ? `×${short(10 ** value)}` : short(value));
  return {
    stops: atlas.colours.differences, night: atlas.colours.by_night, share: (value) => (top ? 0.5 + value / (2 * top) : 0.5),
    low: said(-top), middle: kind.log ? "×1" : "0", high: said(top),
  };
}

// The map of a side: of a run, or the mean over the runs of an arm, of those that have all layers and epochs of the first.
function sideMap(side, key) {
  const runs = side.runs.map((number) => atlas.runs[number]).filter((run) => run.maps[key]);
  if (!runs.length) return null;
  const [first] = runs;
  const alike = runs.filter((run) => run.layers === first.layers && run.epochs.length === first.epochs.length);
  const log = atlas.kinds[key].log;
  const values = first.maps[key].map((row, layer) => row.map((_, epoch) => {
    const readings = alike.map((run) => run.maps[key][layer][epoch]);
    if (readings.includes(null)) return null;
    const logs = log && Math.min(...readings) > 0;
    const mean = readings.reduce((sum, value) => sum + (logs ? Math.log(value) : value), 0) / readings.length;
    return logs ? Math.exp(mean) : mean;
  }));
  return { layers: atlas.layers[first.layers], epochs: first.epochs, values, of: alike };
}

function largest(layers, epochs, values) {
  let [top, place] = [-Infinity, ""];
  values.forEach((row, i) => row.forEach((value, j) => {
    if (value !== null && value > top) [top, place] = [value, `${layers[i]} at epoch ${epochs[j]}`];
  }));
  return `Largest: ${short(top)} in ${place}.`;
}

function describe(title, { layers, epochs, values }) {
  return `Map, ${title}: ${layers.length} layers down, epochs ${epochs[0]} to ${epochs[epochs.length - 1]} across. ${largest(layers, epochs, values)}`;
}

// The maps of one run, drawn when its section is opened.
function drawRunMaps(place) {
  const run = atlas.runs[place.dataset.maps];
  for (const [key, kind] of Object.entries(run ? atlas.kinds : {})) {
    const values = run.maps[key];
    if (!values) continue;
    const side = { layers: atlas.layers[run.layers], epochs: run.epochs, values };
    place.append(drawMap({
      ...side, title: kind.title, label: describe(kind.title, side), scale: scaleOf(kind, [values]), says: (value) => short(value),
    }));
  }
}

if (atlas.sides.length) {
  const own = Object.keys(atlas.runs).map((number) => ({ name: runNames[number - 1], runs: [Number(number)], arm: atlas.runs[number].arm, one: true }));
  const sides = [...atlas.sides, ...own];
  const present = Object.keys(atlas.kinds).filter((key) => Object.values(atlas.runs).some((run) => run.maps[key]));
  const choice = (name, options, start) => {
    const select = element("select", {}, ...options.map((text, i) => element("option", { value: i }, text)));
    select.value = start;
    return [element("label", {}, `${name} `, select), select];
  };
  const names = sides.map(({ name, runs, one }) => (one ? name : `${name} (${runs.length > 1 ? `mean of ${runs.length}` : "1 run"})`));
  const other = sides.findIndex((side, i) => i && side.group === sides[0].group);
  const [kindLabel, kindOf] = choice("Map of", present.map((key) => atlas.kinds[key].title), 0);
  const [firstLabel, firstOf] = choice("first", names, 0);
  const [secondLabel, secondOf] = choice("second", names, other > 0 ? other : 0);
  const shown = element("div", { class: "figures atlas", id: "map" });
  const curves = element("div", { class: "figures", id: "layer", role: "status" });
  let layer = null;
  const draw = () => {
    shown.replaceChildren();
    curves.replaceChildren();
    tip.textContent = "";
    const key = present[kindOf.value];
    const kind = atlas.kinds[key];
    const chosen = [firstOf, secondOf].map((select) => sides[select.value]);
    const maps = chosen.map((side) => sideMap(side, key));
    const scale = scaleOf(kind, maps.filter(Boolean).map((map) => map.values));
    const choose = (index, map) => {
      layer = map.layers[index];
      drawLayer(curves, layer, kind, key, chosen);
    };
    maps.forEach((map, i) => {
      const title = names[[firstOf, secondOf][i].value];
      if (map) {
        shown.append(drawMap({
          ...map, title, label: describe(`${kind.title}, ${title}`, map), scale, says: short, choose: (index) => choose(index, map),
        }));
      } else shown.append(element("p", { class: "marks" }, `${title}: no readings of this kind.`));
    });
    const [a, b] = maps;
    if (a && b && firstOf.value !== secondOf.value) {
      const difference = differenceOf(a, b, kind.log);
      if (difference) {
        const said = kind.log ? (value) => (value === null ? "–" : `×${short(10 ** value)}`) : short;
        shown.append(drawMap({
          ...difference, title: `second ${kind.log ? "over" : "minus"} first`, says: said, scale: differenceScale(kind, difference.values),
          label: describe(`${kind.title}, second ${kind.log ? "over" : "minus"} first`, difference),
          choose: (index) => choose(index, difference),
        }));
      } else shown.append(element("p", { class: "marks" }, "No layer and epoch in common: no difference."));
    }
    const map = a || b;
    if (map) {
      if (!map.layers.includes(layer)) layer = map.layers[mostMoved(map)];
      drawLayer(curves, layer, kind, key, chosen);
    }
  };
  [kindOf, firstOf, secondOf].forEach((select) => select.addEventListener("change", draw));
  const controls = element("div", { class: "filters" }, kindLabel, firstLabel, secondLabel);
  const hint = element("p", { class: "marks" }, "A click on a layer, or Enter on it, shows its curves in both.");
  document.getElementById("maps").append(controls, hint, shown, curves);
  draw();
}

function mostMoved({ values }) {
  const sums = values.map((row) => row.reduce((sum, value) => sum + (value || 0), 0));
  return sums.indexOf(Math.max(...sums));
}

function differenceOf(a, b, log) {
  const layers = a.layers.filter((name) => b.layers.includes(name));
  const epochs = a.epochs.filter((epoch) => b.epochs.includes(epoch));
  if (!layers.length || !epochs.length) return null;
  const read = (map, name, epoch) => map.values[map.layers.indexOf(name)][map.epochs.indexOf(epoch)];
  const values = layers.map((name) => epochs.map((epoch) => {
    const [x, y] = [read(a, name, epoch), read(b, name, epoch)];
    if (x === null || y === null || (log && Math.min(x, y) <= 0)) return null;
    return log ? Math.log10(y / x) : y - x;
  }));
  return { layers, epochs, values };
}

function drawLayer(place, layer, kind, key, chosen) {
  const lines = [];
  let epochs = [];
  chosen.forEach((side, i) => {
    const map = sideMap(side, key);
    const at = map ? map.layers.indexOf(layer) : -1;
    if (at < 0) return;
    const mark = side.arm ?? i;
    const other = i && chosen[0] !== side && mark === (chosen[0].arm ?? 0) ? " other" : "";  // dashed: the same arm once more
    epochs = [...new Set([...epochs, ...map.epochs])].sort((x, y) => x - y);
    const fill = (row) => epochs.map((epoch) => (map.epochs.includes(epoch) ? row[map.epochs.indexOf(epoch)] : null));
    if (map.of.length > 1) map.of.forEach((run) => lines.push({ name: side.name, style: `fold${other}`, mark, values: fill(run.maps[key][at]) }));
    lines.push({ name: side.name, style: `mean${other}`, mark, values: fill(map.values[at]) });
  });
  const title = `${layer}: ${kind.title}`;
  const means = lines.filter((line) => line.style.startsWith("mean"));
  const key_ = element("ul", { class: "arms" }, ...means.map(({ name, mark, style }) => element("li", {}, sample(mark, style), ` ${name}`)));
  const said = means.map(({ name, values }) => `${name}: from ${short(values[0])} to ${short(values[values.length - 1])}`).join("; ");
  const figure = drawCurves({ title, label: `${title} by epoch. ${said}.`, epochs, lines, log: kind.log });
  figure.querySelector("figcaption").after(key_);
  place.replaceChildren(figure);
}

function sample(mark, style) {
  const shape = (mark + Math.floor(mark / 8)) % 8;
  return make("svg", { class: `sample c${mark % 8}`, viewBox: "0 0 30 12", width: 30, height: 12, "aria-hidden": "true" },
    make("path", { d: "M1,6H29", ...(style === "mean" ? {} : { "stroke-dasharray": "5 3" }) }), make("use", { href: `#shape-${shape}`, transform: "translate(15,6)" }));
}
