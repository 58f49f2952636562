/**
 * Subscribes to the topic or topics at `url`. The states "ended" and "failed" are final.
 *
 * @param {string|URL} url
 * @param {Options} [options]
 * @returns {Readonly<Handle>}
 * @throws {TypeError} for an option that cannot be, or a URL that is none
 */
export function subscribe(url: string | URL, options?: Options): Readonly<Handle>;
export type Transport = "multipart" | "sse" | "jsonlines" | "longpoll";
export type Message = {
    /**
     * numbers the message in its topic
     */
    id: string;
    /**
     * its topic's name, where one connection carries several
     */
    topic?: string | undefined;
    /**
     * the event's name, where the publisher gave one
     */
    event?: string | undefined;
    /**
     * XML and other text as a string, a JSON topic's value, anything else as a Uint8Array
     */
    content: any;
};
export type StateName = "connecting" | "live" | "failing" | "stale" | "waiting" | "paused" | "ended" | "failed";
export type Code = StateName | "server-ended" | "server-pause" | "connection-lost" | "refused" | "unauthorized" | "forbidden" | "login" | "unexpected-answer" | "empty-answer" | "held-back" | "stream-refused" | "load-failed" | "headers-failed";
export type State = {
    /**
     * "failing": the server's source fails, and the server goes on trying; "stale": nothing has
     * come for one and a half heartbeats; "paused": the page is hidden; "ended": the source is finished; "failed": the
     * server refuses for good
     */
    state: StateName;
    /**
     * why, for a translation: it stands for `reason` where there is one, else for `state`
     */
    code: Code;
    /**
     * the one in use
     */
    transport: Transport;
    /**
     * true where long polling stands in for a stream that something on the way holds back
     */
    fallback: boolean;
    /**
     * why, in English: with "waiting", "failed" and `fallback`
     */
    reason?: string | undefined;
    /**
     * the HTTP status, where the server refused
     */
    status?: number | undefined;
    /**
     * where a page came from in place of the stream, such as a login page
     */
    address?: string | undefined;
    /**
     * with "waiting": ms until the next attempt, where it is known
     */
    retry?: number | undefined;
};
export type Options = {
    /**
     * "multipart" unless given
     */
    transport?: Transport | undefined;
    onmessage?: ((message: Message) => void) | undefined;
    /**
     * takes the messages whose publisher named an event; without it
     * `onmessage` takes them too
     */
    onevent?: ((message: Message) => void) | undefined;
    onstate?: ((state: State) => void) | undefined;
    /**
     * messages were missed: the history no longer reaches back
     */
    onreset?: (() => void) | undefined;
    /**
     * fetches and draws the page's
     * state, and returns the id that the state is of. It runs first, and again after each reset; the stream goes on from
     * that id. `signal` is aborted when the subscription is closed
     */
    load?: ((options: {
        signal: AbortSignal;
    }) => Promise<string | null | undefined>) | undefined;
    /**
     * begin after this message; "earliest": with all that the history holds; "latest":
     * with nothing but what comes from now on; without it: with the newest message
     */
    lastEventId?: string | undefined;
    /**
     * who the user is, or any text: tabs of this browser with the same text and URL share
     * one connection. It works on https and on localhost; elsewhere each tab has a connection of its own
     */
    acrossTabs?: string | undefined;
    /**
     * for each request; a function is called
     * before each attempt, and once more after 401 and 403; after two heartbeats it has failed. Not with "sse": an
     * EventSource sends no headers of a page's own
     */
    headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>) | undefined;
    /**
     * as `fetch` has it. With "sse" not "omit", which an EventSource cannot do
     */
    credentials?: RequestCredentials | undefined;
    /**
     * true for plain text, or the names of such topics: an EventSource hides a
     * message's type, so that over "sse" a text that reads as JSON would come as its value ("42" as the number)
     */
    text?: boolean | string[] | undefined;
    /**
     * the names of events; an EventSource hears only those whose names it knows
     */
    events?: string[] | undefined;
    /**
     * ms between the server's signs of life: 15,000 unless given
     */
    heartbeat?: number | undefined;
    /**
     * ms that the page stays hidden before the connection is given back: 30,000 unless
     * given; Infinity: never
     */
    hiddenAfter?: number | undefined;
};
export type Handle = {
    /**
     * ends the subscription
     */
    close: () => void;
    /**
     * what a later subscription can begin after
     */
    lastEventId: string;
};
