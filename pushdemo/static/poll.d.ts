/**
 * Yields the answers of a generator session, until its generator ends.
 *
 * @param {string|URL} url  the view
 * @param {Session & Requests} options
 * @returns {AsyncGenerator<{content: any, count: number}, any, undefined>}  it returns what the generator has returned
 * @throws {Refusal}
 * @throws {TypeError} for an option that cannot be
 */
export function poll(url: string | URL, { key, after, max, signal, onretry, ...requests }: Session & Requests): AsyncGenerator<{
    content: any;
    count: number;
}, any, undefined>;
/**
 * Returns a key that nobody guesses. `crypto.randomUUID` exists on https and on localhost only.
 *
 * @returns {string}
 */
export function newKey(): string;
/**
 * Ends a session: its generator's work stops at its next `yield`.
 *
 * @param {string|URL} url
 * @param {string} key
 * @param {Requests} [requests]
 * @returns {Promise<void>}
 * @throws {Refusal}
 */
export function cancel(url: string | URL, key: string, requests?: Requests): Promise<void>;
/**
 * Ends a session while the page closes, when nothing waits for an answer any more. It sends no headers.
 *
 * @param {string|URL} url
 * @param {string} key
 * @returns {void}
 */
export function leave(url: string | URL, key: string): void;
/**
 * Waits `ms`. Where `signal` is aborted before, it throws the signal's reason.
 *
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function sleep(ms: number, signal?: AbortSignal): Promise<void>;
/**
 * The server will not answer this poll, now or later. `message` has its reason; `status` is the HTTP status, `count` the
 * session's number of items, `address` where a page came from in place of the answer, such as a login page.
 */
export class Refusal extends Error {
    /**
     * @param {number} status
     * @param {{reason?: string, count?: number, address?: string}} body
     */
    constructor(status: number, { reason, count, address }: {
        reason?: string;
        count?: number;
        address?: string;
    });
    status: number;
    count: number;
    address: string | undefined;
}
/**
 * how the requests are made
 */
export type Requests = {
    /**
     * a function is called before each one
     */
    headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>) | undefined;
    /**
     * as `fetch` has it
     */
    credentials?: RequestCredentials | undefined;
};
export type Session = {
    /**
     * names the session; a new key begins one
     */
    key: string;
    /**
     * how many of its items the page has already
     */
    after?: number | undefined;
    /**
     * up to how many items to take at once; `content` is then a list
     */
    max?: number | undefined;
    /**
     * ends the polls; the session lives on until its timeout, see `cancel`
     */
    signal?: AbortSignal | undefined;
    /**
     * a poll failed and comes again in `pause` ms
     */
    onretry?: ((retry: {
        reason: string;
        pause: number;
    }) => void) | undefined;
};
