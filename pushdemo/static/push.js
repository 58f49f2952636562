/**
 * Subscribes a page to a topic: one function, four transports, no gap and no repeat.
 *
 *   const subscription = subscribe("/server/index", { onmessage: ({ id, topic, content }) => ... });
 *   subscription.close();
 *
 * A lost connection is made again after a growing pause, and goes on behind the last message that was delivered.
 * What lives here: when to connect, and over what. What must not: wire formats (push-transports.js), the page.
 */

import { Connection, Stop } from "./push-connection.js";
import { READERS } from "./push-transports.js";

const FIRST_PAUSE = 1000; // ms, doubled at each failure in a row
const LONGEST_PAUSE = 30_000; // ms

/**
 * @typedef {object} Message
 * @property {string} id  numbers the message in its topic; what a later subscription can resume after
 * @property {string|undefined} topic  its topic's name, where one connection carries several
 * @property {*} content  XML and other text as a string, a JSON topic's value, anything else as a Uint8Array
 *
 * @typedef {object} State
 * @property {"connecting"|"live"|"failing"|"stale"|"waiting"|"paused"|"ended"|"failed"} state  "failing": the server's
 *   source fails, and it goes on trying; "stale": nothing has come for one and a half heartbeats; "paused": the page is
 *   hidden; "ended": the source is finished; "failed": refused for good
 * @property {string} transport  the one in use
 * @property {boolean} fallback  true where long polling stands in for a stream that something on the way holds back
 * @property {string} [reason]  why, in words: with "waiting", "failed" and `fallback`
 * @property {number} [retry]  with "waiting": ms until the next attempt, where it is known
 */

/**
 * Subscribes to the topic at `url`. The states "ended" and "failed" are final.
 *
 * @param {string|URL} url  over "sse" it names the topics (`?topic=a&topic=b`) where the view serves several: an
 *   EventSource hears those alone whose names it knows
 * @param {object} [options]
 * @param {"multipart"|"sse"|"jsonlines"|"longpoll"} [options.transport]  "multipart" unless told
 * @param {(message: Message) => void} [options.onmessage]
 * @param {(state: State) => void} [options.onstate]
 * @param {() => void} [options.onreset]  messages were missed: the history no longer reaches back
 * @param {string} [options.lastEventId]  resume after this message; "earliest": begin with all that the history holds
 * @param {boolean|string[]} [options.text]  true for plain text, or the names of such topics: an EventSource hides a
 *   message's type, so that over "sse" a text that reads as JSON would come as its value ("42" as the number)
 * @param {number} [options.heartbeat]  ms between the server's signs of life: 15,000 unless told
 * @param {number} [options.hiddenAfter]  ms that the page stays hidden before the connection is given back: 5 minutes
 * @returns {{close: () => void, readonly lastEventId: string}}
 * @throws {TypeError} for a transport that does not exist, or a URL that is none
 */
export function subscribe(url, options = {}) {
  const subscription = new Subscription(url, options);
  subscription.run();
  return {
    close: () => subscription.close(),
    get lastEventId() {
      return subscription.lastEventId;
    },
  };
}

class Subscription {
  constructor(
    url,
    { transport = "multipart", lastEventId = "", text = false, heartbeat = 15_000, hiddenAfter = 300_000, ...on },
  ) {
    if (!Object.hasOwn(READERS, transport)) {
      throw new TypeError(`transport ${transport}: must be one of ${Object.keys(READERS).join(", ")}`);
    }
    Object.assign(this, { wanted: transport, transport, lastEventId, text, heartbeat, hiddenAfter, handlers: on });
    this.url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    this.closed = new AbortController();
    this.interrupt = () => {};
    this.failures = 0;
    this.stalls = 0;
  }

  async run() {
    const { signal } = this.closed;
    globalThis.document?.addEventListener("visibilitychange", () => this.watchPage(), { signal });
    // A page that was left may be kept to come back to, with its connections: after three, a browser has none to spare.
    globalThis.addEventListener?.("pagehide", () => this.hide(true), { signal });
    globalThis.addEventListener?.("pageshow", () => this.watchPage(), { signal });
    this.watchPage();
    while (!signal.aborted) {
      const stop = await this.connect();
      if (!signal.aborted) await this.after(stop);
    }
  }

  close() {
    clearTimeout(this.hiding);
    this.closed.abort();
    this.interrupt();
  }

  /** One connection from its beginning to its end; says why it ended. */
  async connect() {
    if (this.hidden) return new Stop("paused");
    const connection = new Connection(this);
    this.interrupt = () => connection.stop(new Stop("paused"));
    this.tell("connecting");
    try {
      await READERS[this.transport](connection);
      return new Stop("waiting", "the server ended the connection", connection.retry);
    } catch (error) {
      const stop = connection.stopped ?? error;
      if (stop instanceof Stop) return stop;
      return new Stop("waiting", `the connection was lost: ${error.message}`, connection.retry);
    } finally {
      connection.stop();
      if (connection.healthy) this.stalls = 0;
      if (connection.healthy || connection.messages) this.failures = 0;
    }
  }

  async after({ state, message, retry }) {
    if (state === "ended" || state === "failed") {
      this.tell(state, { reason: message });
      this.close();
    } else if (state === "paused") {
      await this.pause();
    } else if (state === "buffered" || (state === "stalled" && ++this.stalls > 1)) {
      this.transport = "longpoll";
      this.reason = message;
    } else if (state === "waiting") {
      await this.wait(retry ?? this.nextPause(), message);
    }
  }

  /** Between half and all of a time that doubles: a thousand clients must not come back as one. */
  nextPause() {
    const longest = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.failures++);
    return Math.round(longest * (0.5 + Math.random() / 2));
  }

  async pause() {
    if (this.hidden) {
      this.tell("paused");
      await new Promise((wake) => (this.interrupt = wake));
    }
    // A machine may wake up in another network: the stream that was held back gets another chance there.
    Object.assign(this, { transport: this.wanted, reason: undefined, failures: 0, stalls: 0 });
  }

  async wait(retry, reason) {
    this.tell("waiting", { retry, reason });
    let timer;
    await new Promise((done) => {
      this.interrupt = done;
      timer = setTimeout(done, retry);
    });
    clearTimeout(timer);
  }

  /** Gives the connection back when the page has been hidden for long, and takes it up again when it is seen. */
  watchPage() {
    clearTimeout(this.hiding);
    if (globalThis.document?.visibilityState === "hidden") {
      this.hiding = setTimeout(() => this.hide(true), this.hiddenAfter);
    } else if (this.hidden) {
      this.hide(false);
    }
  }

  hide(hidden) {
    this.hidden = hidden;
    this.interrupt();
  }

  tell(state, detail) {
    if (this.closed.signal.aborted) return;
    const { transport, wanted, reason, told } = this;
    if (state !== "waiting" && state === told?.state && transport === told.transport) return;
    this.told = { state, transport, fallback: transport !== wanted, reason, ...detail };
    this.call("onstate", this.told);
  }

  deliver(message) {
    if (this.closed.signal.aborted) return;
    this.lastEventId = message.id;
    this.call("onmessage", message);
  }

  resumeAfter(id) {
    if (!this.closed.signal.aborted) this.lastEventId = id;
  }

  reset() {
    if (!this.closed.signal.aborted) this.call("onreset");
  }

  /** Calls a handler of the page. What it throws is the page's to see, and no reason to stop reading. */
  call(name, ...values) {
    try {
      this.handlers[name]?.(...values);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }
}
