/** A room: shows what is said and how many are there, and sends what the visitor says without leaving the page. */

import { describe } from "./states.js";
import { subscribe } from "../static/push.js";

const LONGEST_LIST = 200;

const byId = (id) => document.getElementById(id);
const { url, heartbeat } = byId("room").dataset;
const form = byId("say");

function show({ topic, content }) {
  if (topic?.startsWith("there.")) return showThere(content);
  const said = new DOMParser().parseFromString(content, "application/xml").documentElement.textContent;
  const [, name, text] = /^([^:]*): (.*)$/s.exec(said) ?? [undefined, "", said];
  const item = document.createElement("li");
  item.append(element("strong", name), element("span", text));
  item.classList.toggle("own", name === form.elements.name.value.trim());
  const list = byId("said");
  const feed = byId("said-feed");
  const atEnd = feed.scrollHeight - feed.scrollTop - feed.clientHeight < 40;
  list.append(item);
  while (list.children.length > LONGEST_LIST) list.firstElementChild.remove();
  if (atEnd) feed.scrollTop = feed.scrollHeight;
}

function showThere(count) {
  byId("there").hidden = false;
  byId("there").textContent = count === 1 ? "You alone are here" : `${count} are here`;
}

function showReset() {
  const item = element("li", "Some messages were missed here: the server has forgotten them.");
  item.className = "break";
  byId("said").append(item);
}

function showState(told) {
  byId("state").dataset.state = told.state;
  byId("state").textContent = describe(told);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

async function say(event) {
  event.preventDefault();
  byId("why").textContent = "";
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: new FormData(form),
      headers: { Accept: "text/plain" },
    });
    if (!response.ok) throw new Error(lastLine(await response.text()));
    form.elements.text.value = "";
    sessionStorage.setItem("name", form.elements.name.value);
  } catch (error) {
    byId("why").textContent = `Not said: ${error.message}`;
  }
  form.elements.text.focus();
}

/** Pyramid's plain text of an error: status, an explanation, and at the end what this one is. */
function lastLine(text) {
  return text.trim().split("\n").at(-1).trim();
}

form.elements.name.value = sessionStorage.getItem("name") ?? "";
form.addEventListener("submit", say);
subscribe(url, { onmessage: show, onstate: showState, onreset: showReset, heartbeat: 1000 * Number(heartbeat) });
