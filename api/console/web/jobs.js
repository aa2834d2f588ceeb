// Jobs: the list, its search and its pages; the chosen one stands beside it.

import { call, locked, pathOf } from "./api.js";
import { card, choice, doing, el, make } from "./dom.js";
import { age, amount, moment, words } from "./format.js";
import { openJob } from "./job.js";
import { models } from "./models.js";
import { go, here, link, replace } from "./route.js";

const ROWS = 25, CALLS = 4, PLAIN_MS = 2000, SEARCH_MS = 10000, TYPED_MS = 300;
const STATES = [["", "all"], ["queued,in_progress", "not ended"], "completed", "failed", "cancelled", "incomplete"];

/** The rows of an address. A page may be short before the end of the list: then a few more are read. */
async function read({ state = "", search = "", cursor = "" }, signal) {
  const found = [];
  let next = cursor;
  for (let calls = 0; calls < CALLS && found.length < ROWS; calls += 1) {
    const query = { limit: ROWS - found.length, include: "prompt", state, search, cursor: next };
    const page = await call("GET", pathOf("/v1/jobs", query), undefined, signal);
    found.push(...page.data);
    if (!(next = page.next_cursor)) break;
  }
  return { jobs: found, next };
}

function newRow(id) {
  const row = make("a", { className: "row" },
    make("span", { className: "state" }), make("span", { className: "prompt" }), make("span", { className: "more" }));
  return make("li", { data: { id } }, row);
}

function fillRow(item, job, at) {
  const row = item.firstChild;
  const [state, prompt, more] = row.children;
  row.href = link("jobs", job.id, at.query);
  row.setAttribute("aria-current", String(job.id === at.id));
  state.dataset.state = job.state;
  state.textContent = words(job.state);
  prompt.textContent = job.prompt || job.id;
  prompt.classList.toggle("id", !job.prompt);
  const attempt = job.attempt > 1 ? `attempt ${job.attempt} · ` : "";
  more.textContent = `${age(job.created_ms)} · ${attempt}${amount(job.token_count)} tokens · ${job.model}`;
  row.title = `${job.id}, submitted ${moment(job.created_ms)}`;
}

/** Rows stay the same elements while their job is listed, so that focus stays where it is. */
function drawRows(list, jobs, at) {
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  const wanted = jobs.map((job) => {
    const row = rows.get(job.id) ?? newRow(job.id);
    fillRow(row, job, at);
    return row;
  });
  if (wanted.length !== list.children.length || wanted.some((row, place) => list.children[place] !== row)) {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    list.replaceChildren(...wanted);
    focused?.focus({ preventScroll: true });
  }
}

/** One line a model: enough to see why a job waits. */
function strip(signal) {
  const line = make("ul", { className: "strip", "aria-label": "Models" });
  models.watch(signal, (overview) => line.replaceChildren(...overview.models.map((model) => {
    const ready = model.replicas.filter((replica) => replica.phase === "ready").length;
    const starting = model.replicas.find((replica) => !["ready", "draining"].includes(replica.phase));
    const is = ready ? `${ready} ready` : starting ? `waking: ${starting.phase}` : "asleep";
    const waiting = models.waitingOf(model.queue);
    return make("li", {}, make("a", { href: link("models"), data: { awake: ready ? "yes" : starting ? "soon" : "no" } },
      `${model.model} · ${is}${waiting ? ` · ${waiting} waiting` : ""}`));
  })));
  return line;
}

function toolbar(state, change) {
  let typed = 0;
  const search = make("input", {
    id: "search", type: "search", placeholder: "words, or an id", value: state.query.search ?? "", maxLength: 256,
    "aria-label": "Search in id, model and the start of the prompt",
    oninput: () => { clearTimeout(typed); typed = setTimeout(() => change({ search: search.value }), TYPED_MS); },
  });
  const filter = choice({ id: "filter", "aria-label": "State", onchange: () => change({ state: filter.value }) },
    STATES, state.query.state ?? "");
  return [search, filter];
}

function drawPages(nav, at, next) {
  nav.replaceChildren(...[
    at.query.cursor ? make("a", { href: link("jobs", at.id, { ...at.query, cursor: "" }) }, "Newest") : null,
    next ? make("a", { id: "older", href: link("jobs", at.id, { ...at.query, cursor: next }) }, "Older") : null,
  ].filter(Boolean));
}

class JobsPage {
  constructor(root, at, signal) {
    Object.assign(this, { root, at, signal, chosen: "", turn: 0, leaveJob: null, detail: null });
    this.list = make("ul", { id: "job-list", className: "rows", "aria-label": "Jobs, newest first" });
    this.none = make("p", { id: "job-none", className: "quiet", hidden: true });
    this.pages = make("nav", { className: "pages", "aria-label": "Pages of the list" });
    this.place = make("div", { id: "detail-place" });
    const change = (query) => replace("jobs", this.at.id, { ...here().query, ...query, cursor: "" });
    root.append(card("jobs", "Jobs", toolbar(at, change), strip(signal), this.list, this.none, this.pages), this.place);
    this.choose(at.id);
    doing(() => this.load()).then(() => this.poll());
  }

  async load() {
    const asked = ++this.turn;
    const { query } = this.at;
    const { jobs: found, next } = await read(query, this.signal);
    if (asked !== this.turn) return; // another page was asked for meanwhile
    drawRows(this.list, found, this.at);
    drawPages(this.pages, this.at, next);
    this.none.hidden = found.length > 0;
    this.none.textContent = query.search || query.state ? "No job matches." : "No jobs yet. Press n to submit one.";
  }

  /** Reads the list again, a while after it was read; what fails is tried again. */
  poll() {
    if (this.signal.aborted) return;
    const again = async () => {
      if (!document.hidden && !locked()) await this.refresh();
      this.poll();
    };
    setTimeout(again, this.at.query.search ? SEARCH_MS : PLAIN_MS);
  }

  refresh() { return this.load().catch(() => {}); }

  /** Shows a job beside the list, or none. */
  choose(id) {
    if (id === this.chosen) return;
    this.leaveJob?.abort();
    this.chosen = id;
    this.root.classList.toggle("has-job", Boolean(id));
    this.place.replaceChildren();
    this.detail = null;
    if (!id) return;
    this.leaveJob = new AbortController();
    this.signal.addEventListener("abort", () => this.leaveJob.abort());
    this.detail = openJob(this.place, id, this.leaveJob.signal, {
      onChange: () => this.refresh(),
      reopen: () => { this.choose(""); this.choose(id); this.refresh(); },
    });
  }

  update(next) {
    const isOther = ["state", "search", "cursor"].some((name) => next.query[name] !== this.at.query[name]);
    this.at = next;
    this.choose(next.id);
    if (isOther) doing(() => this.load());
    else for (const item of this.list.children) {
      item.firstChild.setAttribute("aria-current", String(item.dataset.id === next.id));
    }
  }

  step(by) {
    const rows = [...this.list.querySelectorAll(".row")];
    const current = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
    const row = rows[Math.min(Math.max(current + by, 0), rows.length - 1)];
    row?.focus();
    row?.click();
  }

  back() {
    const row = this.list.querySelector('[aria-current="true"]');
    if (matchMedia("(max-width: 60rem)").matches && this.at.id) go("jobs", "", this.at.query);
    (row ?? el("jobs")).focus();
  }

  cancel() { this.detail?.cancel(); }
}

export const jobs = {
  open: (root, at, signal) => new JobsPage(root, at, signal),
};
