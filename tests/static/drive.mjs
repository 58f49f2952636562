/**
 * Subscriptions and sessions on command: what a test asks for comes in as an object, what happens goes out as one.
 * `modules` are the exports of push.js and of poll.js.
 */
export function drive(modules, send) {
  const { subscribe, poll, cancel, leave, sleep, newKey } = modules;
  const subscriptions = new Map();
  const sessions = new Map();
  const commands = {
    subscribe({ name, url, options }) {
      const say = (kind) => (value) => send({ name, [kind]: value ?? true });
      const onmessage = (message) => {
        if (message.content instanceof Uint8Array) message.content = [...message.content];
        say("message")({ ...message, lastEventId: subscriptions.get(name).lastEventId });
        if (options.closeAfter === message.id) subscriptions.get(name).close();
        if (options.throwAt === message.id) throw new Error("the page's own mistake");
      };
      const handlers = { onmessage, onstate: say("state"), onreset: say("reset") };
      if (options.named) handlers.onevent = say("event");
      try {
        subscriptions.set(name, subscribe(url, { ...revived(options, say), ...handlers }));
      } catch (error) {
        send({ name, thrown: String(error) });
      }
    },
    close({ name }) {
      subscriptions.get(name).close();
      send({ name, closed: subscriptions.get(name).lastEventId });
    },
    async poll({ name, url, isObject, options }) {
      const abort = new AbortController();
      sessions.set(name, abort);
      const onretry = (retry) => send({ name, retry });
      try {
        const say = (kind) => (value) => send({ name, [kind]: value });
        const session = { ...revived(options, say), signal: abort.signal, onretry };
        for await (const answer of poll(isObject ? new URL(url) : url, session)) send({ name, answer });
        send({ name, done: true });
      } catch (error) {
        send({ name, error: { ...error, name: error.constructor.name, message: error.message } });
      }
    },
    abort({ name }) {
      sessions.get(name).abort();
    },
    async cancel({ name, url, isObject, key }) {
      await cancel(isObject ? new URL(url) : url, key).then(
        () => send({ name, done: true }),
        (error) => send({ name, error: { ...error, name: error.constructor.name, message: error.message } }),
      );
    },
    leave({ url, isObject, key }) {
      leave(isObject ? new URL(url) : url, key);
    },
    tooLate() {
      for (const reject of held.splice(0)) reject(new TypeError("too late"));
    },
    async sleep({ name, ms, abortAfter }) {
      const abort = new AbortController();
      if (abortAfter === 0) abort.abort();
      else if (abortAfter) setTimeout(() => abort.abort(), abortAfter);
      await sleep(ms, abort.signal).then(
        () => send({ name, done: true }),
        (error) => send({ name, error: { name: error.name } }),
      );
    },
    newKey({ name }) {
      const keys = [newKey(), newKey()];
      const { randomUUID } = crypto;
      crypto.randomUUID = undefined; // as on a page that came by plain http
      keys.push(newKey(), newKey());
      crypto.randomUUID = randomUUID;
      send({ name, keys });
    },
  };
  return (command) => commands[command.do](command);
}

/**
 * What JSON cannot carry: `{number: "NaN"}`; and functions, whose calls return one of a list after the other, and the
 * last one again and again. `load: ["e-1"]` returns ids; `headers: {calls: [{A: "1"}]}` returns headers. An Error is
 * `{error: "..."}`; what is not settled before `tooLate` is `{held: true}`.
 */
const held = [];

function revived({ named, ...options }, say) {
  const calls = (kind, list) => async () => {
    const value = list.length > 1 ? list.shift() : list[0];
    say(kind)(value);
    if (value?.error) throw new TypeError(value.error);
    if (value?.held) await new Promise((_, reject) => held.push(reject));
    return value;
  };
  for (const [name, value] of Object.entries(options)) if (value?.number) options[name] = Number(value.number);
  if (Array.isArray(options.load)) options.load = calls("load", options.load);
  if (options.headers?.calls) options.headers = calls("headers", options.headers.calls);
  return options;
}

/**
 * `fetch` with a body that is torn where the URL's `tear` says: in front of that byte, or at "each". The network's own
 * tears cannot be told to a test: what comes in two pieces is read in one where the reader is a little late.
 */
export function tearing(fetch) {
  return async (url, options) => {
    const response = await fetch(url, options);
    const tear = new URL(url).searchParams.get("tear");
    if (tear === null || !response.ok) return response;
    let passed = 0;
    const transform = (chunk, controller) => {
      const cuts = tear === "each" ? [...chunk.keys()] : [0, Math.max(0, Math.min(tear - passed, chunk.length))];
      passed += chunk.length;
      cuts.forEach((from, index) => {
        const part = chunk.subarray(from, cuts[index + 1] ?? chunk.length);
        if (part.length) controller.enqueue(part);
      });
    };
    return new Response(response.body.pipeThrough(new TransformStream({ transform })), response);
  };
}
