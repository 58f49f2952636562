/**
 * Where a subscription is in each of its topics: the last id of each. For ids see docs/transports.md, "Ids and resume".
 *
 * A topic's id is `epoch-number`. The ids of several topics are written `name:id,name:id`. The name is "" where the
 * connection has one topic.
 */

export class Cursor {
  /** @param {string} text  what the server or the page gave; also "earliest" and "latest" */
  constructor(text = "") {
    this.ids = new Map(text ? parse(text) : []);
  }

  /** Takes a message's id: the last one of its topic, or, where it names no topic or several, the whole position. */
  set(id, topic = "") {
    if (!id) return;
    if (!topic || id.includes(":")) this.ids = new Map(parse(id));
    else this.ids.set(topic, id);
    if (this.ids.size > 1) this.ids.delete(""); // what the page began with
  }

  /** Takes the ids of those topics that have none yet. */
  add(text) {
    if (!text) return;
    if (text.includes(":")) this.ids = new Map([...parse(text), ...this.named()]);
    else if (!this.isNumbered() && !Number.isNaN(split(text)[1])) this.ids = new Map([["", text]]);
  }

  toString() {
    return Array.from(this.ids, ([name, id]) => (name ? `${name}:${id}` : id)).join(",");
  }

  /** Whether this is a position, and not only what a page begins with. */
  isNumbered() {
    return this.ids.size > 0 && [...this.ids.values()].every((id) => !Number.isNaN(split(id)[1]));
  }

  named() {
    return [...this.ids].filter(([name]) => name);
  }

  /** The name of the topic whose id this is, by its epoch, or undefined where the connection has one topic. */
  topicOf(id) {
    const [epoch] = split(id);
    return this.named().find(([, known]) => split(known)[0] === epoch)?.[0];
  }

  /** Whether the message is not after this position. */
  passed({ id, topic }) {
    return isAt(this.ids.get(topic ?? ""), ownId(id, topic));
  }

  /** Whether messages of its topic lie between this position and the message. */
  skips({ id, topic }) {
    const [epoch, number] = split(this.ids.get(topic ?? "") ?? "");
    const [itsEpoch, itsNumber] = split(ownId(id, topic));
    return epoch === itsEpoch && itsNumber > number + 1;
  }

  /** Whether this is at `other` or after it, in each of its topics. */
  reaches(other) {
    return [...other.ids].every(([name, id]) => isAt(this.ids.get(name), id));
  }
}

/** The id of the message before this one in its topic, or undefined where the id is of another form. */
export function idBefore({ id, topic }) {
  const [epoch, number] = split(ownId(id, topic));
  return Number.isNaN(number) ? undefined : `${epoch}-${number - 1}`;
}

/** A message's own id: where one id covers several topics, the part of its topic. */
function ownId(id, topic) {
  return id.includes(":") ? (new Map(parse(id)).get(topic) ?? id) : id;
}

function parse(text) {
  return text.split(",").map((part) => {
    const colon = part.indexOf(":");
    return [part.slice(0, Math.max(0, colon)), part.slice(colon + 1)];
  });
}

function split(id) {
  const dash = id.lastIndexOf("-");
  return [id.slice(0, dash), dash < 0 ? NaN : Number(id.slice(dash + 1))];
}

/** Whether `known` is the id `wanted`, or a later one of its epoch. */
function isAt(known, wanted) {
  if (known === undefined) return false;
  const [epoch, number] = split(known);
  const [wantedEpoch, wantedNumber] = split(wanted);
  return known === wanted || (epoch === wantedEpoch && number >= wantedNumber);
}
