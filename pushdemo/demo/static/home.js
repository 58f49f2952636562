/** The front page: shows each message, what it is on the wire, and how the connection does; lets a visitor change it. */

import { describe } from "./states.js";
import { subscribe } from "../static/push.js";
import { acceptOf, curlOf, onTheWire } from "./wire.js";

const LONGEST_LIST = 200;
const NAMES = { multipart: "multipart", sse: "server-sent events", jsonlines: "JSON lines", longpoll: "long polling" };

const byId = (id) => document.getElementById(id);
const { url, heartbeat, duration, boundary, address } = byId("push").dataset;
const switches = byId("transports").elements;
const counts = { received: 0, missed: 0, used: new Set() };
let subscription;
let transport;
let last; // the number of the last message, or undefined where the next may be any
let countdown;
let newest; // message

function connect() {
  const lastEventId = subscription?.lastEventId || "earliest"; // so that the list begins with what was sent before
  subscription?.close();
  const handlers = { onmessage: show, onstate: showState, onreset: showReset };
  const chosen = switches.transport.value;
  const options = { transport: chosen, lastEventId, acrossTabs: "demo", heartbeat: 1000 * Number(heartbeat) };
  subscription = subscribe(url, { ...options, ...handlers });
  byId("accept").textContent = acceptOf(chosen);
  byId("curl").textContent = curlOf(address, chosen);
  showWire(chosen);
}

/** Shows what the newest message is by this transport: also at a switch, before the next one comes. */
function showWire(by) {
  if (newest) byId("wire").textContent = onTheWire(newest, by, boundary);
}

function show(message) {
  const { id, content } = message;
  count(id);
  newest = message;
  showWire(transport);
  const { text, gathered } = parse(content);
  const time = element("time", text);
  const made = new Date(text);
  time.dateTime = (Number.isNaN(made.valueOf()) ? new Date() : made).toISOString();
  const item = document.createElement("li");
  item.append(time, details(id, gathered && badge(made - new Date(gathered))));
  const list = byId("container");
  list.prepend(item);
  while (list.children.length > LONGEST_LIST) list.lastElementChild.remove();
}

/** The text of a `<message>` document, and when the data was gathered that goes with it. */
function parse(xml) {
  const root = new DOMParser().parseFromString(xml, "application/xml").documentElement;
  if (root.nodeName !== "message") return { text: xml };
  return { text: root.textContent, gathered: root.getAttribute("gathered") };
}

/** Says how old the data is. Both times are the server's. */
function badge(age) {
  const seconds = Math.round(age / 1000);
  const made = element("span", seconds > 0 ? `cached ${seconds} of ${duration} s` : "gathered now");
  made.className = seconds > 0 ? "tag cached" : "tag fresh";
  return made;
}

function details(id, cached) {
  const tag = element("span", document.querySelector(`input[value=${transport}]`).parentElement.textContent);
  tag.className = "tag";
  const line = element("span");
  line.append(...[cached, tag, element("span", `#${numberOf(id)}`)].filter(Boolean));
  return line;
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** An id is `epoch-number`, and the number counts up by one. */
function numberOf(id) {
  return Number(id.slice(id.lastIndexOf("-") + 1));
}

function count(id) {
  const number = numberOf(id);
  counts.received += 1;
  if (last !== undefined) counts.missed += number - last - 1;
  last = number;
  counts.used.add(transport);
  byId("received").textContent = counts.received;
  byId("missed").textContent = counts.missed;
  byId("used").textContent = `${counts.used.size} of ${Object.keys(NAMES).length}`;
  byId("last").textContent = `#${number}`;
}

/** The server no longer has what came after the last message: the list says so, and goes on with the newest. */
function showReset() {
  last = undefined;
  const item = element("li", "Some messages were missed here: the server has forgotten them.");
  item.className = "break";
  byId("container").prepend(item);
}

function showState(told) {
  transport = told.transport;
  clearInterval(countdown);
  byId("state").dataset.state = told.state === "live" && told.fallback ? "fallback" : told.state;
  byId("state-text").textContent = told.state === "live" ? `Live by ${NAMES[told.transport]}` : describe({ state: told.state });
  byId("countdown").textContent = "";
  if (told.state === "waiting" && told.retry !== undefined) countDown(performance.now() + told.retry);
  byId("why").textContent = told.reason ? sentence(told.reason) : "";
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Once a second, and not through the live region: nobody wants to hear it. */
function countDown(until) {
  const show = () => {
    byId("countdown").textContent = `· again in ${Math.max(0, Math.ceil((until - performance.now()) / 1000))} s`;
  };
  show();
  countdown = setInterval(show, 1000);
}

byId("transports").addEventListener("change", connect);
connect();
