/**
 * Reads a `json_yield` view as the generator that it is: one poll an item, none lost and none twice.
 *
 *   for await (const { content, count } of poll("/prime", { key: newKey() })) ...
 *
 * Each poll says how many items the page has, so an answer that got lost is given again. What lives here: the polls and
 * when to repeat one. What must not: the page.
 */

const FIRST_PAUSE = 500; // ms, doubled at each failure in a row
const LONGEST_PAUSE = 15_000; // ms
const MISDIRECTED = 421; // the session is in another process, to which a balancer may send the next poll
const MISDIRECTED_PAUSE = 200; // ms
const MISDIRECTED_FOR = 5_000; // ms from the first such answer until it is final
const PASSING = new Set([408, 409, 429, 502, 503, 504]); // the same poll may succeed later

/** The server's word that it will not answer this poll, now or later: `status`, its sentence, the session's `count`. */
export class Refusal extends Error {
  constructor(status, { reason, count = 0 }) {
    super(reason ?? `the server answered ${status}`);
    this.status = status;
    this.count = count;
  }
}

/**
 * The answers of a generator session, until its generator ends.
 *
 * @param {string} url  the view
 * @param {object} options
 * @param {string} options.key  names the session; a new key begins one
 * @param {number} [options.after]  how many of its items the page has already
 * @param {number} [options.max]  up to how many items to take at once; `content` is then a list
 * @param {AbortSignal} [options.signal]  ends the polls; the session lives on until its timeout, see `cancel`
 * @param {(retry: {reason: string, pause: number}) => void} [options.onretry]  a poll failed and comes again in `pause` ms
 * @yields {{content: *, count: number}}
 * @returns {*} what the generator has returned
 * @throws {Refusal}
 */
export async function* poll(url, { key, after = 0, max, signal, onretry = () => {} }) {
  for (;;) {
    const query = new URLSearchParams({ key, after, ...(max && { max }) });
    const answer = await ask(`${url}?${query}`, signal, onretry);
    if (answer.state === "done") return answer.content;
    after = answer.count;
    yield answer;
  }
}

/** A key that nobody guesses. `crypto.randomUUID` is there on https and on localhost only. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Ends a session: its generator's work stops at its next `yield`. */
export async function cancel(url, key) {
  const response = await fetch(`${url}?${new URLSearchParams({ key })}`, { method: "DELETE", keepalive: true });
  if (!response.ok) throw new Refusal(response.status, await response.json().catch(() => ({})));
}

/** Ends a session while the page closes, when nothing waits for an answer any more. */
export function leave(url, key) {
  navigator.sendBeacon(`${url}?${new URLSearchParams({ key, close: 1 })}`);
}

/** Waits, unless `signal` ends the wait, which is then an AbortError. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

async function ask(address, signal, onretry) {
  let misdirectedSince;
  for (let failures = 0; ; failures += 1) {
    const { answer, refusal, reason, retryAfter } = await attempt(address, signal);
    if (answer) return answer;
    let growing = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** failures);
    if (refusal?.status === MISDIRECTED) {
      // fetch itself has tried another connection (Fetch standard, section 4.6).
      misdirectedSince ??= performance.now();
      if (performance.now() - misdirectedSince >= MISDIRECTED_FOR) throw refusal;
      growing = MISDIRECTED_PAUSE;
    }
    // Spread, so that the pages of a server that was away do not all come back at the same moment.
    const pause = Math.max(growing * (0.75 + Math.random() / 2), 1000 * retryAfter);
    onretry({ reason, pause });
    await sleep(pause, signal);
  }
}

/** One request: its answer, or why there is none yet; throws what will not change by asking again. */
async function attempt(address, signal) {
  let response;
  try {
    // no-store: Firefox lets a second request for one address wait for the first.
    response = await fetch(address, { cache: "no-store", signal });
    if (response.ok) return { answer: await response.json() };
  } catch (error) {
    signal?.throwIfAborted();
    return { reason: error.message, retryAfter: 0 };
  }
  const body = await response.json().catch(() => ({}));
  const refusal = new Refusal(response.status, body);
  if (response.status !== MISDIRECTED && !PASSING.has(response.status)) throw refusal;
  return { refusal, reason: refusal.message, retryAfter: Number(response.headers.get("Retry-After")) || 0 };
}
