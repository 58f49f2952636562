/** The status page: puts the figures of each message in the place of those before. */

import { describe } from "./states.js";
import { subscribe } from "../static/push.js";

const byId = (id) => document.getElementById(id);
const { url, heartbeat } = byId("status").dataset;
const NUMBERS = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

function show({ content: report }) {
  for (const figure of document.querySelectorAll("[data-figure]")) {
    figure.textContent = textOf(figure.dataset.figure.split(".").reduce((value, name) => value[name], report));
  }
  byId("trouble").hidden = !report.trouble;
  for (const table of document.querySelectorAll("table[data-rows]")) fill(table, report[table.dataset.rows]);
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
    cell.textContent = textOf(row[dataset.field]);
    made.append(cell);
  });
  return made;
}

function textOf(value) {
  if (value === null) return "–";
  return typeof value === "number" ? NUMBERS.format(value) : value;
}

subscribe(url, {
  onmessage: show,
  onstate: (told) => {
    byId("state").dataset.state = told.state;
    byId("state").textContent = describe(told);
  },
  acrossTabs: "demo",
  heartbeat: 1000 * Number(heartbeat),
});
