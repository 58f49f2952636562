/** The page of the document: shows each line as it comes, while the server still reads the file. */

import { sessionButton } from "./session.js";

const byId = (id) => document.getElementById(id);

async function read(answers, signal) {
  byId("text").replaceChildren();
  byId("text").setAttribute("aria-busy", "true");
  signal.addEventListener("abort", () => byId("text").setAttribute("aria-busy", "false"));
  for await (const { content, count } of answers) {
    byId("text").append(...content.map((line) => `${line}\n`));
    byId("count").textContent = count;
  }
  byId("text").setAttribute("aria-busy", "false");
}

const run = sessionButton({
  url: byId("document").dataset.url,
  max: 4,
  button: byId("toggle"),
  state: byId("state"),
  words: { start: "Read again", live: "Reading", done: "Read to its end" },
  read,
});
run();
