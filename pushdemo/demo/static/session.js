/**
 * A button that begins a session of a `json_yield` view and ends it, and a line that says how the session does.
 *
 * Both pages that read a session from its beginning use it: it makes the keys, and ends the session with the page.
 */

import { cancel, leave, newKey, poll } from "../static/poll.js";

/**
 * @param {object} options
 * @param {string} options.url  the view
 * @param {number} [options.max]  see poll()
 * @param {HTMLButtonElement} options.button
 * @param {HTMLElement} options.state  a live region
 * @param {{start: string, live: string, done: string}} options.words  for the button, and for the session's states
 * @param {(answers: AsyncIterable, signal: AbortSignal) => Promise<void>} options.read  shows one session's answers
 * @returns {() => Promise<void>}  begins a session
 */
export function sessionButton({ url, max, button, state, words, read }) {
  let running; // the session that is being read, or undefined

  async function run() {
    const session = { key: newKey(), stopping: new AbortController() };
    const { signal } = session.stopping;
    running = session;
    show("connecting", "Starting", "Stop");
    try {
      await read(told(poll(url, { key: session.key, max, signal, onretry })), signal);
      finish("done", words.done);
    } catch (error) {
      if (!signal.aborted) finish("failed", `Stopped: ${error.message}`);
    }
  }

  async function* told(answers) {
    for await (const answer of answers) {
      show("live", words.live, "Stop");
      yield answer;
    }
  }

  function stop(end) {
    if (!running) return;
    running.stopping.abort();
    // Where the server is out of reach, it closes the session when that has been idle for too long.
    Promise.resolve(end(url, running.key)).catch(() => {});
    finish("stopped", "Stopped");
  }

  function finish(name, text) {
    running = undefined;
    show(name, text, words.start);
  }

  function onretry({ reason, pause }) {
    show("waiting", `Asking again in ${Math.ceil(pause / 1000)} s: ${reason}`, "Stop");
  }

  /** Sets only what has changed: each setting of a live region's text is read out. */
  function show(name, text, action) {
    state.dataset.state = name;
    if (state.textContent !== text) state.textContent = text;
    button.textContent = action;
  }

  button.addEventListener("click", () => (running ? stop(cancel) : run()));
  window.addEventListener("pagehide", () => stop(leave));
  return run;
}
