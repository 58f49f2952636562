/** The front page: puts each message into the list, says how the connection does, and lets a visitor change it. */

import { subscribe } from "../static/push.js";

const LONGEST_LIST = 200;
const NAMES = { multipart: "multipart", sse: "server-sent events", jsonlines: "JSON lines", longpoll: "long polling" };

const byId = (id) => document.getElementById(id);
const { url, heartbeat } = byId("push").dataset;
const switches = byId("transports").elements;
const counts = { received: 0, missed: 0, used: new Set() };
let subscription;
let transport;
let last; // the number of the last message, or undefined where the next may be any
let countdown;

function connect() {
  const lastEventId = subscription?.lastEventId;
  subscription?.close();
  const handlers = { onmessage: show, onstate: showState, onreset: showReset };
  const options = { transport: switches.transport.value, lastEventId, heartbeat: 1000 * Number(heartbeat) };
  subscription = subscribe(url, { ...options, ...handlers });
}

function show({ id, content }) {
  count(id);
  const item = document.createElement("li");
  item.append(element("span", textOf(content)), details(id));
  const list = byId("container");
  list.prepend(item);
  while (list.children.length > LONGEST_LIST) list.lastElementChild.remove();
}

/** The text of a `<message>` document. */
function textOf(xml) {
  const root = new DOMParser().parseFromString(xml, "application/xml").documentElement;
  return root.nodeName === "message" ? root.textContent : xml;
}

function details(id) {
  const now = new Date();
  const time = element("time", now.toLocaleTimeString());
  time.dateTime = now.toISOString();
  const tag = element("span", document.querySelector(`input[value=${transport}]`).parentElement.textContent);
  tag.className = "tag";
  const line = element("span");
  line.append(element("span", `#${numberOf(id)}`), tag, time);
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
  byId("state-text").textContent = describe(told);
  byId("countdown").textContent = "";
  if (told.state === "waiting" && told.retry !== undefined) countDown(performance.now() + told.retry);
  byId("why").textContent = told.reason ? sentence(told.reason) : "";
}

function describe({ state, transport }) {
  return {
    connecting: "Connecting",
    live: `Live by ${NAMES[transport]}`,
    failing: "The source fails; the server goes on trying",
    stale: "Stale: nothing comes",
    waiting: "Connection lost",
    paused: "Paused while hidden",
    ended: "Ended: the source is finished",
    failed: "Refused",
  }[state];
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
