/**
 * Reads a `json_yield` view as the generator that it is: one poll an item, none lost and none twice.
 *
 *   for await (const { content, count } of poll("/prime", { key: newKey() })) ...
 *
 * Each poll says how many items the page has, so an answer that got lost is given again. What lives here: the polls and
 * when to repeat one. What must not: the page.
 */

import { ELSEWHERE, duration, growingPause, isRedirected, retryAfter } from "./retry.js";

/**
 * @typedef {object} Requests  how the requests are made
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers]  a function is called before each one
 * @property {RequestCredentials} [credentials]  as `fetch` has it
 *
 * @typedef {object} Session
 * @property {string} key  names the session; a new key begins one
 * @property {number} [after]  how many of its items the page has already
 * @property {number} [max]  up to how many items to take at once; `content` is then a list
 * @property {AbortSignal} [signal]  ends the polls; the session lives on until its timeout, see `cancel`
 * @property {(retry: {reason: string, pause: number}) => void} [onretry]  a poll failed and comes again in `pause` ms
 */
const PAUSES = { first: 500, longest: 15_000 }; // ms
const LASTING = 2; // failures in a row, after which the next one may be more than a lost connection
const MISDIRECTED = 421; // the session is in another process, to which a balancer may send the next poll
const MISDIRECTED_PAUSES = { first: 250, longest: 250 }; // ms
const MISDIRECTED_FOR = 5_000; // ms from the first such answer until it is final
const PASSING = new Set([408, 409, 429, 502, 503, 504]); // the same poll may succeed later

/**
 * The server will not answer this poll, now or later. `message` has its reason; `status` is the HTTP status, `count` the
 * session's number of items, `address` where a page came from in place of the answer, such as a login page.
 */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {{reason?: string, count?: number, address?: string}} body
   */
  constructor(status, { reason, count = 0, address }) {
    super(reason ?? `the server answered ${status}`);
    this.status = status;
    this.count = count;
    this.address = address;
  }
}

/**
 * Yields the answers of a generator session, until its generator ends.
 *
 * @param {string|URL} url  the view
 * @param {Session & Requests} options
 * @returns {AsyncGenerator<{content: any, count: number}, any, undefined>}  it returns what the generator has returned
 * @throws {Refusal}
 * @throws {TypeError} for an option that cannot be
 */
export async function* poll(url, { key, after = 0, max, signal, onretry = () => {}, ...requests }) {
  checkCount("after", after, 0);
  if (max !== undefined) checkCount("max", max, 1);
  for (;;) {
    const answer = await ask(addressOf(url, { key, after, ...(max && { max }) }), { signal, onretry, requests });
    if (answer.state === "done") return answer.content;
    after = answer.count;
    yield answer;
  }
}

function checkCount(name, value, least) {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new TypeError(`${name} ${String(value)}: must be a whole number, ${least} or more`);
}

/**
 * Returns a key that nobody guesses. `crypto.randomUUID` exists on https and on localhost only.
 *
 * @returns {string}
 */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Ends a session: its generator's work stops at its next `yield`.
 *
 * @param {string|URL} url
 * @param {string} key
 * @param {Requests} [requests]
 * @returns {Promise<void>}
 * @throws {Refusal}
 */
export async function cancel(url, key, requests = {}) {
  const init = { ...(await prepared(requests)), method: "DELETE", keepalive: true };
  const response = await fetch(addressOf(url, { key }), init);
  if (!response.ok) throw new Refusal(response.status, await response.json().catch(() => ({})));
  if (response.redirected) throw stranger(response);
}

/**
 * Ends a session while the page closes, when nothing waits for an answer any more. It sends no headers.
 *
 * @param {string|URL} url
 * @param {string} key
 * @returns {void}
 */
export function leave(url, key) {
  navigator.sendBeacon(addressOf(url, { key, close: "1" }));
}

/**
 * Waits `ms`. Where `signal` is aborted before, it throws the signal's reason.
 *
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function sleep(ms, signal) {
  const delay = duration("sleep", ms, 0);
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, delay);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The view's address with these parameters; it may have some of its own. */
function addressOf(url, parameters) {
  const [address] = String(url).split("#");
  return `${address}${address.includes("?") ? "&" : "?"}${new URLSearchParams(parameters)}`;
}

async function ask(address, { signal, onretry, requests }) {
  let misdirectedSince;
  for (let failures = 0; ; failures += 1) {
    const { answer, refusal, reason, told = 0, init } = await attempt(address, signal, requests);
    if (answer) return answer;
    if (init && failures >= LASTING && (await isRedirected(address, init))) {
      throw new Refusal(302, { reason: ELSEWHERE });
    }
    let pauses = PAUSES;
    if (refusal?.status === MISDIRECTED) {
      // fetch itself has tried another connection (Fetch standard, section 4.6).
      misdirectedSince ??= performance.now();
      if (performance.now() - misdirectedSince >= MISDIRECTED_FOR) throw refusal;
      pauses = MISDIRECTED_PAUSES;
    }
    const pause = Math.max(growingPause(failures, pauses), told);
    onretry({ reason, pause });
    await sleep(pause, signal);
  }
}

/** Makes one request. Returns its answer, or why there is none yet; throws what will not change by asking again. */
async function attempt(address, signal, requests) {
  let response, init;
  try {
    // no-store: Firefox lets a second request for one address wait for the first.
    init = { ...(await prepared(requests)), cache: "no-store", signal };
    response = await fetch(address, init);
    if (response.ok && isJson(response)) return { answer: await response.json() };
  } catch (error) {
    signal?.throwIfAborted();
    return { reason: error.message, init };
  }
  if (response.ok) throw stranger(response);
  const body = await response.json().catch(() => ({}));
  const refusal = new Refusal(response.status, body);
  if (response.status !== MISDIRECTED && !PASSING.has(response.status)) throw refusal;
  return { refusal, reason: refusal.message, told: retryAfter(response) };
}

async function prepared({ headers, credentials }) {
  return { headers: typeof headers === "function" ? await headers() : headers, credentials };
}

function isJson(response) {
  return (response.headers.get("Content-Type") ?? "").toLowerCase().startsWith("application/json");
}

/** What a successful answer of another kind means: a login page, say. */
function stranger({ status, url, headers }) {
  const reason = `expected application/json, got ${headers.get("Content-Type") ?? "no type"} from ${url}`;
  return new Refusal(status, { reason, address: url });
}
