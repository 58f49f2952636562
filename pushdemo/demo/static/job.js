/**
 * The page of the job: starts it, shows how far it is, cancels it, and comes back to it.
 *
 * The key is in the address after the #, so that a reload, a bookmark or another window finds the same job. A page that
 * closes leaves the job alone, for it may come back; the server forgets it when nobody has asked for a while.
 */

import { Refusal, cancel, newKey, poll } from "../static/poll.js";

const byId = (id) => document.getElementById(id);
const { url } = byId("job").dataset;
const amount = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
let watching; // ends the polls of the job that is shown

const keyInAddress = () => location.hash.slice(1);

function start() {
  // Replacing the address raises no hashchange.
  history.replaceState(null, "", `#${newKey()}`);
  clear();
  watch(0);
}

/** Shows the job of the address, from the item after number `after` on. */
async function watch(after) {
  const key = keyInAddress();
  watching = new AbortController();
  const { signal } = watching;
  show("connecting", "Asking the server", { running: true });
  try {
    for await (const { content } of answers(key, after, signal)) {
      showProgress(content);
      show("live", "Hashing", { running: true });
      if (content.digests) show("done", "Finished", { running: false });
    }
  } catch (error) {
    if (!signal.aborted) show("failed", explain(error), { running: false });
  }
}

/** The job's answers; where another window has gone further, they go on from there. */
async function* answers(key, after, signal) {
  for (;;) {
    try {
      return yield* poll(url, { key, after, signal, onretry });
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 410 && error.count > after)) throw error;
      after = error.count - 1;
    }
  }
}

/** Asking for what follows the first item begins no job: where there is none any more, the server says so. */
function comeBack() {
  watching?.abort();
  clear();
  if (keyInAddress()) watch(1);
  else show("idle", "Not started", { running: false });
}

async function stop() {
  watching.abort();
  try {
    await cancel(url, keyInAddress());
  } catch (error) {
    return show("failed", `Not cancelled: ${error.message}`, { running: true });
  }
  history.replaceState(null, "", location.pathname);
  show("stopped", "Cancelled", { running: false });
}

function explain(error) {
  const unknown = error.status === 410 && error.count === 0;
  if (unknown) return "The server does not know this job: it was cancelled, or nobody had asked for too long";
  return error.status === 410 ? "This job was cancelled" : `Stopped: ${error.message}`;
}

function clear() {
  byId("bar").value = 0; // without a value Firefox shows it full
  for (const id of ["files", "bytes", "rate", "left"]) byId(id).textContent = "–";
  byId("percent").textContent = "";
  byId("result").hidden = true;
}

function showProgress(job) {
  const bar = byId("bar");
  bar.max = job.total_bytes;
  bar.value = job.bytes;
  byId("percent").textContent = `${Math.floor((100 * job.bytes) / job.total_bytes)} %`;
  byId("files").textContent = `${amount.format(job.files)} of ${amount.format(job.total_files)}`;
  byId("bytes").textContent = `${short.format(job.bytes / 1e6)} of ${short.format(job.total_bytes / 1e6)} MB`;
  byId("rate").textContent = job.bytes_per_second ? `${short.format(job.bytes_per_second / 1e6)} MB/s` : "–";
  byId("left").textContent = job.seconds_left === null ? "–" : `${short.format(job.seconds_left)} s`;
  if (job.digests) showDigests(job.digests);
}

function showDigests(digests) {
  const rows = Object.entries(digests).map(([algorithm, digest]) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    const cell = document.createElement("td");
    name.scope = "row";
    name.textContent = algorithm;
    cell.className = "digest";
    cell.textContent = digest;
    row.append(name, cell);
    return row;
  });
  byId("digests").replaceChildren(...rows);
  byId("result").hidden = false;
}

function onretry({ reason, pause }) {
  show("waiting", `Asking again in ${Math.ceil(pause / 1000)} s: ${reason}`, { running: true });
}

/** Sets only what has changed: each setting of a live region's text is read out. */
function show(state, words, { running }) {
  byId("state").dataset.state = state;
  if (byId("state").textContent !== words) byId("state").textContent = words;
  const [enabled, disabled] = running ? [byId("cancel"), byId("start")] : [byId("start"), byId("cancel")];
  enabled.disabled = false;
  if (document.activeElement === disabled) enabled.focus(); // a disabled button would lose it
  disabled.disabled = true;
}

byId("start").addEventListener("click", start);
byId("cancel").addEventListener("click", stop);
window.addEventListener("hashchange", comeBack);
comeBack();
