/** The page of the document: shows each line as it comes, while the server still reads the file, and follows its end. */

import { sessionButton } from "./session.js";

const byId = (id) => document.getElementById(id);

async function read(answers, signal) {
  byId("text").replaceChildren();
  byId("text").setAttribute("aria-busy", "true");
  signal.addEventListener("abort", () => byId("text").setAttribute("aria-busy", "false"));
  for await (const { content, count } of answers) {
    const text = byId("text");
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40; // else the reader has scrolled up
    text.append(...content.map((line) => `${line}\n`));
    if (atEnd) text.scrollTop = text.scrollHeight;
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
