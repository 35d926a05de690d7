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

function watch(svg, { at, move, start, select, leave, choose }) {
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
  if (choose) svg.addEventListener("click", () => place !== null && choose(place));
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("blur", away);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") away();
    if (event.key === "Enter" && choose) choose(place ?? start);
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

const shown = (element) => !element.closest(".off, .out");

function watchCurves(svg) {
  // All curves are read together at a place along the axis.
  const columns = new Map();
  for (const curve of svg.querySelectorAll(".curve")) {
    const [places, values] = [curve.dataset.x, curve.dataset.y].map(JSON.parse);
    [...curve.points].forEach(({ x, y }, i) => {
      const text = `${curve.dataset.name}, ${svg.dataset.across} ${places[i]}: ${values[i]}`;
      columns.set(x, [...(columns.get(x) || []), { x, y, text, curve }]);
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
      const points = columns.get(xs[index]).filter((point) => shown(point.curve));
      const circles = points.map(({ x, y }) => addShape(svg, "circle", { class: "near", cx: x, cy: y, r: 4 }));
      if (circles.length) showTip(points.map((point) => point.text).join("\n"), circles[0].getBoundingClientRect());
    },
    leave: clear,
  });
}

function watchDots(svg) {
  const dots = [...svg.querySelectorAll(".dot")].map((dot) => {
    const { e: x, f: y } = dot.querySelector("use").transform.baseVal[0].matrix;
    return { dot, x, y };
  });
  dots.sort((a, b) => a.x - b.x);
  const clear = () => svg.querySelectorAll(".near").forEach((circle) => circle.remove());
  const far = (point, { x, y }) => Math.hypot(point.x - x, point.y - y);
  watch(svg, {
    start: 0,
    at: (place) => dots.reduce((best, other, i) => (
      shown(other.dot) && (!shown(dots[best].dot) || far(other, place) < far(dots[best], place)) ? i : best), 0),
    move: (index, right) => clamp(index + right, dots.length),
    select: (index) => {
      clear();
      const { x, y, dot } = dots[index];
      const circle = addShape(svg, "circle", { class: "near", cx: x, cy: y, r: 7 });
      showTip(dot.dataset.label, circle.getBoundingClientRect());
    },
    leave: clear,
  });
}

function watchChart(svg) {
  if (svg.querySelector(".dot")) watchDots(svg);
  else watchCurves(svg);
}

function watchLines(svg) {
  // The line nearest to the pointer, or the next one up or down.
  const lines = [...svg.querySelectorAll("[data-run]")].map((group) => ({
    group, points: [...group.firstElementChild.points].map(({ x, y }) => ({ x, y })),
  }));
  const between = (points, x) => {
    const after = points.findIndex((point) => point.x > x);
    const i = after < 0 ? points.length - 1 : Math.max(after, 1);
    const [a, b] = [points[i - 1], points[i]];
    return a.y + (b.y - a.y) * Math.min(Math.max((x - a.x) / (b.x - a.x), 0), 1);
  };
  const clear = () => svg.querySelectorAll(".now").forEach((group) => group.classList.remove("now"));
  watch(svg, {
    start: 0,
    at: ({ x, y }) => lines.reduce((best, line, i) => (
      shown(line.group) && (!shown(lines[best].group)
        || Math.abs(between(line.points, x) - y) < Math.abs(between(lines[best].points, x) - y)) ? i : best), 0),
    move: (index, right, down) => clamp(index + right + down, lines.length),
    select: (index) => {
      clear();
      lines[index].group.classList.add("now");
      showTip(lines[index].group.dataset.label, lines[index].group.getBoundingClientRect());
    },
    leave: clear,
  });
}
