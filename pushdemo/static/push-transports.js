/**
 * The four ways in which messages come to the page, each a function that reads one connection until it is over.
 *
 * What lives here: wire formats. What must not: requests and bytes (push-connection.js), when to connect (push.js).
 * Formats: RFC 2046, 5.1 (multipart); WHATWG HTML, 9.2 (server-sent events); one JSON object a line; one JSON object.
 * A reader delivers what comes, returns where the server ends the connection, and throws a Stop for anything it knows.
 */

import { Stop } from "./push-connection.js";
import { timerDelay } from "./retry.js";

export const READERS = { multipart: readMultipart, sse: readEvents, jsonlines: readLines, longpoll: readPolls };

const POLL_PATIENCE = 120_000; // ms, or 8 heartbeats: a poll that takes longer has lost its server
const POLL_STATES = ["ready", "waiting", "failing", "done"];
const AT_ONCE = 1000; // ms: a poll that takes longer has waited for its message, a browser for the server's pause

async function readMultipart(connection) {
  const { type, incoming } = await connection.stream("multipart/x-mixed-replace");
  const boundary = /boundary=(?:"([^"]+)"|([^";\s]+))/i.exec(type);
  if (!boundary) throw unexpected(`no boundary in ${type}`);
  const delimiter = `--${boundary[1] ?? boundary[2]}`;
  let line = await incoming.line();
  while (line !== null && !line.startsWith(delimiter)) line = await incoming.line(); // the preamble
  while (line === delimiter) line = await readPart(connection, incoming);
  if (line === `${delimiter}--`) throw new Stop("ended");
  if (line !== null) throw unexpected(`expected the boundary, got ${line.slice(0, 60)}`);
}

const unexpected = (reason) => new Stop("waiting", "unexpected-answer", reason);

/** Reads one part, and returns the line after it. Lines of its header block may come long before the rest. */
async function readPart(connection, incoming) {
  const headers = new Map();
  let line;
  while ((line = await incoming.line())) {
    const colon = line.indexOf(":");
    const [name, value] = [line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim()];
    headers.set(name, value);
    if (name === "x-last-event-id") connection.begin(value);
    if (name === "x-reset") connection.reset(headers.get("x-last-event-id"));
    if (name === "x-failing") value === "0" ? connection.work() : connection.fail();
    if (name === "x-retry") connection.pauseFor(Number(value));
  }
  if (line === null) return null;
  // Without a length the part is empty: its boundary line was sent ahead, and then the source finished.
  if (!headers.has("content-length")) return incoming.line();
  const length = headers.get("content-length");
  if (!/^\d+$/.test(length)) throw unexpected(`expected a part's length, got ${length.slice(0, 60)}`);
  const body = await incoming.take(Number(length));
  if (body === null) return null;
  const content = contentOf(headers.get("content-type"), body);
  const [id, topic, event] = ["x-message-id", "x-topic", "x-event"].map((name) => headers.get(name));
  connection.deliver({ id, topic, event, content });
  const end = await incoming.line();
  return end === "" ? incoming.line() : end;
}

function contentOf(type = "text/plain", body) {
  const essence = type.split(";")[0].trim().toLowerCase();
  const text = () => new TextDecoder("utf-8", { ignoreBOM: true }).decode(body); // a U+FEFF is the text's own
  if (/[/+]json$/.test(essence)) return JSON.parse(text());
  return /^text\/|[/+]xml$|^application\/javascript$/.test(essence) ? text() : body;
}

async function readLines(connection) {
  const { incoming } = await connection.stream("application/x-ndjson");
  for (let line; (line = await incoming.line()) !== null; ) {
    if (line) readItem(connection, JSON.parse(line));
  }
}

function readItem(connection, { state, retry, last_event_id: last, id, topic, event, content }) {
  if (state === undefined) connection.deliver({ id, topic, event, content });
  else if (state === "begin") connection.begin(last);
  else if (state === "reset") connection.reset(last);
  else if (state === "failing") connection.fail();
  else if (state === "working") connection.work();
  else if (state === "waiting") connection.pauseFor(retry);
  else if (state === "done") throw new Stop("ended");
}

async function readPolls(connection) {
  for (;;) {
    const { atOnce, messages } = await poll(connection);
    connection.healthy ||= !atOnce;
    if (atOnce && !messages) throw new Stop("waiting", "empty-answer", "the server answered without a message");
  }
}

/** Asks once and delivers what comes. Returns how many messages came, and whether they came at once. */
export async function poll(connection) {
  const asked = performance.now();
  const patience = AbortSignal.timeout(timerDelay(Math.max(POLL_PATIENCE, 8 * connection.heartbeat)));
  const response = await connection.request("application/json", AbortSignal.any([connection.signal, patience]));
  const { state, messages = [], last_event_id: last, reset, failing, retry } = await response.json();
  if (!POLL_STATES.includes(state)) throw connection.stranger(response, "expected an answer to a poll, got other JSON");
  connection.heard();
  if (reset) connection.reset(messages.length ? undefined : last);
  for (const { id, topic, event, content } of messages) connection.deliver({ id, topic, event, content });
  connection.resumeAfter(last); // also where nothing came: the next poll goes on from here
  if (failing || state === "failing") connection.fail();
  if (failing === false) connection.work();
  if (state === "done") throw new Stop("ended");
  if (retry !== undefined) {
    throw new Stop("waiting", "server-pause", "the server asked for a pause", { retry: timerDelay(retry) });
  }
  return { atOnce: performance.now() - asked < AT_ONCE, messages: messages.length };
}

/**
 * Reads an EventSource. It hides why it was refused, and the heartbeats too: a silent one may have nothing to say or be
 * held back on the way. In both cases a poll in its place tells, and brings what there is.
 */
async function readEvents(connection) {
  for (;;) {
    const { refused } = await listenTo(connection);
    if (!refused && !connection.bytes) throw connection.silence();
    const { atOnce, messages } = await poll(connection);
    if (refused) throw new Stop("stalled", "stream-refused", "a stream of events was refused, a poll was not");
    if (atOnce && messages) throw connection.silence();
  }
}

/**
 * Delivers an EventSource's events until it is refused, or silent for two heartbeats.
 *
 * It hides the field `topic`: which topic an event is of is known by the epoch of its id, since the stream begins with
 * the ids of all topics where there are several. A browser would come back with the last id alone, which is that of one
 * topic: such a stream is made again by push.js instead.
 */
function listenTo(connection) {
  connection.signal.throwIfAborted();
  const { cursor, options } = connection.subscription;
  const { credentials, events } = options;
  const source = new EventSource(connection.address({ ids: "topic" }), { withCredentials: credentials === "include" });
  let timer;
  const over = new AbortController();
  return new Promise((resolve, reject) => {
    let open = false;
    let opened, empty; // when the stream has begun, and whether no message has come over it
    let soon = 0; // times in a row that the browser has come back at once from an empty stream
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => resolve({ refused: false }), timerDelay(2 * connection.heartbeat));
    };
    const on = (name, act) => source.addEventListener(name, act);
    const message = ({ type, lastEventId, data }) => {
      wait();
      empty = false;
      connection.flowed();
      const topic = cursor.topicOf(lastEventId);
      const event = type === "message" ? undefined : type;
      const content = connection.isText(topic) ? data : valueOf(data);
      connection.deliver({ id: lastEventId, topic, event, content });
    };
    for (const name of ["message", ...events]) on(name, message);
    on("begin", ({ lastEventId }) => connection.begin(lastEventId));
    on("reset", ({ lastEventId }) => connection.reset(lastEventId));
    on("failing", () => connection.fail());
    on("working", () => connection.work());
    on("end", () => reject(new Stop("ended")));
    on("open", () => {
      const now = performance.now();
      soon = empty && now - opened < AT_ONCE ? soon + 1 : 0;
      [open, opened, empty] = [true, now, true];
      wait();
      connection.heard();
    });
    on("error", () => {
      const lost = new Stop("waiting", "connection-lost", "the connection was lost");
      // Once the browser may connect again by itself, after the server's own pause; then the growing pause is ours.
      if (!open || source.readyState === EventSource.CLOSED) return resolve({ refused: true });
      if (cursor.named().length) return reject(lost);
      if (empty && soon > 1) return reject(Object.assign(lost, { retry: AT_ONCE }));
      open = false;
      connection.subscription.tell("waiting", lost);
    });
    connection.signal.addEventListener("abort", () => reject(connection.stopped), { signal: over.signal });
    wait();
  }).finally(() => {
    over.abort();
    clearTimeout(timer);
    source.close();
  });
}

/** An event's data comes without its type. XML begins with "<", and JSON never does; of plain text a page must tell. */
function valueOf(data) {
  if (data.startsWith("<")) return data;
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}
