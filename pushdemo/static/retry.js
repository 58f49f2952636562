/**
 * When to ask again: growing pauses, Retry-After, timers, and what never will be answered. push.js and poll.js both wait
 * by these rules.
 */

const LONGEST_TIMER = 2 ** 31 - 1; // ms, 24 days: a browser runs a longer timer at once

/** Returns the pause before the next attempt, in ms: it doubles with each failure in a row, up to `longest`. */
export function growingPause(failures, { first, longest }) {
  // Random, between half and all of it: the clients of a server that was away must not all return at one moment.
  return Math.round(Math.min(longest, first * 2 ** failures) * (0.5 + Math.random() / 2));
}

/** Returns what a response's Retry-After says, in ms, or undefined. It is in seconds or a date (RFC 9110, 10.2.3). */
export function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return undefined;
  return timerDelay(/^\d+$/.test(value) ? 1000 * Number(value) : Date.parse(value) - Date.now());
}

/** Returns `ms` as a timer can wait for it, or undefined where it is no number. */
export function timerDelay(ms) {
  return Number.isNaN(ms) ? undefined : Math.min(LONGEST_TIMER, Math.max(0, ms));
}

/** Returns an option in ms. Throws a TypeError that names it where it is no number, or below `least`. */
export function duration(name, ms, least) {
  if (typeof ms === "number" && ms >= least) return timerDelay(ms);
  throw new TypeError(`${name} ${String(ms)}: must be a number of milliseconds, ${least} or more`);
}

/**
 * Whether the server redirects this request, which has failed. fetch does not say so where the redirect leads to another
 * site, such as one for logins: it looks like a lost connection, and would be tried again for ever.
 */
export async function isRedirected(address, init) {
  const response = await fetch(address, { ...init, redirect: "manual" }).catch(() => undefined);
  await response?.body?.cancel();
  return response?.type === "opaqueredirect";
}

export const ELSEWHERE = "the server redirects the request to another site, as to a login page";
