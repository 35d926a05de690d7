// Pictures that the page draws itself: maps of layers down and epochs across, and curves, in the units of a chart.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.append(...children);
  return element;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children);
  return made;
}

function short(value) {
  if (value === null || !isFinite(value)) return "–";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2).replace("e+", "e") : String(+value.toPrecision(4));
}

function shade(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((from, channel) => Math.round(from + (stops[i + 1][channel] - from) * (at - i)));
}

function paint(values, stops, share) {
  // One pixel for each value; those that are missing stay transparent.
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [values[0].length, values.length];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  values.flat().forEach((value, i) => {
    if (value !== null) image.data.set([...shade(stops, share(value)), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

function middle(name, most) {
  if (name.length <= most) return name;
  const half = Math.floor((most - 1) / 2);
  return `${name.slice(0, half)}…${name.slice(-half)}`;
}

// A map. `scale` has the colours' stops, `share` of a value in [0, 1], and the words at both ends of the colours.
function drawMap({ title, label, layers, epochs, values, scale, says, choose }) {
  const [row, left, width] = [13, 132, 218];
  const high = row * layers.length;
  const svg = make("svg", { class: "heat", viewBox: `0 0 360 ${high + 66}`, role: "img", "aria-label": label });
  const shades = scale.night ? [["day", scale.stops], ["night", scale.night]] : [["", scale.stops]];
  const fill = (rows, share, y, height) => shades.forEach(([when, stops]) => svg.append(make("image", {
    class: when, href: paint(rows, stops, share), x: left, y, width, height, preserveAspectRatio: "none",
  })));
  fill(values, scale.share, 0, high);
  layers.forEach((name, i) => {
    const text = make("text", { class: "y", x: left - 6, y: row * (i + 1) - 3 }, middle(name, 20));
    if (middle(name, 20) !== name) text.append(make("title", {}, name));
    svg.append(text);
  });
  const ends = epochs.length > 1 ? [0, epochs.length - 1] : [0];
  ends.forEach((i) => {
    const x = left + (width * (i + 0.5)) / epochs.length;
    svg.append(make("text", { class: "x", x, y: high + 14 }, String(epochs[i])));
  });
  svg.append(make("text", { class: "x", x: left + width / 2, y: high + 14 }, "epoch"));
  const even = scale.low === scale.high;
  if (!even) fill([Array.from({ length: 64 }, (_, i) => i / 63)], (value) => value, high + 30, 10);
  svg.append(make("text", { x: left, y: high + (even ? 36 : 54) }, even ? `${scale.low} everywhere` : scale.low));
  if (scale.middle && !even) svg.append(make("text", { class: "x", x: left + width / 2, y: high + 54 }, scale.middle));
  if (!even) svg.append(make("text", { class: "y", x: left + width, y: high + 54 }, scale.high));
  watchMap(svg, { layers, epochs, values, row, left, across: width / epochs.length, says, choose });
  return element("figure", {}, element("figcaption", {}, title), svg);
}

function watchMap(svg, { layers, epochs, values, row, left, across, says, choose }) {
  let cursor = null;
  const leave = () => cursor?.remove();
  watch(svg, {
    start: [0, 0],
    at: ({ x, y }) => [clamp(Math.floor(y / row), layers.length), clamp(Math.floor((x - left) / across), epochs.length)],
    move: ([layer, epoch], right, below) => [clamp(layer + below, layers.length), clamp(epoch + right, epochs.length)],
    select: ([layer, epoch]) => {
      leave();
      const place = { x: left + epoch * across, y: layer * row, width: across, height: row };
      cursor = addShape(svg, "rect", { class: "cursor", ...place });
      showTip(`${layers[layer]}, epoch ${epochs[epoch]}: ${says(values[layer][epoch])}`, cursor.getBoundingClientRect());
    },
    choose: choose && (([layer]) => choose(layer)),
    leave,
  });
}

// Ticks at round numbers, or at powers of ten.
function ticks(low, high, log) {
  if (log) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(low)) + 1)];
    const step = Math.ceil((last - first) / 4);
    return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => 10 ** (first + i * step));
  }
  const rough = (high - low || Math.abs(high) || 1) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= rough * 0.999) * unit;
  const first = Math.floor(low / step + 1e-9);
  const count = Math.max(Math.ceil(high / step - 1e-9) - first, 1);
  return Array.from({ length: count + 1 }, (_, i) => +((first + i) * step).toPrecision(9));
}

// Curves over epochs: `lines` of {name, style, mark, values}, null where there is no reading.
function drawCurves({ title, label, epochs, lines, log }) {
  const frame = { left: 52, right: 350, top: 30, bottom: 182 };
  const all = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const logs = log && Math.min(...all) > 0;
  const marks = ticks(logs ? Math.min(...all) : Math.min(0, ...all), Math.max(...all), logs);
  const scaled = (value) => (logs ? Math.log10(value) : value);
  const [low, high] = [scaled(marks[0]), Math.max(scaled(marks[marks.length - 1]), scaled(Math.max(...all)))];
  const span = epochs[epochs.length - 1] - epochs[0];
  const across = (epoch) => (span ? frame.left + ((epoch - epochs[0]) / span) * (frame.right - frame.left) : 201);
  const up = (value) => frame.bottom - ((scaled(value) - low) / (high - low || 1)) * (frame.bottom - frame.top);
  const svg = make("svg", { class: "chart", viewBox: "0 20 360 196", role: "img", "aria-label": label, "data-across": "epoch" });
  svg.append(make("path", { class: "grid", d: marks.map((value) => `M${frame.left},${up(value)}H${frame.right}`).join("") }));
  marks.forEach((value) => svg.append(make("text", { class: "y", x: frame.left - 6, y: up(value) + 4 }, short(value))));
  [...new Set([epochs[0], epochs[epochs.length - 1]])].forEach((epoch) => {
    svg.append(make("text", { class: "x", x: across(epoch), y: frame.bottom + 16 }, String(epoch)));
  });
  svg.append(make("text", { class: "x", x: 201, y: 213 }, "epoch"));
  for (const { name, style, mark, values } of lines) {
    const there = epochs.map((epoch, i) => [epoch, values[i]]).filter(([, value]) => value !== null && !(logs && value <= 0));
    const line = make("polyline", { points: there.map(([epoch, value]) => `${across(epoch)},${up(value)}`).join(" ") });
    if (style.startsWith("mean")) {
      line.setAttribute("class", "curve");
      for (const end of ["start", "mid", "end"]) line.setAttribute(`marker-${end}`, `url(#m${mark})`);
      Object.assign(line.dataset, { name, x: JSON.stringify(there.map(([epoch]) => epoch)), y: JSON.stringify(there.map(([, value]) => value)) });
    }
    svg.append(make("g", { class: `${style} c${mark % 8}`, "data-arm": mark }, line));
  }
  watchChart(svg);
  return element("figure", {}, element("figcaption", {}, title), svg);
}
