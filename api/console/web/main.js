// The console's frame: pages by their address, keyboard, key, theme. No framework and no build step.

import { call, key, on, repeat } from "./api.js";
import { approvals } from "./approvals.js";
import { batches } from "./batches.js";
import { dead } from "./dead.js";
import { copyText, doing, el } from "./dom.js";
import { files } from "./files.js";
import { jobs } from "./jobs.js";
import { keys } from "./keys.js";
import { models } from "./models.js";
import { play } from "./play.js";
import { go, here } from "./route.js";
import { usage } from "./usage.js";
import { webhooks } from "./webhooks.js";

const PAGES = { jobs, play, models, dead, approvals, batches, files, webhooks, usage, keys };
const OVERVIEW_MS = 2000, DEAD_MS = 10000;
const now = { name: "", page: null, leave: null };

/** Opens the page of the address, or tells the open one what changed. */
function show() {
  const at = here();
  const name = at.page in PAGES ? at.page : "jobs";
  if (now.name === name && now.page?.update) {
    now.page.update(at);
    return;
  }
  now.leave?.abort();
  now.leave = new AbortController();
  now.name = name;
  el("alert").hidden = true;
  el("page").className = `page-${name}`;
  el("page").replaceChildren();
  document.title = "Torpor console";
  for (const link of el("nav").children) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  el("nav").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  now.page = PAGES[name].open(el("page"), at, now.leave.signal) ?? null;
}

// --- key -------------------------------------------------------------------------------------

let wasAsked = false;

/** Asks for the key: once by itself, and when a person presses the button. */
function askForKey(isPressed) {
  if (el("key-dialog").open || (wasAsked && !isPressed)) return;
  wasAsked = true;
  el("key").value = "";
  el("key-dialog").returnValue = "";
  el("key-dialog").showModal();
}

el("key-dialog").addEventListener("close", () => {
  const { returnValue } = el("key-dialog");
  if (returnValue === "forget") key.forget();
  if (returnValue === "use" && el("key").value) {
    key.set(el("key").value.trim());
    wasAsked = false; // a key that is refused is asked for again
  }
  el("key").value = "";
  if (returnValue) reopen();
});

/** The page anew, with another key. */
function reopen() {
  now.name = "";
  show();
  refresh();
}

// --- what every page shows -----------------------------------------------------------------------

function pulse(state, said) {
  el("pulse").dataset.state = state;
  if (el("pulse").textContent !== said) el("pulse").textContent = said;
}

async function countDead() {
  const page = await call("GET", "/v1/dead-letters?limit=50&include=prompt");
  el("dead-count").textContent = page.data.length + (page.next_cursor ? "+" : "");
  el("dead-count").hidden = !page.data.length;
}

const refresh = () => doing(async () => {
  await models.load();
  pulse("live", "live");
  await countDead();
});

// --- keyboard --------------------------------------------------------------------------------

function onKey(event) {
  const isDialog = document.querySelector("dialog[open]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && now.page?.submit && !isDialog) {
    event.preventDefault();
    now.page.submit();
    return;
  }
  if (event.key === "Escape" && !isDialog) {
    if (now.page?.back) now.page.back();
    else el("page").focus();
    return;
  }
  const isTyping = event.target.matches("input, textarea, select") || isDialog;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    n: () => { open("play"); el("prompt").focus(); },
    d: () => { open("dead"); el("page").focus(); },
    "/": () => { open("jobs"); el("search").focus(); },
    j: () => now.page?.step?.(1),
    k: () => now.page?.step?.(-1),
    c: () => now.page?.cancel?.(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
}

/** Goes to a page at once, so that its fields can have the focus. */
function open(name) {
  if (here().page !== name) go(name);
  show();
}

function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  localStorage.setItem("torpor-theme", root.dataset.theme);
}

const theme = localStorage.getItem("torpor-theme");
if (theme) document.documentElement.dataset.theme = theme;
on.unauthorized = () => askForKey(false);
on.pulse = pulse;
on.deadChanged = () => countDead().catch(() => {});
document.addEventListener("keydown", onKey);
addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => { // its address is no page's
  event.preventDefault();
  el("page").focus();
});
el("key-open").addEventListener("click", () => askForKey(true));
el("theme").addEventListener("click", switchTheme);
el("text-copy").addEventListener("click", copyText);
el("text-dialog").addEventListener("close", () => { el("text-body").textContent = ""; }); // it may have been a key
show();
repeat(OVERVIEW_MS, null, async () => { await models.load(); pulse("live", "live"); });
repeat(DEAD_MS, null, countDead);
