// The orders of a room: the page has them already; the stream goes on where the page ends.
import { subscribe } from "/push/push.js";

const orders = document.getElementById("orders");
const { url, stream, user, token, lastEventId } = orders.dataset;
const form = document.getElementById("new");

function draw({ id, item, state, version }) {
  let row = orders.querySelector(`[data-id="${id}"]`);
  if (row && Number(row.dataset.version) >= version) return; // a message may repeat what the page shows
  if (!row) row = orders.appendChild(document.createElement("tr"));
  Object.assign(row.dataset, { id, version });
  const cells = [item, state].map((text) => Object.assign(document.createElement("td"), { textContent: text }));
  const last = document.createElement("td");
  if (state === "open") last.append(Object.assign(document.createElement("button"), { textContent: "Done" }));
  row.replaceChildren(...cells, last);
}

async function load({ signal }) {
  const { orders: all, last_event_id } = await (await fetch(url, { signal })).json();
  all.forEach(draw);
  return last_event_id;
}

async function send(address, body) {
  const response = await fetch(address, { method: "POST", headers: { "X-CSRF-Token": token }, body });
  if (!response.ok) document.getElementById("state").textContent = await response.text();
}

subscribe(stream, {
  load,
  lastEventId,
  acrossTabs: user,
  onmessage: ({ content }) => draw(content),
  onstate: ({ state, reason = "" }) => {
    document.getElementById("state").textContent = state === "live" ? "" : `${state} ${reason}`;
  },
});

orders.addEventListener("click", ({ target }) => {
  if (target.matches("button")) send(`${url}/${target.closest("tr").dataset.id}`);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  send(url, new URLSearchParams(new FormData(form)));
  form.reset();
});
