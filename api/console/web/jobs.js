// Jobs: the list, its search and its pages; the chosen one stands beside it.

import { call, pathOf } from "./api.js";
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

export const jobs = {
  open(root, start, signal) {
    let at = start, chosen = "", leaveJob = null, turn = 0, detail = null;
    const list = make("ul", { id: "job-list", className: "rows", "aria-label": "Jobs, newest first" });
    const none = make("p", { id: "job-none", className: "quiet", hidden: true });
    const pages = make("nav", { className: "pages", "aria-label": "Pages of the list" });
    const place = make("div", { id: "detail-place" });
    const change = (query) => replace("jobs", at.id, { ...here().query, ...query, cursor: "" });
    root.append(card("jobs", "Jobs", toolbar(at, change), strip(signal), list, none, pages), place);

    async function load() {
      const asked = ++turn;
      const { jobs: found, next } = await read(at.query, signal);
      if (asked !== turn) return; // another page was asked for meanwhile
      drawRows(list, found, at);
      drawPages(pages, at, next);
      none.hidden = found.length > 0;
      none.textContent = at.query.search || at.query.state ? "No job matches." : "No jobs yet. Press n to submit one.";
    }

    function choose(id) {
      if (id === chosen) return;
      leaveJob?.abort();
      chosen = id;
      root.classList.toggle("has-job", Boolean(id));
      place.replaceChildren();
      detail = null;
      if (!id) return;
      leaveJob = new AbortController();
      signal.addEventListener("abort", () => leaveJob.abort());
      detail = openJob(place, id, leaveJob.signal, {
        onChange: () => load().catch(() => {}),
        reopen: () => { choose(""); choose(id); load().catch(() => {}); },
      });
    }

    const pause = () => (at.query.search ? SEARCH_MS : PLAIN_MS);
    const poll = () => {
      if (signal.aborted) return;
      setTimeout(async () => { if (!document.hidden) await load().catch(() => {}); poll(); }, pause());
    };
    choose(at.id);
    doing(load).then(poll);
    return {
      update(next) {
        const isOther = ["state", "search", "cursor"].some((name) => next.query[name] !== at.query[name]);
        at = next;
        choose(at.id);
        if (isOther) doing(load);
        else for (const item of list.children) {
          item.firstChild.setAttribute("aria-current", String(item.dataset.id === at.id));
        }
      },
      step(by) {
        const rows = [...list.querySelectorAll(".row")];
        const current = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
        const row = rows[Math.min(Math.max(current + by, 0), rows.length - 1)];
        row?.focus();
        row?.click();
      },
      back() {
        const row = list.querySelector('[aria-current="true"]');
        if (matchMedia("(max-width: 60rem)").matches && at.id) go("jobs", "", at.query);
        (row ?? el("jobs")).focus();
      },
      cancel: () => detail?.cancel(),
    };
  },
};

