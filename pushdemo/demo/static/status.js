/** The status page: puts the figures of each message in the place of those before. */

import { describe } from "./states.js";
import { subscribe } from "../static/push.js";

const byId = (id) => document.getElementById(id);
const { url, heartbeat } = byId("status").dataset;
const NUMBERS = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const SIZES = ["B", "kB", "MB", "GB", "TB"];

function show({ content: report }) {
  for (const figure of document.querySelectorAll("[data-figure]")) {
    figure.textContent = textOf(valueOf(report, figure.dataset.figure), figure.dataset.unit);
  }
  byId("trouble").hidden = !report.trouble;
  for (const table of document.querySelectorAll("table[data-rows]")) fill(table, report[table.dataset.rows]);
  hint();
}

/** The value at a path such as "total.clients". */
function valueOf(report, path) {
  return path.split(".").reduce((value, name) => value[name], report);
}

function fill(table, rows) {
  const columns = [...table.querySelectorAll("thead th")];
  table.tBodies[0].replaceChildren(...rows.map((row) => rowOf(row, columns)));
  const wrap = table.parentElement;
  wrap.hidden = rows.length === 0;
  wrap.previousElementSibling.hidden = rows.length > 0; // which says that there are none
}

function rowOf(row, columns) {
  const made = document.createElement("tr");
  columns.forEach(({ className, dataset }, place) => {
    const cell = document.createElement(place ? "td" : "th");
    if (!place) cell.scope = "row";
    if (className) cell.className = className;
    cell.textContent = textOf(row[dataset.field], dataset.unit);
    made.append(cell);
  });
  return made;
}

/** A figure for people; demo/status.py does the same. */
function textOf(value, unit) {
  if (value === null) return "–";
  if (typeof value !== "number") return value;
  if (unit === "seconds") return duration(value);
  return unit ? size(value) + unit.replace("bytes", "") : NUMBERS.format(value);
}

function size(count) {
  const power = Math.min(SIZES.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  const number = count / 1000 ** power;
  return `${NUMBERS.format(power ? number : Math.round(number))} ${SIZES[power]}`;
}

function duration(seconds) {
  const whole = Math.floor(seconds);
  const part = (length, of = Infinity) => Math.floor(whole / length) % of;
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${part(60)} min ${part(1, 60)} s`;
  if (whole < 86_400) return `${part(3600)} h ${part(60, 60)} min`;
  return `${part(86_400)} d ${part(3600, 24)} h`;
}

/** Says which tables are wider than their place. */
function hint() {
  for (const wrap of document.querySelectorAll(".table-wrap")) {
    wrap.classList.toggle("scrolls", wrap.scrollWidth > wrap.clientWidth + 1);
  }
}

addEventListener("resize", hint);
hint();
subscribe(url, {
  onmessage: show,
  onstate: (told) => {
    byId("state").dataset.state = told.state;
    byId("state").textContent = describe(told);
  },
  acrossTabs: "demo",
  heartbeat: 1000 * Number(heartbeat),
});
