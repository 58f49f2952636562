/** The load's page: the figures beside the picture, which moves by itself. */

import { describe } from "./states.js";
import { subscribe } from "../static/push.js";

const byId = (id) => document.getElementById(id);
const { url, heartbeat } = byId("load").dataset;
const PICTURES = [...document.querySelectorAll("picture > *")].map((element) => {
  const attribute = element.localName === "img" ? "src" : "srcset";
  return [element, attribute, element.getAttribute(attribute)];
});
let lost = false; // the picture's connection, with the figures'

/** A line is `name: value; name: value`. */
function show({ content }) {
  const line = new DOMParser().parseFromString(content, "application/xml").documentElement.textContent;
  for (const figure of line.split("; ")) {
    const [name, value] = figure.split(": ");
    const shown = document.querySelector(`[data-figure="${CSS.escape(name)}"]`);
    if (shown) shown.textContent = value;
  }
}

function showState(told) {
  byId("state").dataset.state = told.state;
  byId("state").textContent = describe(told);
  if (told.state === "waiting") lost = true;
  if (told.state === "live" && lost) renew();
}

/** An image does not come back by itself when its connection was lost. */
function renew() {
  lost = false;
  const version = Date.now().toString(36);
  for (const [element, attribute, address] of PICTURES) element[attribute] = address.replace(/v=\w+$/, `v=${version}`);
}

/** A page that was left may be kept to come back to, and its picture would go on in the background. */
function rest() {
  lost = true;
  for (const [element, attribute] of PICTURES) element.removeAttribute(attribute);
}

addEventListener("pagehide", rest);
subscribe(url, { onmessage: show, onstate: showState, acrossTabs: "demo", heartbeat: 1000 * Number(heartbeat) });
