/**
 * Subscribes a page to a topic: one function, four transports, no gap and no repeat.
 *
 *   const subscription = subscribe("/server/index", { onmessage: ({ id, topic, content }) => ... });
 *   subscription.close();
 *
 * A lost connection is made again after a growing pause, and goes on after the last message that was delivered. What
 * lives here: when to connect, and over what. What must not: requests and bytes (push-connection.js), wire formats
 * (push-transports.js), positions (push-cursor.js), other tabs (push-tabs.js), the page.
 *
 * One loop runs a subscription: `turn` loads the page's state where that is wanted, waits until this tab leads, and
 * connects; `after` does what the reason for the end of that turn asks for. `interrupt` ends whatever the loop waits
 * for. Nothing else connects or loads, so neither ever runs beside itself.
 */

import { Connection, Stop } from "./push-connection.js";
import { Cursor } from "./push-cursor.js";
import { Tabs, hasTabs } from "./push-tabs.js";
import { READERS } from "./push-transports.js";
import { duration, growingPause } from "./retry.js";

/**
 * @typedef {"multipart"|"sse"|"jsonlines"|"longpoll"} Transport
 *
 * @typedef {object} Message
 * @property {string} id  numbers the message in its topic
 * @property {string} [topic]  its topic's name, where one connection carries several
 * @property {string} [event]  the event's name, where the publisher gave one
 * @property {any} content  XML and other text as a string, a JSON topic's value, anything else as a Uint8Array
 *
 * @typedef {"connecting"|"live"|"failing"|"stale"|"waiting"|"paused"|"ended"|"failed"} StateName
 *
 * @typedef {StateName|"server-ended"|"server-pause"|"connection-lost"|"refused"|"unauthorized"|"forbidden"|"login"|
 *   "unexpected-answer"|"empty-answer"|"held-back"|"stream-refused"|"load-failed"|"headers-failed"} Code
 *
 * @typedef {object} State
 * @property {StateName} state  "failing": the server's source fails, and the server goes on trying; "stale": nothing has
 *   come for one and a half heartbeats; "paused": the page is hidden; "ended": the source is finished; "failed": the
 *   server refuses for good
 * @property {Code} code  why, for a translation: it stands for `reason` where there is one, else for `state`
 * @property {Transport} transport  the one in use
 * @property {boolean} fallback  true where long polling stands in for a stream that something on the way holds back
 * @property {string} [reason]  why, in English: with "waiting", "failed" and `fallback`
 * @property {number} [status]  the HTTP status, where the server refused
 * @property {string} [address]  where a page came from in place of the stream, such as a login page
 * @property {number} [retry]  with "waiting": ms until the next attempt, where it is known
 *
 * @typedef {object} Options
 * @property {Transport} [transport]  "multipart" unless given
 * @property {(message: Message) => void} [onmessage]
 * @property {(message: Message) => void} [onevent]  takes the messages whose publisher named an event; without it
 *   `onmessage` takes them too
 * @property {(state: State) => void} [onstate]
 * @property {() => void} [onreset]  messages were missed: the history no longer reaches back
 * @property {(options: {signal: AbortSignal}) => Promise<string|null|undefined>} [load]  fetches and draws the page's
 *   state, and returns the id that the state is of. It runs first, and again after each reset; the stream goes on from
 *   that id. `signal` is aborted when the subscription is closed
 * @property {string} [lastEventId]  begin after this message; "earliest": with all that the history holds; "latest":
 *   with nothing but what comes from now on; without it: with the newest message
 * @property {string} [acrossTabs]  who the user is, or any text: tabs of this browser with the same text and URL share
 *   one connection. It works on https and on localhost; elsewhere each tab has a connection of its own
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers]  for each request; a function is called
 *   before each attempt, and once more after 401 and 403; after two heartbeats it has failed. Not with "sse": an
 *   EventSource sends no headers of a page's own
 * @property {RequestCredentials} [credentials]  as `fetch` has it. With "sse" not "omit", which an EventSource cannot do
 * @property {boolean|string[]} [text]  true for plain text, or the names of such topics: an EventSource hides a
 *   message's type, so that over "sse" a text that reads as JSON would come as its value ("42" as the number)
 * @property {string[]} [events]  the names of events; an EventSource hears only those whose names it knows
 * @property {number} [heartbeat]  ms between the server's signs of life: 15,000 unless given
 * @property {number} [hiddenAfter]  ms that the page stays hidden before the connection is given back: 30,000 unless
 *   given; Infinity: never
 *
 * @typedef {object} Handle
 * @property {() => void} close  ends the subscription
 * @property {string} lastEventId  what a later subscription can begin after
 */
const PAUSES = { first: 1000, longest: 30_000 }; // ms

/**
 * Subscribes to the topic or topics at `url`. The states "ended" and "failed" are final.
 *
 * @param {string|URL} url
 * @param {Options} [options]
 * @returns {Readonly<Handle>}
 * @throws {TypeError} for an option that cannot be, or a URL that is none
 */
export function subscribe(url, options = {}) {
  const subscription = new Subscription(url, options);
  subscription.run();
  return {
    close: () => subscription.close(),
    get lastEventId() {
      return subscription.cursor.toString();
    },
  };
}

/** Throws a TypeError for an option that cannot be. */
function check({ transport, headers, credentials, acrossTabs, lastEventId, load }) {
  const wrong = (name, value, must) => new TypeError(`${name} ${String(value)}: must be ${must}`);
  const oneOf = (values) => `one of ${values.join(", ")}`;
  const names = Object.keys(READERS);
  const policies = ["omit", "same-origin", "include"];
  if (!names.includes(transport)) throw wrong("transport", transport, oneOf(names));
  if (![undefined, ...policies].includes(credentials)) throw wrong("credentials", credentials, oneOf(policies));
  if (!["undefined", "function"].includes(typeof load)) throw wrong("load", load, "a function");
  if (!["undefined", "string"].includes(typeof acrossTabs)) throw wrong("acrossTabs", acrossTabs, "a string");
  if (typeof lastEventId !== "string") throw wrong("lastEventId", lastEventId, "a string");
  if (transport === "sse" && headers) throw new TypeError("headers: an EventSource sends none; use another transport");
  if (transport === "sse" && credentials === "omit") {
    throw new TypeError("credentials omit: an EventSource always sends them to its own origin; use another transport");
  }
}

class Subscription {
  constructor(url, { transport = "multipart", lastEventId = "", heartbeat = 15_000, hiddenAfter = 30_000, ...rest }) {
    check({ transport, lastEventId, ...rest });
    this.options = { text: false, events: [], ...rest, transport };
    this.transport = transport;
    this.heartbeat = duration("heartbeat", heartbeat, 1);
    this.hiddenAfter = duration("hiddenAfter", hiddenAfter, 0);
    this.url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    this.cursor = new Cursor(lastEventId);
    this.loaded = !rest.load;
    this.closed = new AbortController();
    this.interrupt = () => {};
    this.hurry = () => {}; // ends a pause between two attempts
    this.failures = 0; // attempts in a row that brought nothing
    this.stalls = 0; // streams in a row that fell silent
    this.strangers = 0; // answers in a row that are no stream
    this.resets = 0; // since the last message
    this.renewed = false; // whether the headers were made once more, after 401 or 403
    if (rest.acrossTabs !== undefined && hasTabs()) this.tabs = new Tabs(this);
  }

  async run() {
    this.watchPage();
    while (!this.closed.signal.aborted) {
      const stop = await this.turn();
      if (!this.closed.signal.aborted) await this.after(stop);
    }
  }

  close() {
    clearTimeout(this.hiding);
    this.closed.abort();
    this.interrupt();
    this.tabs?.leave();
  }

  /** Does one thing after another until something ends it, and returns what. */
  async turn() {
    if (this.isResting()) return new Stop("paused");
    if (!this.loaded) return (await this.load()) ?? new Stop("again");
    return (await this.tabs?.follow()) ?? this.connect();
  }

  /** Runs the page's `load`. Returns a Stop where that failed. */
  async load() {
    let id;
    this.tell("connecting");
    try {
      id = (await this.options.load({ signal: this.closed.signal })) ?? "";
    } catch (error) {
      return new Stop("waiting", "load-failed", `the page's state could not be loaded: ${error?.message ?? error}`);
    }
    if (typeof id !== "string") {
      return new Stop("failed", "load-failed", `load returned ${String(id)}: must be the id of the state, a string`);
    }
    this.cursor = new Cursor(id);
    this.loaded = true;
    return undefined;
  }

  /** One connection from its beginning to its end. Returns why it ended. */
  async connect() {
    const connection = new Connection(this);
    this.interrupt = (stop = new Stop("paused")) => connection.stop(stop);
    this.tabs?.announce();
    this.tell("connecting");
    const stop = await connection.run(READERS[this.transport]);
    if (connection.healthy) this.stalls = 0;
    if (connection.healthy || connection.messages) this.failures = 0;
    return stop;
  }

  async after(stop) {
    const { state, code, message, retry } = stop;
    if (state === "ended" || state === "failed") {
      this.tell(state, stop);
      this.close();
    } else if (state === "paused") {
      await this.pause();
    } else if (state === "buffered" || (state === "stalled" && ++this.stalls > 1)) {
      this.transport = "longpoll";
      this.fallback = { code, reason: message };
    } else if (state === "waiting") {
      await this.wait(this.pauseBefore(retry), stop);
    } else if (state === "reset" && ++this.resets > 1) {
      await this.wait(this.nextPause(), stop); // what `load` returns is not an id that the topic knows
    }
  }

  /** The server's pause, where it asks for one, but not ever again at once: a date that it names may be over here. */
  pauseBefore(retry) {
    const own = this.nextPause();
    return this.failures > 2 ? Math.max(retry ?? own, PAUSES.first) : (retry ?? own);
  }

  nextPause() {
    return growingPause(this.failures++, PAUSES);
  }

  async pause() {
    if (this.isResting()) {
      this.tell("paused");
      await new Promise((wake) => (this.interrupt = wake));
    }
    this.forgive(); // a machine may wake up in another network
    this.failures = 0;
  }

  async wait(retry, stop) {
    this.tell("waiting", { ...stop, message: stop.message, retry });
    let timer;
    await new Promise((done) => {
      this.interrupt = this.hurry = done;
      timer = setTimeout(done, retry);
    });
    clearTimeout(timer);
    this.hurry = () => {};
  }

  /** Follows the page: it may be hidden, left and kept to come back to, frozen, and cut off from the network. */
  watchPage() {
    const { signal } = this.closed;
    const page = globalThis.document;
    page?.addEventListener("visibilitychange", () => this.look(), { signal });
    // A page in the back-forward cache keeps its connections, and a browser has six to a host.
    globalThis.addEventListener?.("pagehide", () => this.leave(true), { signal });
    globalThis.addEventListener?.("pageshow", () => this.leave(false), { signal });
    page?.addEventListener("freeze", () => this.leave(true), { signal });
    page?.addEventListener("resume", () => this.leave(false), { signal });
    globalThis.addEventListener?.("online", () => this.reconnected(), { signal });
    this.look();
  }

  /** The network is back: a stream that was held back may have been cut off by its absence alone. */
  reconnected() {
    if (this.fallback && !this.isResting()) {
      this.forgive();
      this.interrupt(new Stop("again"));
    }
    this.hurry();
  }

  /** Gives the stream that was held back another chance. */
  forgive() {
    Object.assign(this, { transport: this.options.transport, fallback: undefined, stalls: 0 });
  }

  /** Whether this page wants no connection now. */
  isResting() {
    return this.left || (this.hidden && !this.tabs);
  }

  /** Gives the connection back when the page has been hidden for long, and takes it up again when it is seen. */
  look() {
    clearTimeout(this.hiding);
    if (globalThis.document?.visibilityState === "hidden") {
      this.hiding = setTimeout(() => this.hide(true), this.hiddenAfter);
    } else {
      if (this.hidden) this.hide(false);
      this.hurry();
    }
    this.tabs?.look();
  }

  hide(hidden) {
    this.hidden = hidden;
    if (this.tabs) this.tabs.look();
    else this.interrupt();
  }

  leave(left) {
    if (left === Boolean(this.left)) return;
    this.left = left;
    this.interrupt();
    if (left) this.tabs?.leave();
    else this.look();
  }

  tell(state, { code = state, message, retry, status, address } = {}) {
    const { transport, fallback, told } = this;
    if (state !== "waiting" && state === told?.state && transport === told.transport) return;
    const reason = message ? { code, reason: message } : { code, ...fallback };
    this.show({ state, ...reason, transport, fallback: Boolean(fallback), retry, status, address });
  }

  /** Tells the page, and the tabs that follow this one. */
  show(told) {
    if (this.closed.signal.aborted) return;
    this.told = told;
    this.tabs?.relay({ told });
    this.call("onstate", told);
  }

  deliver(message) {
    if (this.closed.signal.aborted) return;
    this.resets = 0;
    this.tabs?.keep(message);
    this.cursor.set(message.id, message.topic);
    this.call(message.event !== undefined && this.options.onevent ? "onevent" : "onmessage", message);
  }

  /** The stream begins at `ids`: those topics have an id now that have had no message. */
  begin(ids) {
    this.cursor.add(ids);
    this.tabs?.base.add(ids);
    this.tabs?.relay({ begin: ids });
  }

  /** Goes on from `ids`, of all topics, without a message. */
  resumeAfter(ids) {
    if (!this.closed.signal.aborted) this.cursor.set(ids);
  }

  /** Messages were missed. The stream goes on from `ids`, where the server says them, or from what `load` returns. */
  reset(ids) {
    if (this.closed.signal.aborted) return;
    if (ids) this.cursor.set(ids);
    this.tabs?.reset(ids);
    this.call("onreset");
    this.loaded = !this.options.load;
  }

  /** Calls a handler of the page. What it throws is the page's to see, and no reason to stop reading. */
  call(name, ...values) {
    try {
      this.options[name]?.(...values);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }
}
