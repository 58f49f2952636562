/** A page in TypeScript: what it may write, and what its compiler must refuse. `tsc --strict` reads it, nobody runs it. */

import { subscribe, type Message, type State } from "pushdemo";
import { Refusal, cancel, leave, newKey, poll, sleep } from "pushdemo/poll.js";
import { subscribe as again } from "pushdemo/push.js";

const words: Partial<Record<State["code"], string>> = { live: "En direct", "connection-lost": "Connexion perdue" };

const subscription = subscribe("/orders", {
  transport: "jsonlines",
  onmessage: ({ id, topic, event, content }: Message) => console.log(id.length, topic?.length, event?.length, content.key),
  onevent: (message) => console.log(message.event),
  onstate: ({ state, code, reason, status, retry, address }) => console.log(state, words[code], reason, status, retry, address),
  onreset: () => {},
  load: async ({ signal }) => (await (await fetch("/orders.json", { signal })).json()).id,
  lastEventId: "earliest",
  acrossTabs: "ann@example.org",
  headers: async () => ({ Authorization: "Bearer 1" }),
  credentials: "include",
  text: ["news"],
  events: ["price"],
  heartbeat: 15_000,
  hiddenAfter: Infinity,
});
const last: string = subscription.lastEventId;
subscription.close();
again(new URL("https://example.org/"), { headers: { Accept: "x" }, text: true }).close();

// @ts-expect-error: no such transport
subscribe("/", { transport: "websocket" });
// @ts-expect-error: the handle is read alone
subscription.lastEventId = last;
// @ts-expect-error: milliseconds, not text
subscribe("/", { heartbeat: "15" });
// @ts-expect-error: an option that does not exist
subscribe("/", { onMessage: () => {} });

async function read(signal: AbortSignal): Promise<void> {
  const key: string = newKey();
  try {
    const options = { key, after: 3, max: 10, signal, headers: { "X-CSRF-Token": "t" } };
    for await (const { content, count } of poll("/prime", { ...options, onretry: ({ pause }) => console.log(pause) })) {
      console.log(content, count.toFixed());
      await sleep(500, signal);
    }
  } catch (error) {
    if (error instanceof Refusal) console.log(error.status, error.count, error.message, error.address?.length);
  }
  await cancel("/prime", key, { credentials: "include" });
  leave("/prime", key);
}

// @ts-expect-error: a session needs its key
poll("/prime", {});
void read;
