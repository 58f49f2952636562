/**
 * What a message looks like on its way, by each transport: the text that the server has sent for it, and how to ask for
 * the same in a terminal. Formats: docs/transports.md.
 */

const json = JSON.stringify;
const item = ({ id, content }) => `{"id": ${json(id)}, "content": ${json(content)}}`;

const FORMATS = {
  multipart: ({ id, content }, boundary) => {
    const length = new TextEncoder().encode(content).length;
    const head = ["Content-Type: application/xml", `Content-Length: ${length}`, `X-Message-Id: ${id}`];
    return [...head, "", content, `--${boundary}`, ""].join("\n");
  },
  sse: ({ id, content }) => `id: ${id}\n${content.replace(/^/gm, "data: ")}\n\n`,
  jsonlines: (message) => `${item(message)}\n`,
  longpoll: (message) => `{"state": "ready", "messages": [${item(message)}], "last_event_id": ${json(message.id)}}`,
};

const TYPES = {
  multipart: "multipart/x-mixed-replace",
  sse: "text/event-stream",
  jsonlines: "application/x-ndjson",
  longpoll: "application/json",
};

/** Returns the text of a message on its way. */
export function onTheWire(message, transport, boundary) {
  return FORMATS[transport](message, boundary);
}

/** Returns the header that asks for a transport. */
export function acceptOf(transport) {
  return `Accept: ${TYPES[transport]}`;
}

/** Returns the command that shows a transport in a terminal. */
export function curlOf(address, transport) {
  return `curl -N -H '${acceptOf(transport)}' \\\n  ${address}`;
}
