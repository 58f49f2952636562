/**
 * One connection of a subscription: its requests, its silence, and its bytes as they come.
 *
 * What lives here: what every transport needs. What must not: a wire format (push-transports.js), when to connect again
 * (push.js).
 */

import { ELSEWHERE, isRedirected, retryAfter, timerDelay } from "./retry.js";

const LASTING = 2; // failures in a row, after which the next one may be more than a lost connection

/**
 * Why a connection, or a turn of the subscription, is over. `state` is the subscription's next one, or "stalled" or
 * "buffered" for a silent stream, "reset" where the page's state must be loaded again, "again" for nothing special.
 */
export class Stop extends Error {
  constructor(state, code = state, reason = "", detail = {}) {
    super(reason);
    Object.assign(this, { state, code }, detail); // retry (ms), status, address
  }
}

export class Connection {
  constructor(subscription) {
    this.subscription = subscription;
    this.heartbeat = subscription.heartbeat;
    this.controller = new AbortController();
    this.signal = this.controller.signal;
    this.opened = performance.now();
    this.messages = 0; // delivered
    this.bytes = false; // whether any has come
    this.healthy = false; // whether they still flowed when a silent stream would have been given up
    this.failing = false; // whether the server has said that its source fails
    this.retry = undefined; // ms: the pause that the server asked for
  }

  /** Reads until the connection ends. Returns why it ended. */
  async run(read) {
    try {
      await read(this);
      return new Stop("waiting", "server-ended", "the server ended the connection", { retry: this.retry });
    } catch (error) {
      const stop = this.stopped ?? error;
      if (stop instanceof Stop) return stop;
      return new Stop("waiting", "connection-lost", `the connection was lost: ${error.message}`, { retry: this.retry });
    } finally {
      this.stop();
    }
  }

  stop(why) {
    clearTimeout(this.timer);
    this.stopped ??= why;
    this.controller.abort();
  }

  address(parameters = {}) {
    const { url, cursor } = this.subscription;
    const address = new URL(url);
    address.searchParams.delete("transport"); // it would beat Accept, and a stream may need a poll in its place
    const last = cursor.toString();
    if (last) address.searchParams.set("last_event_id", last);
    for (const [name, value] of Object.entries(parameters)) address.searchParams.set(name, value);
    return address;
  }

  /** Whether the page has said that this topic is plain text. */
  isText(topic) {
    const { text } = this.subscription.options;
    return Array.isArray(text) ? text.includes(topic) : text;
  }

  /** Asks for the topic in the format `accept`; throws a Stop where the answer is another. */
  async request(accept, signal = this.signal) {
    const { credentials } = this.subscription.options;
    const headers = await this.headers(accept, signal);
    // Firefox makes a second request for one URL wait until the first has ended, unless neither may use the cache.
    const response = await this.fetch({ cache: "no-store", headers, credentials, signal });
    if (response.status === 204) throw new Stop("ended");
    if (!response.ok) throw await this.refusal(response);
    const type = response.headers.get("Content-Type") ?? "no type";
    if (!type.toLowerCase().startsWith(accept)) throw this.stranger(response, `expected ${accept}, got ${type}`);
    this.subscription.renewed = false;
    return response;
  }

  async fetch(init) {
    try {
      return await fetch(this.address(), init);
    } catch (error) {
      const isLasting = this.subscription.failures >= LASTING && !init.signal.aborted;
      if (isLasting && (await isRedirected(this.address(), init))) throw new Stop("failed", "login", ELSEWHERE);
      throw error;
    }
  }

  async headers(accept, signal) {
    const { headers } = this.subscription.options;
    signal.throwIfAborted();
    this.making = true; // then silence is the page's own
    const over = new AbortController();
    try {
      const isMade = typeof headers !== "function";
      const made = new Headers(isMade ? headers : await Promise.race([headers(), aborted(signal, over.signal)]));
      made.set("Accept", accept);
      return made;
    } catch (error) {
      throw new Stop("waiting", "headers-failed", `the page's headers could not be made: ${error?.message ?? error}`);
    } finally {
      this.making = false;
      over.abort();
      this.signal.throwIfAborted();
    }
  }

  /** What an answer that is no success means for the subscription. */
  async refusal(response) {
    const { status, statusText } = response;
    const { subscription } = this;
    const passing = status >= 500 || [408, 425, 429].includes(status);
    const code = { 401: "unauthorized", 403: "forbidden" }[status] ?? "refused";
    const reason = (await explanation(response)) || `the server answered ${status} ${statusText}`.trim();
    const detail = { status, retry: retryAfter(response), ...(response.redirected && { address: response.url }) };
    if (code !== "refused" && typeof subscription.options.headers === "function" && !subscription.renewed) {
      subscription.renewed = true;
      return new Stop("waiting", code, reason, { ...detail, retry: 0 });
    }
    return new Stop(passing ? "waiting" : "failed", code, reason, detail);
  }

  /** What a successful answer that is no stream means: a login page, or once in a while a proxy's page. */
  stranger({ redirected, url }, reason) {
    const detail = { address: url };
    if (redirected) return new Stop("failed", "login", `the server sent the request on to ${url}: ${reason}`, detail);
    const state = this.subscription.strangers++ ? "failed" : "waiting";
    return new Stop(state, "unexpected-answer", `${reason} from ${url}`, detail);
  }

  /** Asks for a stream. Without a sign of life it is stale after one and a half heartbeats and given up after two. */
  async stream(accept) {
    this.listen();
    const response = await this.request(accept);
    return { type: response.headers.get("Content-Type"), incoming: new Incoming(response.body, this) };
  }

  listen() {
    clearTimeout(this.timer);
    if (this.signal.aborted) return;
    const stale = () => {
      if (this.bytes) this.subscription.tell("stale");
      this.timer = setTimeout(() => this.stop(this.silence()), this.heartbeat / 2);
    };
    this.timer = setTimeout(stale, timerDelay(1.5 * this.heartbeat));
  }

  silence() {
    if (this.making) return new Stop("waiting", "headers-failed", "the page's headers were not made in time");
    const seconds = (2 * this.heartbeat) / 1000;
    const reason = `nothing came for ${seconds} s, as if something on the way holds the stream back`;
    return new Stop(this.bytes ? "stalled" : "buffered", "held-back", reason);
  }

  /** The server has answered. */
  heard() {
    this.bytes = true;
    this.subscription.strangers = 0;
    if (!this.signal.aborted) this.subscription.tell(this.failing ? "failing" : "live");
  }

  /** Something has come over the stream itself. */
  flowed() {
    this.healthy ||= performance.now() - this.opened > 2 * this.heartbeat;
    this.heard();
  }

  fail() {
    this.failing = true;
    this.heard();
  }

  /** The server's source does not fail any more, though no message has come yet. */
  work() {
    this.failing = false;
    this.heard();
  }

  deliver(message) {
    if (this.signal.aborted) return;
    message.id ??= "";
    this.messages += 1;
    this.failing = false;
    this.heard();
    this.subscription.deliver(message);
  }

  /** Messages were missed; `ids` is where the server goes on. Where the page loads its state again, this is the end. */
  reset(ids) {
    if (this.signal.aborted) return;
    this.subscription.reset(ids);
    if (!this.subscription.loaded) this.stop(new Stop("reset", "load-failed", "the loaded state is older than the history"));
  }

  /** The stream begins at `ids`: also those topics have an id now that have had no message. */
  begin(ids) {
    if (ids && !this.signal.aborted) this.subscription.begin(ids);
  }

  /** Without a message, but with the ids to come back with. */
  resumeAfter(ids) {
    if (ids && !this.signal.aborted) this.subscription.resumeAfter(ids);
  }

  /** The server asked for a pause of `ms` before the next connection. */
  pauseFor(ms) {
    if (typeof ms === "number") this.retry = timerDelay(ms);
  }
}

/** Rejects when `signal` is aborted, until `over`: what a page does meanwhile may take for ever. */
function aborted(signal, over) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { signal: over }));
}

/** The reason in a plain text or in a JSON object's `message`; nothing from a page that a proxy made. */
async function explanation(response) {
  const type = response.headers.get("Content-Type") ?? "";
  try {
    if (type.startsWith("text/plain")) return (await response.text()).trim();
    return type.startsWith("application/json") ? (await response.json()).message : "";
  } catch {
    return "";
  }
}

/** A stream's bytes, taken by lines and by counts wherever the network tears them. */
class Incoming {
  constructor(body, connection) {
    this.reader = body.getReader();
    this.connection = connection;
    this.rest = new Uint8Array();
  }

  async chunk() {
    const { value } = await this.reader.read();
    if (value) {
      this.connection.flowed();
      this.connection.listen();
    }
    return value;
  }

  /** The next line without its end, or null where the stream ends before the line does. Each byte is read once. */
  async line() {
    const decoder = new TextDecoder();
    let line = "";
    for (;;) {
      const end = this.rest.indexOf(10);
      if (end >= 0) {
        line += decoder.decode(this.rest.subarray(0, end));
        this.rest = this.rest.subarray(end + 1);
        return line.endsWith("\r") ? line.slice(0, -1) : line;
      }
      line += decoder.decode(this.rest, { stream: true });
      const chunk = await this.chunk();
      if (!chunk) return null;
      this.rest = chunk;
    }
  }

  /** The next `count` bytes, or null where the stream ends before. */
  async take(count) {
    const bytes = new Uint8Array(count);
    for (let filled = 0; filled < count; ) {
      const chunk = this.rest.length ? this.rest : await this.chunk();
      if (!chunk) return null;
      const part = chunk.subarray(0, count - filled);
      bytes.set(part, filled);
      filled += part.length;
      this.rest = chunk.subarray(part.length);
    }
    return bytes;
  }
}
