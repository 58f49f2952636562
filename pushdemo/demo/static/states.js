/** What the states of a subscription are called on the pages. */

const WORDS = {
  connecting: "Connecting",
  live: "Live",
  failing: "The source fails; the server goes on trying",
  stale: "Stale: nothing comes",
  waiting: "Connection lost; it is made again",
  paused: "Paused while hidden",
  ended: "Ended: the source is finished",
  failed: "Refused",
};

/** The words for what push.js tells `onstate`. */
export function describe({ state, reason }) {
  return reason && state === "failed" ? `${WORDS[state]}: ${reason}` : WORDS[state];
}
