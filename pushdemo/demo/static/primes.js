/** The page of the primes: starts and stops a series, and appends each prime to the list. */

import { sleep } from "../static/poll.js";
import { sessionButton } from "./session.js";

const LONGEST_LIST = 200;
const PAUSE = 500; // ms between two polls: a pace that can be read, and listened to

const byId = (id) => document.getElementById(id);

async function read(answers, signal) {
  byId("numbers").replaceChildren();
  for await (const { content, count } of answers) {
    append(content);
    byId("count").textContent = count;
    byId("largest").textContent = content;
    await sleep(PAUSE, signal);
  }
}

function append(number) {
  const item = document.createElement("li");
  item.textContent = number;
  byId("numbers").append(item);
  while (byId("numbers").children.length > LONGEST_LIST) byId("numbers").firstElementChild.remove();
}

sessionButton({
  url: byId("primes").dataset.url,
  button: byId("toggle"),
  state: byId("state"),
  words: { start: "Start", live: "Running", done: "Ended" },
  read,
});
