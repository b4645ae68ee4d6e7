// The script of the site: theme, sorting and filtering tables, curves, quality against cost, the gallery. It asks nobody for anything.
"use strict";

const all = (root, selector) => [...root.querySelectorAll(selector)];
const one = (root, selector) => root.querySelector(selector);
const data = (id) => JSON.parse(document.getElementById(id).textContent);

// Theme: as the system says, until the button is pressed.

const remembered = {
  get() { try { return localStorage.getItem("theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("theme", value); } catch { /* A page opened from a file may not be allowed to. */ } },
};
if (remembered.get()) document.documentElement.dataset.theme = remembered.get();
one(document, "#theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  remembered.set(document.documentElement.dataset.theme);
});

// Tables

for (const board of all(document, ".board")) {
  const table = one(board, "table.numbers");
  const body = one(table, "tbody");
  const heads = all(table, "thead th");
  for (const [place, head] of heads.entries()) {
    one(head, "button").addEventListener("click", (event) => sort(body, heads, place, event.currentTarget.dataset));
  }
  const filter = one(board, ".filter");
  const refresh = () => show(board, body, filter.value);
  filter.addEventListener("input", refresh);
  one(board, ".floors").addEventListener("change", refresh);
  one(board, ".spreads").addEventListener("change", (event) => table.classList.toggle("no-spreads", !event.target.checked));
  for (const chip of all(board, ".category")) {
    chip.addEventListener("change", () => {
      for (const cell of all(table, "[data-category]")) if (cell.dataset.category === chip.value) cell.hidden = !chip.checked;
    });
  }
}

function sort(body, heads, place, { kind, first }) {
  const head = heads[place];
  const before = head.getAttribute("aria-sort");
  const start = first ?? "ascending";
  const order = before === "none" ? start : before === "ascending" ? "descending" : "ascending";
  for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => row.cells[place].dataset.value;
  const rows = [...body.rows].sort((left, right) => {
    const [a, b] = [key(left), key(right)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // What is not there comes last, either way.
    return sign * (kind === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  body.append(...rows);
}

function show(board, body, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const floors = one(board, ".floors").checked;
  let shown = 0;
  for (const row of body.rows) {
    const name = all(row, "th").map((cell) => cell.dataset.value).join(" ").toLowerCase();
    row.hidden = !(words.every((word) => name.includes(word)) && (floors || !row.classList.contains("floor")));
    shown += !row.hidden;
  }
  one(board, ".count").textContent = shown === body.rows.length ? `${shown} rows` : `${shown} of ${body.rows.length} rows`;
}

// What is cut off fades, so that it shows that there is more.

for (const box of all(document, ".scroll")) {
  const look = () => {
    box.classList.toggle("below", box.scrollTop + box.clientHeight < box.scrollHeight - 2);
    box.classList.toggle("beside", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  };
  box.addEventListener("scroll", look, { passive: true });
  const watch = new ResizeObserver(look);
  for (const each of [box, box.firstElementChild]) watch.observe(each);
}

// Drawing

const LEFT = 56, RIGHT = 16, TOP = 14, LINE = 17, BOTTOM = 48;

// A figure is drawn in the pixels that it has, so that its text is as large on a phone as on a desk, and again when they change.
function sized(canvas, draw) {
  let before = 0;
  new ResizeObserver(() => {
    if (Math.abs(canvas.clientWidth - before) < 2) return;
    before = canvas.clientWidth;
    draw();
  }).observe(canvas);
}

// The name of the upright axis lies above it, in as many lines as it needs.
function extent(canvas, yName) {
  const style = getComputedStyle(canvas);
  const wide = Math.max(240, canvas.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const heading = wrapped(yName, wide);
  return { wide, high: Math.round(Math.min(420, Math.max(250, wide * 0.52))), heading, top: TOP + LINE * heading.length };
}

function wrapped(text, wide) {
  const most = Math.floor(wide / 7); // An average letter of a name is less than 7 pixels wide.
  const lines = [];
  for (const word of text.split(" ")) {
    if (lines.length && lines.at(-1).length + word.length < most) lines[lines.length - 1] += ` ${word}`; else lines.push(word);
  }
  return lines;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) found.push(10 ** power);
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * unit).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const short = (value) => Math.abs(value) >= 10000 ? compact.format(value) : value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));

function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const logarithmic = low > 0 && high / low > 40;
  if (logarithmic) { low /= 1.3; high *= 1.3; } else { const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1; low -= room; high += room; }
  const turn = logarithmic ? Math.log10 : (value) => value;
  const at = (value) => from + ((turn(value) - turn(low)) / (turn(high) - turn(low))) * (to - from);
  return { at, ticks: ticks(low, high, logarithmic) };
}

function axes({ wide, high, heading }, x, y, xName) {
  const group = svg("g", { class: "axis" });
  for (const value of y.ticks) {
    group.append(svg("line", { x1: LEFT, x2: wide - RIGHT, y1: y.at(value), y2: y.at(value) }));
    group.append(svg("text", { x: LEFT - 8, y: y.at(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const value of x.ticks) group.append(svg("text", { x: x.at(value), y: high - BOTTOM + 20, "text-anchor": "middle" }, short(value)));
  group.append(svg("text", { class: "name", x: (LEFT + wide - RIGHT) / 2, y: high - 6, "text-anchor": "middle" }, xName));
  group.append(...heading.map((line, place) => svg("text", { class: "name", x: 0, y: TOP + LINE * place }, line)));
  return group;
}

// Curves

for (const figure of all(document, ".curves")) {
  const metrics = data(figure.dataset.source);
  const [canvas, list, find, which] = [".canvas", ".legend-list", ".find", ".which"].map((selector) => one(figure, selector));
  let metric, chosen;

  const choose = () => {
    metric = metrics[which ? which.value : 0];
    const best = metric.lines.filter((line) => !line.floor).slice(0, 4);
    chosen = new Map([...best, ...metric.lines.filter((line) => line.floor).slice(0, 2)].map((line, place) => [line.name, place]));
    list.replaceChildren(...metric.lines.map(item));
    draw();
  };
  const item = (line) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(line.name) });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    const label = document.createElement("label");
    label.append(box, swatch, line.name);
    const entry = Object.assign(document.createElement("li"), { title: line.name });
    entry.append(label);
    entry.dataset.name = line.name;
    box.addEventListener("change", () => {
      if (box.checked) chosen.set(line.name, free()); else chosen.delete(line.name);
      draw();
    });
    for (const [event, on] of [["pointerenter", true], ["focusin", true], ["pointerleave", false], ["focusout", false]]) {
      label.addEventListener(event, () => emphasise(on && chosen.has(line.name) ? line.name : null));
    }
    return entry;
  };
  const free = () => { const taken = new Set(chosen.values()); let place = 0; while (taken.has(place)) place++; return place; };
  const emphasise = (name) => { for (const path of all(canvas, ".series")) path.classList.toggle("dim", name !== null && path.dataset.name !== name); };
  const draw = () => {
    const lines = metric.lines.filter((line) => chosen.has(line.name));
    for (const entry of list.children) {
      const place = chosen.get(entry.dataset.name);
      one(entry, ".swatch").className = place === undefined ? "swatch" : `swatch c${place % 8}`;
    }
    if (!lines.length) { canvas.replaceChildren("Choose a row."); return; }
    const size = extent(canvas, metric.y_label);
    const x = scale(lines.flatMap((line) => line.x), LEFT, size.wide - RIGHT);
    const y = scale(lines.flatMap((line) => line.y), size.high - BOTTOM, size.top);
    const picture = svg("svg", { viewBox: `0 0 ${size.wide} ${size.high}`, role: "img", "aria-label": `${metric.label}: ${lines.map((line) => line.name).join(", ")}` });
    picture.append(axes(size, x, y, metric.x_label));
    for (const line of lines) {
      const points = line.x.map((value, place) => `${x.at(value).toFixed(1)},${y.at(line.y[place]).toFixed(1)}`);
      const path = svg("polyline", { points: points.join(" "), class: `series c${chosen.get(line.name) % 8}${line.floor ? " dashed" : ""}`, "data-name": line.name });
      path.append(svg("title", {}, line.name));
      picture.append(path);
    }
    canvas.replaceChildren(picture);
  };
  which?.addEventListener("change", choose);
  find.addEventListener("input", () => {
    for (const entry of list.children) entry.hidden = !entry.dataset.name.toLowerCase().includes(find.value.toLowerCase());
  });
  choose();
  sized(canvas, draw);
}

// Quality against cost

for (const figure of all(document, ".pareto")) {
  const { columns, rows } = data(figure.dataset.source);
  const [canvas, across, up, picked] = [".canvas", ".across", ".up", ".picked"].map((selector) => one(figure, selector));
  for (const select of [across, up]) select.append(...columns.map((column, place) => new Option(title(column), place)));
  const cost = columns.findIndex((column) => column.cost);
  up.value = columns.findIndex((column) => !column.cost);
  across.value = cost >= 0 ? cost : columns.length - 1;

  function title(column) { return `${column.label} ${column.higher ? "↑" : "↓"}${column.unit ? ` (${column.unit})` : ""}`; }
  const draw = () => {
    const [a, b] = [Number(across.value), Number(up.value)];
    const points = rows.map((row) => ({ ...row, x: row.values[a], y: row.values[b] })).filter((row) => row.x !== null && row.y !== null);
    picked.textContent = "";
    if (!points.length) { canvas.replaceChildren("No row has both."); return; }
    const [gainX, gainY] = [columns[a].higher ? 1 : -1, columns[b].higher ? 1 : -1];
    const beaten = (row) => points.some((other) => gainX * other.x >= gainX * row.x && gainY * other.y >= gainY * row.y && (other.x !== row.x || other.y !== row.y));
    const front = points.filter((row) => !beaten(row)).sort((left, right) => left.x - right.x);
    const size = extent(canvas, title(columns[b]));
    const x = scale(points.map((row) => row.x), LEFT, size.wide - RIGHT);
    const y = scale(points.map((row) => row.y), size.high - BOTTOM, size.top);
    const picture = svg("svg", { viewBox: `0 0 ${size.wide} ${size.high}`, role: "group", "aria-label": `${title(columns[b])} against ${title(columns[a])}` });
    picture.append(axes(size, x, y, title(columns[a])));
    picture.append(svg("polyline", { class: "front-line", points: front.map((row) => `${x.at(row.x)},${y.at(row.y)}`).join(" ") }));
    for (const row of points) {
      const state = `${row.floor ? " floor" : ""}${front.includes(row) ? " front" : ""}`;
      const text = `${row.name}: ${short(row.x)}, ${short(row.y)}`;
      const point = svg("circle", { class: `point${state}`, cx: x.at(row.x), cy: y.at(row.y), r: 5.5, tabindex: 0, role: "img", "aria-label": text }, svg("title", {}, text));
      for (const event of ["focus", "pointerenter"]) point.addEventListener(event, () => { picked.textContent = text; });
      picture.append(point);
    }
    picture.append(...names(front, x, y, size));
    canvas.replaceChildren(picture);
  };
  across.addEventListener("change", draw);
  up.addEventListener("change", draw);
  sized(canvas, draw);
}

// The names of rows beside their points, as many as fit without covering each other.
function names(rows, x, y, { wide }) {
  const taken = [];
  const found = [];
  for (const row of rows) {
    const [atX, atY] = [x.at(row.x), y.at(row.y) - 9];
    const end = atX > wide * 0.6;
    const long = row.name.length * 6.6 + 12;
    const box = { left: end ? atX - long : atX, right: end ? atX : atX + long, top: atY - 12, bottom: atY + 5 };
    if (box.left < 0 || box.right > wide || taken.some((other) => box.left < other.right && box.right > other.left && box.top < other.bottom && box.bottom > other.top)) continue;
    taken.push(box);
    found.push(svg("text", { class: "point-name", x: atX + (end ? -10 : 10), y: atY, "text-anchor": end ? "end" : "start" }, row.name));
  }
  return found;
}

// Gallery

const viewer = one(document, ".viewer");
for (const gallery of all(document, ".gallery")) {
  const { count, width, height } = gallery.dataset;
  const labels = JSON.parse(one(gallery, ".labels").textContent);
  gallery.style.setProperty("--count", count);
  gallery.style.setProperty("--ratio", width / height);
  gallery.classList.toggle("pixels", width < 100);
  for (const tile of all(gallery, ".picker .tile")) tile.style.setProperty("--image", tile.dataset.image);

  const look = (image) => {
    gallery.dataset.image = image;
    gallery.style.setProperty("--image", image);
    one(gallery, ".shown").textContent = labels[image];
    for (const button of all(gallery, ".open")) one(button, ".target").textContent = `for ${JSON.parse(button.dataset.targets)[image]}`;
    const radio = all(gallery, ".image")[image];
    if (radio) radio.checked = true;
  };
  for (const radio of all(gallery, ".image")) radio.addEventListener("change", () => look(Number(radio.value)));
  for (const radio of all(gallery, ".mode")) radio.addEventListener("change", () => { gallery.dataset.mode = radio.value; });
  one(gallery, ".strength").addEventListener("input", (event) => gallery.style.setProperty("--strength", event.target.value / 100));
  one(gallery, ".find")?.addEventListener("input", (event) => {
    for (const button of all(gallery, ".open")) button.parentElement.hidden = !button.dataset.explainer.toLowerCase().includes(event.target.value.toLowerCase());
  });
  for (const button of all(gallery, ".open")) button.addEventListener("click", () => open(gallery, button, labels, look));
  look(0);
}

let step = () => {};

function open(gallery, button, labels, look) {
  const targets = JSON.parse(button.dataset.targets);
  for (const name of ["--count", "--ratio", "--strength"]) viewer.style.setProperty(name, getComputedStyle(gallery).getPropertyValue(name));
  viewer.classList.toggle("pixels", gallery.classList.contains("pixels"));
  for (const layer of [".base", ".map"]) one(viewer, layer).src = one(button, layer).src;
  one(viewer, "h2").textContent = `${button.dataset.explainer}, trained with ${button.dataset.augmenter}`;
  const turn = (image) => {
    look(image);
    viewer.style.setProperty("--image", image);
    one(viewer, ".base").alt = labels[image];
    one(viewer, ".map").alt = `Map of ${button.dataset.explainer} for ${targets[image]}`;
    one(viewer, ".about").textContent = `The image shows ${labels[image]}; the map is for ${targets[image]}.`;
  };
  const change = (mode) => {
    viewer.dataset.mode = mode;
    for (const radio of all(viewer, ".mode")) radio.checked = radio.value === mode;
  };
  change(gallery.dataset.mode);
  turn(Number(gallery.dataset.image));
  step = (by) => turn((Number(gallery.dataset.image) + by + labels.length) % labels.length);
  viewer.showModal();
}

if (viewer) {
  for (const radio of all(viewer, ".mode")) radio.addEventListener("change", () => { viewer.dataset.mode = radio.value; });
  one(viewer, ".close").addEventListener("click", () => viewer.close());
  one(viewer, ".previous").addEventListener("click", () => step(-1));
  one(viewer, ".next").addEventListener("click", () => step(1));
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.classList.contains("mode")) return; // Arrows move between the three ways to look.
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}
