/** Runs drive.mjs under node: argument 1 is the folder of push.js and poll.js; commands on standard input, events on standard output. */
import { createInterface } from "node:readline";
import { drive, tearing } from "./drive.mjs";

globalThis.fetch = tearing(fetch);
const modules = await Promise.all(["push.js", "poll.js"].map((file) => import(process.argv[2] + file)));
const send = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
process.on("uncaughtException", (error) => send({ name: "uncaught", error: error.message }));
const act = drive(Object.assign({}, ...modules), send);
createInterface({ input: process.stdin }).on("line", (line) => act(JSON.parse(line))).on("close", () => process.exit());
