/** Runs drive.mjs under node: argument 1 is push.js's address; commands on standard input, events on standard output. */
import { createInterface } from "node:readline";
import { drive, tearing } from "./drive.mjs";

globalThis.fetch = tearing(fetch);
const { subscribe } = await import(process.argv[2]);
const send = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
process.on("uncaughtException", (error) => send({ name: "uncaught", error: error.message }));
const act = drive(subscribe, send);
createInterface({ input: process.stdin }).on("line", (line) => act(JSON.parse(line))).on("close", () => process.exit());
