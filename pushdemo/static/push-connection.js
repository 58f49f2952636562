/**
 * One connection of a subscription: its requests, its silence, and its bytes as they come.
 *
 * What lives here: what every transport needs. What must not: a wire format (push-transports.js), when to connect again
 * (push.js).
 */

/** Why a connection is over: `state` is the subscription's next one, or "stalled" or "buffered" for a silent stream. */
export class Stop extends Error {
  constructor(state, reason, retry) {
    super(reason);
    this.state = state;
    this.retry = retry;
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

  stop(why) {
    clearTimeout(this.timer);
    this.stopped ??= why;
    this.controller.abort();
  }

  address() {
    const { url, lastEventId } = this.subscription;
    const address = new URL(url);
    address.searchParams.delete("transport"); // it would beat Accept, and a stream may need a poll in its place
    if (lastEventId) address.searchParams.set("last_event_id", lastEventId);
    return address;
  }

  /** The topics that are known to be on this connection: by the address, or by an id, which covers them all. */
  topics() {
    const { url, lastEventId } = this.subscription;
    const covered = (lastEventId ?? "").matchAll(/([^:,]+):/g);
    return [...url.searchParams.getAll("topic"), ...Array.from(covered, ([, name]) => name)];
  }

  /** Whether the page has said that this topic is plain text. */
  isText(topic) {
    const { text } = this.subscription;
    return Array.isArray(text) ? text.includes(topic) : text;
  }

  /** Asks for the topic in the format `accept`; throws a Stop where the answer is another. */
  async request(accept, signal = this.signal) {
    // Firefox makes a second request for one URL wait until the first has ended, unless neither may use the cache.
    const response = await fetch(this.address(), { cache: "no-store", headers: { Accept: accept }, signal });
    if (response.status === 204) throw new Stop("ended");
    if (!response.ok) throw await refusal(response);
    const type = response.headers.get("Content-Type") ?? "no type";
    if (!type.toLowerCase().startsWith(accept)) throw new Stop("waiting", `expected ${accept}, got ${type}`);
    return response;
  }

  /** Asks for a stream. Without a sign of life it is stale after one and a half heartbeats and given up after two. */
  async stream(accept) {
    this.listen();
    const response = await this.request(accept);
    return { type: response.headers.get("Content-Type"), incoming: new Incoming(response.body, this) };
  }

  listen() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.bytes) this.subscription.tell("stale");
      this.timer = setTimeout(() => this.stop(this.silence()), this.heartbeat / 2);
    }, 1.5 * this.heartbeat);
  }

  silence() {
    const seconds = (2 * this.heartbeat) / 1000;
    const reason = `nothing came for ${seconds} s, as if something on the way holds the stream back`;
    return new Stop(this.bytes ? "stalled" : "buffered", reason);
  }

  /** The server has answered. */
  heard() {
    this.bytes = true;
    this.subscription.tell(this.failing ? "failing" : "live");
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

  deliver(message) {
    this.messages += 1;
    this.failing = false;
    this.heard();
    this.subscription.deliver(message);
  }

  reset() {
    this.subscription.reset();
  }

  /** Without a message, but with the id to come back with. */
  resumeAfter(id) {
    if (id) this.subscription.resumeAfter(id);
  }
}

/** What an answer that is no success means for the subscription. */
async function refusal(response) {
  const { status, statusText, headers } = response;
  const passing = status >= 500 || [408, 425, 429].includes(status);
  const reason = (await explanation(response)) || `the server answered ${status} ${statusText}`.trim();
  return new Stop(passing ? "waiting" : "failed", reason, retryAfter(headers.get("Retry-After")));
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

/** RFC 9110, 10.2.3: seconds or a date. Here: milliseconds, or undefined. */
function retryAfter(value) {
  if (!value) return undefined;
  const pause = /^\d+$/.test(value) ? 1000 * Number(value) : Date.parse(value) - Date.now();
  return Number.isNaN(pause) ? undefined : Math.max(0, pause);
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

  /** The next line without its end, or null where the stream ends before the line does. */
  async line() {
    let end = this.rest.indexOf(10);
    while (end < 0) {
      const chunk = await this.chunk();
      if (!chunk) return null;
      const found = chunk.indexOf(10);
      if (found >= 0) end = this.rest.length + found;
      const joined = new Uint8Array(this.rest.length + chunk.length);
      joined.set(this.rest);
      joined.set(chunk, this.rest.length);
      this.rest = joined;
    }
    const line = new TextDecoder().decode(this.rest.subarray(0, end));
    this.rest = this.rest.subarray(end + 1);
    return line.endsWith("\r") ? line.slice(0, -1) : line;
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
