/** Opens the demo in Firefox and prints, as JSON, what is there to be seen. node firefox.mjs PUPPETEER FIREFOX SITE */

import { createRequire } from "node:module";

const [folder, executablePath, site] = process.argv.slice(2);
const { default: puppeteer } = await import(createRequire(import.meta.url).resolve(folder));
const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true });
const complaints = [];

/** A tab that notes errors of the console, of scripts and of requests. */
async function open(path, waitUntil = "domcontentloaded") {
  const page = await browser.newPage();
  page.on("console", (message) => message.type() === "error" && complaints.push(`${path}: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`${path}: ${error.message}`));
  page.on("response", (response) => response.status() >= 400 && complaints.push(`${response.status()} ${response.url()}`));
  await page.goto(site + path, { waitUntil });
  return page;
}

/** The numbers in the list once there are so many messages. */
async function messages(page, count) {
  await page.waitForFunction((least) => document.querySelectorAll("#container > li").length >= least, {}, count);
  return page.$$eval("#container > li", (items) => items.map((item) => item.textContent.match(/#(\d+)/)?.[1]));
}

/** How many connections the server has for the front page's messages. */
async function connections() {
  const response = await fetch(`${site}/status`, { headers: { Accept: "application/json" } });
  const { topics } = await response.json();
  return topics.find(({ topic }) => topic === "server").clients;
}

/** How many different pictures are to be seen within 30 s, of `wanted`: of what is on the screen, not of the element. */
async function pictures(page, wanted) {
  const image = await page.waitForSelector("#chart");
  await page.waitForFunction((image) => image.naturalWidth > 0, {}, image);
  const seen = new Set();
  for (const end = Date.now() + 30_000; seen.size < wanted && Date.now() < end; ) {
    seen.add(await image.screenshot({ encoding: "base64" }));
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return seen.size;
}

try {
  const tabs = [await open("/"), await open("/")];
  await messages(tabs[0], 2);
  const seen = { tabs: await Promise.all(tabs.map((tab) => messages(tab, 5))) };
  seen.connections = await connections();
  await tabs[0].close(); // the one that has the connection
  const count = (await messages(tabs[1], 1)).length;
  seen.afterwards = await messages(tabs[1], count + 3);
  await tabs[1].close();
  seen.pictures = await pictures(await open("/load"), 3);
  console.log(JSON.stringify({ ...seen, complaints }));
} finally {
  await browser.close();
}
