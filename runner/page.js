"use strict";
// Draws the charts from the JSON of the page, and sorts its tables. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const BOARDS = JSON.parse(document.getElementById("data").textContent);
const GLYPHS = { FASTER: "▲", SAME: "=", SLOWER: "▼", UNRESOLVED: "?" };
// a series has a colour and a marker, so that it can be told without its colour
const MARKS = [
  "M-4.3 0a4.3 4.3 0 1 0 8.6 0a4.3 4.3 0 1 0-8.6 0z",
  "M-3.8-3.8h7.6v7.6h-7.6z",
  "M0-5.4L5.4 0L0 5.4L-5.4 0z",
  "M0-5L5 3.6H-5z",
  "M0 5L5-3.6H-5z",
  "M-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
];
const SHOWN_AT_FIRST = 4;
const NARROW_PX = 560;

function add(parent, name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return parent.appendChild(node);
}

function drawing(parent, width, height, title, description) {
  const svg = add(parent, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const ids = [`title-${drawing.count}`, `description-${drawing.count++}`];
  svg.setAttribute("aria-labelledby", ids[0]);
  svg.setAttribute("aria-describedby", ids[1]);
  add(svg, "title", { id: ids[0] }, title);
  add(svg, "desc", { id: ids[1] }, description);
  return svg;
}
drawing.count = 0;

function mark(parent, solution, x, y, full, hint, scale = 1) {
  const shape = { class: `mark s${solution.series}${full ? " full" : ""}`, d: MARKS[solution.series] };
  const node = add(parent, "path", { ...shape, transform: `translate(${x} ${y}) scale(${scale})` });
  if (hint) add(node, "title", {}, hint);
}

const figures = (value) => (value >= 0.1 && value < 1e5) || value === 0 ? value.toFixed(2) : value.toPrecision(2);
const percent = (share) => `${share < 0.01 ? (100 * share).toPrecision(1) : Math.round(100 * share)} %`;
const visible = (board) => board.solutions.filter((one) => !one.hidden);

function logScale([low, high], [from, to]) {
  const span = Math.log(high / low);
  return (value) => from + ((to - from) * Math.log(value / low)) / span;
}

// 1, 2 and 5 of each decade where there is room for them, else the decades
function ticks([low, high], length) {
  const roomy = length / Math.log10(high / low) > 90;
  const found = [];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade++)
    for (const step of roomy ? [1, 2, 5] : [1]) found.push(Number(`${step}e${decade}`));
  return found.filter((value) => value >= low && value <= high);
}

function extent(values, margin = 1.15) {
  return [Math.min(...values) / margin, Math.max(...values) * margin];
}

function hintOf(solution, cell) {
  const parts = [`${solution.name}, ${cell.shape}: ${figures(cell.speedup)} [${figures(cell.low)}, ${figures(cell.high)}]`];
  parts.push(`${cell.verdict} against ${cell.baseline}`);
  if (cell.time_us) parts.push(`${cell.time_us.toFixed(1)} µs`);
  if (cell.share_of_bound) parts.push(`${percent(cell.share_of_bound)} of the bound`);
  if (cell.waves)
    parts.push(`${cell.programs} programs, ${cell.programs_per_sm} per SM, ${figures(cell.waves)} waves, tail ${cell.tail}`);
  if (cell.launch_bound) parts.push("launch-bound");
  return parts.join("; ");
}

function drawSpeedup(plot, board, width) {
  const shown = visible(board);
  const cellsOf = (solution) => solution.cells.filter((cell) => cell.sweep === plot.dataset.sweep);
  const labels = [...new Set(board.solutions.flatMap(cellsOf).map((cell) => cell.label))];
  const all = board.solutions.flatMap((one) => one.cells);
  if (!shown.length) return;
  // one axis for all sweeps of a board, so that their charts compare
  const domain = extent([0.5, 2, ...all.flatMap((cell) => (cell.speedup ? [cell.low, cell.high] : []))]);
  const narrow = width < NARROW_PX;
  const left = narrow ? 8 : 16 + Math.min(width / 3, 6.7 * Math.max(...all.map((cell) => cell.label.length)));
  const right = width - 62;
  const [top, lane, head] = [22, 17, narrow ? 17 : 0];
  const row = head + lane * shown.length + 7;
  const height = top + row * labels.length + 4;
  const svg = drawing(plot, width, height, `Speed-up per shape, ${plot.dataset.sweep}`, plot.dataset.description);
  const x = logScale(domain, [left + 6, right - 6]);
  labels.forEach((_, i) => i % 2 || add(svg, "rect", { class: "stripe", x: 0, y: top + i * row, width, height: row }));
  for (const value of ticks(domain, right - left)) {
    const line = { class: value === 1 ? "one" : "grid", x1: x(value), x2: x(value), y1: top, y2: height };
    add(svg, "line", line);
    add(svg, "text", { x: x(value), y: 14, "text-anchor": "middle" }, String(value));
  }
  labels.forEach((label, i) => {
    const middle = top + i * row + (narrow ? 15 : row / 2 + 4);
    add(svg, "text", { class: "strong", x: 8, y: middle }, label);
    shown.forEach((solution, j) => {
      const y = top + i * row + head + 3.5 + lane * (j + 0.5);
      const cell = cellsOf(solution).find((one) => one.label === label);
      if (cell) drawCell(svg, solution, cell, x, y, width);
    });
  });
}

function drawCell(svg, solution, cell, x, y, width) {
  const side = { x: width - 8, y: y + 4, "text-anchor": "end" };
  if (!cell.speedup) {
    add(svg, "text", side, cell.reason);
    return;
  }
  const apart = cell.launch_bound ? " apart" : "";
  add(svg, "line", { class: `interval s${solution.series}${apart}`, x1: x(cell.low), x2: x(cell.high), y1: y, y2: y });
  mark(svg, solution, x(cell.speedup), y, cell.verdict === "FASTER", hintOf(solution, cell));
  add(svg, "text", { ...side, class: "strong" }, `${figures(cell.speedup)} ${GLYPHS[cell.verdict]}`);
}

function drawRoofline(plot, board, width) {
  const points = visible(board).flatMap((one) => one.cells.filter((cell) => cell.share_of_bound).map((cell) => [one, cell]));
  if (!points.length) return;
  const intensity = (cell) => cell.flops / cell.min_bytes;
  const tflops = (cell) => cell.flops / cell.time_us / 1e6;
  const { gb_per_s, tflops: peak } = board.roof;
  const ridge = (peak * 1e3) / gb_per_s;
  const xs = extent([ridge, ...points.map(([, cell]) => intensity(cell))], 1.6);
  const ys = extent([peak, ...points.map(([, cell]) => tflops(cell))], 1.6);
  const height = Math.round(Math.min(420, 0.45 * width + 130));
  const [left, right, top, bottom] = [46, width - 12, 10, height - 38];
  const svg = drawing(plot, width, height, "Roofline", plot.dataset.description);
  const [x, y] = [logScale(xs, [left, right]), logScale(ys, [bottom, top])];
  for (const value of ticks(xs, right - left)) {
    add(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: bottom });
    add(svg, "text", { x: x(value), y: bottom + 15, "text-anchor": "middle" }, String(value));
  }
  for (const value of ticks(ys, bottom - top)) {
    add(svg, "line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
    add(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value));
  }
  add(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "FLOP per byte");
  add(svg, "text", { x: left + 6, y: top + 12, class: "strong" }, "TFLOP/s");
  for (const share of [1, 0.1, 0.01]) {
    const floor = Math.max(xs[0], (ys[0] / share / gb_per_s) * 1e3);
    if (floor > ridge) continue;
    const start = `M${x(floor)} ${y((share * floor * gb_per_s) / 1e3)}`;
    add(svg, "path", { class: share === 1 ? "roof" : "share", d: `${start}L${x(ridge)} ${y(share * peak)}H${right}` });
    const name = share === 1 ? `${peak.toFixed(0)} TFLOP/s` : percent(share);
    add(svg, "text", { x: right - 4, y: y(share * peak) + 14, "text-anchor": "end" }, name);
  }
  for (const [one, cell] of points)
    mark(svg, one, x(intensity(cell)), y(tflops(cell)), !cell.launch_bound, hintOf(one, cell), 0.8);
}

function drawWaves(plot, board) {
  for (const solution of visible(board)) {
    const cells = solution.cells.filter((cell) => cell.sweep === "waves" && cell.time_us && cell.waves);
    const families = new Map();
    for (const cell of cells) {
      const name = cell.label.slice(0, cell.label.lastIndexOf("-"));
      families.set(name, [...(families.get(name) ?? []), cell]);
    }
    for (const [name, steps] of families) drawStairs(plot, solution, name, steps, board.target_sms);
  }
}

// a tread per shape, as high as its time; an edge where a shape needs more rounds than the one before
function drawStairs(plot, solution, name, steps, target_sms) {
  const [width, height, top, bottom] = [166, 146, 44, 112];
  const wavesOf = (cell, sms) => `${figures(cell.programs / sms / cell.programs_per_sm)} waves of ${sms} SMs`;
  const waves = (cell) => [...new Set([cell.sms, target_sms])].map((sms) => wavesOf(cell, sms)).join(", ");
  const said = steps.map((cell) => `${cell.programs} programs, ${waves(cell)}, ${cell.time_us.toFixed(1)} µs`);
  const svg = drawing(plot, width, height, `${solution.name}, ${name}`, said.join("; "));
  add(svg, "rect", { class: "stripe", width, height, rx: 6 });
  mark(svg, solution, 13, 14, true);
  add(svg, "text", { class: "strong", x: 23, y: 18 }, name);
  add(svg, "line", { class: "grid", x1: 6, x2: width - 6, y1: bottom, y2: bottom });
  const tread = (width - 12) / steps.length;
  const highest = Math.max(...steps.map((cell) => cell.time_us));
  const y = (cell) => bottom - ((bottom - top) * cell.time_us) / highest;
  const path = steps.map((cell, i) => `${i ? "L" : "M"}${6 + i * tread} ${y(cell)}h${tread}`).join("");
  add(svg, "path", { class: `tread s${solution.series}`, d: path });
  steps.forEach((cell, i) => {
    const middle = { x: 6 + (i + 0.5) * tread, "text-anchor": "middle" };
    add(add(svg, "text", { ...middle, y: y(cell) - 5, class: "strong" }, cell.time_us.toFixed(0)), "title", {}, said[i]);
    add(svg, "text", { ...middle, y: bottom + 14 }, String(cell.programs));
    add(svg, "text", { ...middle, y: bottom + 27 }, `${cell.waves.toFixed(cell.waves < 10 ? 2 : 1)}w`);
    if (!i) return;
    const x = 6 + i * tread;
    const mine = edge(steps[i - 1], cell, cell.sms);
    if (mine) add(svg, "line", { class: mine, x1: x, x2: x, y1: 26, y2: bottom });
    // beside the card's, for both may lie between the same steps
    const aimed = cell.sms === target_sms ? "" : edge(steps[i - 1], cell, target_sms);
    if (aimed) add(svg, "line", { class: `${aimed} target`, x1: x + 3, x2: x + 3, y1: 26, y2: bottom });
  });
}

// what ends on a card of that many SMs between two steps: a wave, or the turn in which all SMs get a program
function edge(before, after, sms) {
  const grows = (slots) => Math.ceil(after.programs / slots) > Math.ceil(before.programs / slots);
  if (grows(sms * after.programs_per_sm)) return "edge";
  return grows(sms) ? "edge inner" : "";
}

const CHARTS = { speedup: drawSpeedup, roofline: drawRoofline, waves: drawWaves };

function draw(plot) {
  const width = Math.floor(plot.getBoundingClientRect().width);
  plot.replaceChildren();
  if (width) CHARTS[plot.dataset.chart](plot, BOARDS[plot.dataset.board], width);
  plot.dataset.width = width;
}

// also sees a chart whose <details> has just been opened
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries)
    if (Math.floor(target.getBoundingClientRect().width) !== Number(target.dataset.width)) draw(target);
});

function drawLegend(legend) {
  const board = BOARDS[legend.dataset.legend];
  board.solutions.forEach((solution, position) => {
    solution.hidden = position >= SHOWN_AT_FIRST;
    const button = legend.appendChild(document.createElement("button"));
    button.type = "button";
    button.setAttribute("aria-pressed", !solution.hidden);
    const icon = add(button, "svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": true });
    mark(icon, solution, 0, 0, true);
    button.append(solution.name);
    button.addEventListener("click", () => {
      solution.hidden = !solution.hidden;
      button.setAttribute("aria-pressed", !solution.hidden);
      document.querySelectorAll(`.plot[data-board="${legend.dataset.legend}"]`).forEach(draw);
    });
  });
}

function sort(header) {
  const [table, column] = [header.closest("table"), header.cellIndex];
  const direction = header.ariaSort === "ascending" ? -1 : 1;
  for (const other of header.parentElement.cells) if (other.ariaSort) other.ariaSort = "none";
  header.ariaSort = direction > 0 ? "ascending" : "descending";
  const keyOf = (row) => row.cells[column].dataset.value;
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.every((row) => keyOf(row) === undefined || !Number.isNaN(Number(keyOf(row))));
  const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en"));
  // what has no value stays at the end in either direction
  rows.sort((a, b) => {
    const [first, second] = [keyOf(a), keyOf(b)];
    if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
    return direction * compare(first, second);
  });
  table.tBodies[0].append(...rows);
}

document.querySelectorAll(".legend").forEach(drawLegend);
document.querySelectorAll(".plot").forEach((plot) => observer.observe(plot));
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
