// The page of a bench, and of objects alone: charts, sortable tables, objects to rotate. All that comes from outside is set as text, never as HTML.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function element(name, values = {}, ...children) {
  const space = ["svg", "g", "path", "line", "circle", "text", "rect"].includes(name);
  const made = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A row of buttons of which one is pressed; `chosen` is told its number.
function buttons(bar, contents, chosen) {
  const made = contents.map((content) => element("button", { type: "button" }, content));
  const press = (number) => {
    made.forEach((button, at) => button.setAttribute("aria-pressed", String(at === number)));
    chosen(number);
  };
  made.forEach((button, at) => button.addEventListener("click", () => press(at)));
  bar.replaceChildren(...made);
  return press;
}

const number = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

// ---- charts

const WIDTH = 560, HEIGHT = 340, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 44;
const FAR = 8; // an axis is logarithmic if the largest value is more than this times the smallest

function linear(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

// The same for a logarithmic axis; what is not above 0 lies at its lower end.
function logarithmic(low, high, from, to) {
  const place = linear(Math.log(low), Math.log(high), from, to);
  return (value) => place(Math.log(Math.max(value, low)));
}

function ticks(low, high, count = 5) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) found.push(at * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  const wide = high / low > 100;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const one of wide ? [1] : [1, 2, 5]) found.push(one * 10 ** power);
  }
  return found.filter((value) => value >= low && value <= high);
}

// The axis of a chart: where a value lies, and [value, text] of its ticks.
function axisOf(kind, values) {
  const [from, to] = [LEFT, WIDTH - RIGHT];
  if (kind === "steps") {
    const all = [...new Set(values)].sort((a, b) => a - b);
    const place = linear(-0.5, all.length - 0.5, from, to);
    return { place: (value) => place(all.indexOf(value)), ticks: all.map((value) => [value, String(value)]) };
  }
  let [low, high] = [Math.min(...values) / 1.3, Math.max(...values) * 1.3];
  if (high < 4 * low) [low, high] = [low / 1.5, high * 1.5];
  return { place: logarithmic(low, high, from, to), ticks: logTicks(low, high).map((value) => [value, number(value)]) };
}

// The upright axis: where a value lies, the values of its ticks, and whether it is logarithmic. `ends` are those of intervals.
function valueAxis(values, ends, signed) {
  const [from, to] = [HEIGHT - BOTTOM, TOP], [least, most] = [Math.min(...values), Math.max(...values)];
  if (least > 0 && most > FAR * least) {
    const [low, high] = [least / 1.3, most * 1.3];
    return { place: logarithmic(low, high, from, to), ticks: logTicks(low, high), log: true };
  }
  let [low, high] = [Math.min(...ends, least), Math.max(...ends, most)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [Math.max(low - room, !signed && least >= 0 ? 0 : -Infinity), high + room];
  return { place: linear(low, high, from, to), ticks: ticks(low, high), log: false };
}

// Lines of the chart against `kind` for one measure: label, colour, dashes, points {x, value, low, high, text}.
function linesOf(kind, measure) {
  return DATA.series[kind === "budget" ? "budget" : "cells"].map((line) => ({
    ...line,
    points: line.points.filter((point) => measure in point.values && point[kind] > 0).map((point) => {
      const [value, low, high] = point.values[measure];
      return { x: point[kind], value, low, high, name: point.name };
    }).sort((a, b) => a.x - b.x),
  })).filter((line) => line.points.length);
}

// The levels that a measure has: the teacher's, and others where they lie among the lines.
function levelsOf(measure) {
  const seen = linesOf("steps", measure).flatMap((line) => line.points.flatMap((point) => [point.low, point.high]));
  return DATA.levels.filter((level, at) => {
    const [value] = level.values[measure] ?? [NaN];
    return at === 0 ? value === value : value >= Math.min(...seen) && value <= Math.max(...seen);
  });
}

function chart(kind, words, measure) {
  const lines = linesOf(kind, measure.name), points = lines.flatMap((line) => line.points);
  if (!points.length) return null;
  const shown = levelsOf(measure.name), levels = shown.map((level) => level.values[measure.name][0]);
  const ends = points.flatMap((point) => [point.low, point.high]);
  const upright = valueAxis([...points.map((point) => point.value), ...levels], ends, measure.signed), y = upright.place;
  const x = axisOf(kind, points.map((point) => point.x));
  const clamp = (value) => Math.min(Math.max(y(value), TOP), HEIGHT - BOTTOM);

  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${measure.words} against ${words}` });
  for (const value of upright.ticks) {
    svg.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: "#e7eaee" }));
    svg.append(element("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const [value, text] of x.ticks) {
    svg.append(element("text", { x: x.place(value), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, text));
  }
  svg.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "#9aa4af" }));
  svg.append(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, words));
  if (upright.log) svg.append(element("text", { x: LEFT + 2, y: TOP }, "log scale"));
  for (const level of shown) {
    const [value, from, to] = level.values[measure.name];
    const band = { x: LEFT, width: WIDTH - LEFT - RIGHT, y: clamp(to), height: clamp(from) - clamp(to) };
    svg.append(element("rect", { ...band, fill: "#000", opacity: 0.07 }));
    const at = { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) };
    svg.append(element("line", { ...at, stroke: "#1c2430", "stroke-width": 1.6, "stroke-dasharray": level.dashes }));
  }
  const path = (places) => "M" + places.map(([across, down]) => `${across.toFixed(1)} ${down.toFixed(1)}`).join("L");
  for (const line of lines) {
    const group = element("g", { "data-label": line.label });
    const [top, bottom] = ["high", "low"].map((end) => line.points.map((point) => [x.place(point.x), clamp(point[end])]));
    group.append(element("path", { d: path([...top, ...bottom.reverse()]) + "Z", fill: line.colour, opacity: 0.13 }));
    for (const point of line.points) {
      const at = x.place(point.x);
      const bar = { x1: at, x2: at, y1: clamp(point.low), y2: clamp(point.high), stroke: line.colour, "stroke-width": 1.4, opacity: 0.5 };
      group.append(element("line", bar));
    }
    const middle = line.points.map((point) => [x.place(point.x), y(point.value)]);
    const stroke = { fill: "none", stroke: line.colour, "stroke-width": 2.4, "stroke-dasharray": line.dashes };
    group.append(element("path", { d: path(middle), ...stroke }));
    line.points.forEach((point, at) => {
      const spread = point.high > point.low ? ` (${number(point.low)} to ${number(point.high)})` : "";
      const across = kind === "steps" ? "" : `\n${words.replace(" (log scale)", "")}: ${number(point.x)}`;
      const text = `${point.name}\n${measure.words}: ${number(point.value)}${spread}${across}`;
      const dot = element("circle", { class: "point", cx: middle[at][0], cy: middle[at][1], r: 5, fill: line.colour,
                                      stroke: "#fff", "stroke-width": 1.5, tabindex: 0, role: "img", "aria-label": text });
      for (const name of ["pointerenter", "focus", "click"]) dot.addEventListener(name, () => tip(svg, dot, text, line.label));
      for (const name of ["pointerleave", "blur"]) dot.addEventListener(name, () => tip(svg));
      group.append(dot);
    });
    svg.append(group);
  }
  return element("figure", {}, svg);
}

// Show what a point says, and its line alone; without a point take both back.
function tip(svg, dot, text, label) {
  find("tip")?.remove();
  highlight(label);
  if (!dot) return;
  const figure = svg.parentNode, box = figure.getBoundingClientRect(), at = dot.getBoundingClientRect();
  const made = element("div", { id: "tip" }, text);
  figure.append(made);
  const left = Math.min(Math.max(at.left - box.left - made.offsetWidth / 2, 0), box.width - made.offsetWidth);
  const above = at.top - box.top - made.offsetHeight - 8;
  made.style.left = `${left}px`;
  made.style.top = `${above < 0 ? at.bottom - box.top + 8 : above}px`;
}

function highlight(label) {
  for (const group of document.querySelectorAll("#panels g")) {
    group.classList.toggle("faded", label !== undefined && group.dataset.label !== label);
  }
}

function legend(measure) {
  const swatch = (colour, dashes) => element("svg", { viewBox: "0 0 38 12", "aria-hidden": "true" },
    element("line", { x1: 1, x2: 37, y1: 6, y2: 6, stroke: colour, "stroke-width": 2.6, "stroke-dasharray": dashes }));
  const lines = DATA.series.cells.map((line) => {
    const item = element("li", {}, swatch(line.colour, line.dashes), line.label);
    item.addEventListener("pointerenter", () => highlight(line.label));
    item.addEventListener("pointerleave", () => highlight());
    return item;
  });
  const levels = levelsOf(measure).map((level) => element("li", {}, swatch("#1c2430", level.dashes), level.label));
  find("legend").replaceChildren(...lines, ...levels);
}

function charts() {
  const kinds = [["steps", "sampling steps"], ["milliseconds", "sampling time, ms per sample (log scale)"],
                 ["budget", "training, network evaluations (log scale)"]];
  const measures = DATA.measures.filter((measure) => linesOf("steps", measure.name).length);
  if (!measures.length) return;
  find("charts").hidden = false;
  const press = buttons(find("measures"), measures.map((measure) => measure.words), (at) => {
    const measure = measures[at];
    find("panels").replaceChildren(...kinds.map(([kind, words]) => chart(kind, words, measure)).filter(Boolean));
    legend(measure.name);
    find("reading").textContent = `${measure.words}: ${measure.better} is better. ${DATA.interval}`;
  });
  press(0);
}

// ---- tables

// What a cell is sorted by: its first number, else its text.
function sortable(cell) {
  const text = cell.textContent.replace(/(\d),(?=\d{3})/g, "$1"); // 48,000 is one number
  const found = text.match(/-?\d+(\.\d+)?(e[-+]?\d+)?/);
  return found && !/[a-z]/i.test(text.slice(0, found.index)) ? Number(found[0]) : text;
}

function sort(table, column, down) {
  const rows = [...table.tBodies[0].rows].filter((row) => row.cells[0].tagName === "TD");
  const key = (row) => sortable(row.cells[column]);
  const compare = (a, b) => {
    const [one, two] = [key(a), key(b)];
    if (typeof one !== typeof two) return typeof one === "number" ? -1 : 1; // numbers first, either way round
    const found = typeof one === "number" ? one - two : one.localeCompare(two);
    return down ? -found : found;
  };
  table.tBodies[0].append(...rows.sort(compare));
}

function tables() {
  for (const table of document.querySelectorAll("table")) {
    [...table.querySelectorAll("th")].forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
      });
    });
  }
}

// ---- objects

async function bytesOf(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

function objects() {
  if (!DATA.exhibits.length) return;
  find("viewer").hidden = false;
  let turntable;
  try {
    turntable = viewer.create();
  } catch (error) {
    find("trouble").hidden = false;
    find("trouble").textContent = `The objects cannot be shown in this browser: ${error.message}`;
    return;
  }
  const models = new Map(); // by their text: each is unpacked once
  const model = (text) => {
    if (!models.has(text)) models.set(text, bytesOf(text).then(viewer.load));
    return models.get(text);
  };
  let exhibit = DATA.exhibits[0], panes = [];

  async function fill(pane) {
    const text = pane.row === null ? exhibit.truth : exhibit.models[pane.row];
    pane.nothing.hidden = Boolean(text);
    const found = text ? await model(text) : null;
    if (text === (pane.row === null ? exhibit.truth : exhibit.models[pane.row])) turntable.show(pane.canvas, found);
  }

  function pane(row) {
    const canvas = element("canvas", { tabindex: 0, role: "img" });
    const nothing = element("div", { class: "nothing", hidden: "" }, "nothing");
    const made = { row, canvas, nothing };
    let caption = "true object";
    if (row !== null) {
      const options = DATA.rows.map((one, at) => element("option", { value: at }, one.label));
      caption = element("select", { "aria-label": "method and steps" }, ...options);
      caption.selectedIndex = row;
      caption.addEventListener("change", () => {
        made.row = caption.selectedIndex;
        name();
        fill(made);
      });
    }
    const name = () => canvas.setAttribute("aria-label", made.row === null ? "true object" : DATA.rows[made.row].label);
    name();
    made.figure = element("figure", {}, canvas, nothing, element("figcaption", {}, caption));
    return made;
  }

  function show(rows) {
    panes.forEach((one) => turntable.remove(one.canvas));
    const truth = DATA.exhibits.some((one) => one.truth) ? [null] : [];
    panes = [...truth, ...rows].map(pane);
    const figures = panes.map((one) => one.figure);
    if (DATA.exhibits.some((one) => one.picture)) {
      const picture = element("img", { src: exhibit.picture, alt: "picture that the object is made from" });
      figures.unshift(element("figure", {}, picture, element("figcaption", {}, "picture")));
    }
    find("panes").replaceChildren(...figures);
    panes.forEach(fill);
  }

  const of = (group) => DATA.rows.flatMap((row, at) => (row.group === group ? [at] : []));
  const [first, ...groups] = new Set(DATA.rows.map((row) => row.group)); // the teacher's, then one a step count
  const choices = [["overview", DATA.overview], ...groups.map((group) => [group, [...of(first), ...of(group)]])];
  const shown = DATA.exhibits.map((one) => (one.picture ? element("img", { src: one.picture, alt: one.name }) : one.name));
  const pick = buttons(find("exhibits"), shown, (at) => {
    exhibit = DATA.exhibits[at];
    const picture = document.querySelector("#panes img");
    if (picture) picture.src = exhibit.picture;
    turntable.reset(exhibit.azimuth);
    panes.forEach(fill);
  });
  find("exhibits").hidden = DATA.exhibits.length === 1 && !DATA.exhibits[0].picture;
  find("choices").hidden = choices.length === 1;
  buttons(find("choices"), choices.map(([name]) => name), (at) => show(choices[at][1]))(0);
  pick(0);
}

charts();
tables();
objects();
