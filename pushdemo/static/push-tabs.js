/**
 * One connection for all tabs of a browser that have subscribed to the same thing, for the same user.
 *
 * Web Locks elect the tab that leads; a BroadcastChannel carries what it receives to those that follow. Both need https
 * or localhost. What lives here: who leads, and how a follower joins without a gap. What must not: connections.
 *
 * A tab wants to lead while it is seen, and for `hiddenAfter` once it is hidden. A leader that is hidden gives way to a
 * tab that is seen. A tab that is left, frozen or closed releases the lock at once: a held one would keep the page out
 * of the back-forward cache. Each tab knows its own position, so the next leader resumes there; what reaches a tab twice
 * at a change of leaders is passed over by its number.
 *
 * A follower joins by saying its position (`hello`). The leader answers (`welcome`) with the messages after it, or, where
 * it has kept too few, with its own position; the follower then polls the server until it is there. Until it has joined
 * a follower ignores messages: the welcome has them. A leader that begins, or that has loaded its state again, says so
 * (`announce`), and everyone joins anew.
 */

import { Connection, Stop } from "./push-connection.js";
import { Cursor, idBefore } from "./push-cursor.js";
import { poll } from "./push-transports.js";

const KEPT = 50; // messages that a leader keeps for tabs that join

/** Whether this browser, and this page's origin, can share a connection. */
export function hasTabs() {
  return Boolean(globalThis.navigator?.locks?.request && globalThis.BroadcastChannel);
}

const isSeen = () => globalThis.document?.visibilityState !== "hidden";

export class Tabs {
  constructor(subscription) {
    const { url, options } = subscription;
    const { acrossTabs, transport, text } = options;
    this.subscription = subscription;
    this.key = `pushdemo ${JSON.stringify([acrossTabs, url.href, transport, text])}`;
    this.id = String(Math.random());
    this.events = []; // from the leader, for `follow`
    this.wake = () => {};
    this.leading = false;
    this.announced = false;
    this.forget();
  }

  /** Forgets the messages that are kept for others. They begin at `ids` again, where these are known. */
  forget(ids = "") {
    this.recent = []; // the last messages
    this.newest = new Map(); // of each topic
    this.base = new Cursor(ids); // the position before `recent`
    this.origin = ""; // what the leader began with, "earliest" say, while `recent` has all since
  }

  /** Follows the tab that leads, until this tab leads, or until something else ends it: then returns a Stop. */
  async follow() {
    const { subscription } = this;
    if (this.leading) return undefined;
    this.events = [];
    this.following = true;
    subscription.tell("connecting");
    this.interruptible();
    this.enter();
    this.rejoin();
    while (!this.leading) {
      if (!this.events.length) await new Promise((wake) => (this.wake = wake));
      const stop = this.leading ? undefined : await this.take(this.events.shift());
      if (stop) {
        this.following = false;
        return stop;
      }
    }
    this.following = false;
    return undefined;
  }

  interruptible() {
    this.subscription.interrupt = (stop = new Stop("again")) => this.push({ stop });
  }

  enter() {
    if (this.channel) return;
    this.channel = new BroadcastChannel(this.key);
    this.channel.onmessage = ({ data }) => this.receive(data);
    this.look();
  }

  leave() {
    this.resign();
    this.channel?.close();
    this.channel = undefined;
  }

  /** Follows what the page has become: seen, hidden, or hidden for long. */
  look() {
    if (!this.channel) return;
    const { subscription } = this;
    if (subscription.hidden) {
      if (this.leading) subscription.tell("paused"); // the others too, unless one of them goes on
      this.giveWay();
    } else {
      this.contend();
    }
    if (isSeen()) this.post({ seen: true });
    else if (this.leading) this.post({ who: true });
  }

  /** Asks for the lock. The browser grants it in the order in which tabs ask. */
  contend() {
    if (this.attempt) return;
    const attempt = (this.attempt = new AbortController());
    const lead = () =>
      new Promise((release) => {
        if (this.attempt !== attempt) return release();
        this.release = release;
        this.leading = true;
        if (!isSeen()) this.post({ who: true });
        this.wake();
      });
    navigator.locks.request(this.key, { signal: attempt.signal }, lead).catch((error) => {
      if (error.name === "AbortError") return;
      this.leave(); // the browser forbids locks here: this tab has a connection of its own
      this.subscription.tabs = undefined;
      this.subscription.interrupt();
    });
  }

  /** Ends what this tab does as the leader, and lets another lead. */
  giveWay() {
    if (this.leading) this.subscription.interrupt(new Stop("again"));
    this.resign();
  }

  resign() {
    this.attempt?.abort();
    this.release?.();
    this.leading = this.announced = false;
    this.attempt = this.release = undefined;
  }

  // What is said between tabs

  post(event) {
    this.channel?.postMessage(event);
  }

  receive(event) {
    if (event.who && isSeen()) this.post({ seen: true });
    if (!this.leading) return this.push(event);
    if (event.hello && this.announced) this.welcome(event);
    if (event.seen && !isSeen()) {
      this.giveWay();
      this.contend();
    }
  }

  push(event) {
    if (this.following) this.events.push(event);
    this.wake();
  }

  /** Says to all that this tab has begun to lead. */
  announce() {
    if (this.announced) return;
    this.announced = true;
    const { cursor } = this.subscription;
    if (!this.recent.length) {
      this.base = new Cursor(cursor.isNumbered() ? cursor.toString() : "");
      this.origin = cursor.toString();
    }
    this.post({ announce: true });
  }

  /** Passes on what the leader receives. */
  relay(event) {
    if (this.leading) this.post(event);
  }

  /** Keeps a message for tabs that join, and passes it on. */
  keep(message) {
    const topic = message.topic ?? "";
    if (!this.base.ids.has(topic)) this.base.set(idBefore(message) ?? "", topic);
    this.newest.set(topic, message);
    this.recent.push(message);
    if (this.recent.length > KEPT) {
      const oldest = this.recent.shift();
      this.base.set(oldest.id, oldest.topic);
      this.origin = "";
    }
    this.relay({ message });
  }

  reset(ids = "") {
    this.forget(ids);
    this.relay({ reset: ids });
    if (this.subscription.options.load) this.announced = false;
  }

  hello() {
    this.post({ hello: this.id, ids: this.subscription.cursor.toString() });
  }

  rejoin() {
    this.joined = false;
    this.hello();
  }

  welcome({ hello, ids }) {
    const { cursor, told } = this.subscription;
    this.post({ welcome: hello, messages: this.messagesAfter(ids), ids: cursor.toString(), told });
  }

  /** Returns the messages after `ids`, or undefined where too few are kept. */
  messagesAfter(ids) {
    const asked = new Cursor(ids);
    if (ids === "latest") return [];
    if (ids && ids === this.origin) return this.recent;
    if (ids !== "") {
      const reaches = this.base.isNumbered() && asked.reaches(this.base);
      return reaches ? this.recent.filter((message) => !asked.passed(message)) : undefined;
    }
    const positions = [...this.subscription.cursor.ids]; // one who has nothing begins with the newest messages
    const known = positions.every(([topic, id]) => this.newest.has(topic) || id.endsWith("-0"));
    return known ? [...this.newest.values()] : undefined;
  }

  /** A follower's part. Returns a Stop where this ends its following. */
  async take(event = {}) {
    const { subscription } = this;
    if (event.stop) return event.stop;
    if (event.announce) {
      this.rejoin();
    } else if (event.welcome === this.id && !this.joined) {
      return this.join(event);
    } else if (!this.joined) {
      return undefined;
    } else if (event.message && subscription.cursor.skips(event.message)) {
      this.rejoin(); // the leader began after what this tab has
    } else if (event.message) {
      this.hear([event.message]);
    } else if (event.begin) {
      subscription.begin(event.begin);
    } else if (event.told) {
      return this.show(event.told);
    } else if (event.reset !== undefined) {
      subscription.reset(event.reset);
      if (!subscription.loaded) return new Stop("again");
    }
    return undefined;
  }

  async join({ messages, ids, told }) {
    const { subscription } = this;
    if (messages) {
      this.hear(messages);
      subscription.begin(ids);
    } else {
      const stop = await this.catchUp(new Cursor(ids));
      if (stop) return stop;
    }
    this.joined = true;
    return told && this.show(told);
  }

  hear(messages) {
    const { subscription } = this;
    for (const message of messages) if (!subscription.cursor.passed(message)) subscription.deliver(message);
  }

  show(told) {
    const { state, code, reason } = told;
    if (state !== this.subscription.told?.state || state === "waiting") this.subscription.show(told);
    return state === "ended" || state === "failed" ? new Stop(state, code, reason, told) : undefined;
  }

  /** Polls the server until this tab is where the leader was. */
  async catchUp(position) {
    const { subscription } = this;
    const connection = new Connection(subscription);
    subscription.interrupt = (stop = new Stop("again")) => connection.stop(stop);
    const before = this.newest; // another map after a reset: then there is nothing to reach
    const isBehind = () => this.newest === before && position.isNumbered() && !subscription.cursor.reaches(position);
    let there = false;
    const stop = await connection.run(async () => {
      while ((await poll(connection)).messages && isBehind());
      there = true;
    });
    this.interruptible();
    return there ? undefined : stop;
  }
}
