// The console: the public API, and nothing else. No framework and no build step; what a model or a
// tenant wrote only ever becomes text (textContent), never markup.

const el = (id) => document.getElementById(id);
const OVERVIEW_MS = 1000, JOBS_MS = 2000, DEAD_MS = 5000, LIFE_MS = 1000, RETRY_MS = 1000;
const ENDED = new Set(["completed", "failed", "cancelled", "incomplete"]);
const seen = { jobs: [], current: "", follow: null, models: "", isWhole: false };

/** An element with properties and children; strings become text. */
function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// --- calls -----------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, words) { super(words); this.status = status; }
}

function headers(more = {}) {
  const key = sessionStorage.getItem("torpor-key");
  return key ? { authorization: `Bearer ${key}`, ...more } : more;
}

/** The JSON of a call; throws `Refused` with the api's own words. */
async function call(method, path, body) {
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  const more = body === undefined ? {} : { "content-type": "application/json" };
  const answer = await fetch(path, { method, headers: headers(more), ...sent });
  if (answer.status === 401) askForKey();
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, content.detail || `the api answered ${answer.status}`);
  return content;
}

/** Runs what a person asked for; a refusal is said, not thrown. */
async function doing(work) {
  try {
    el("alert").hidden = true;
    await work();
  } catch (error) {
    el("alert").textContent = error.message;
    el("alert").hidden = false;
  }
}

/** Calls `work` again and again, `pauseMs` after it is done; pauses while the page is hidden. */
function repeat(pauseMs, work) {
  const turn = async () => {
    if (!document.hidden) {
      try { await work(); } catch (error) { pulse("away", error.message); }
    }
    setTimeout(turn, pauseMs);
  };
  turn();
}

function pulse(state, words) {
  el("pulse").dataset.state = state;
  if (el("pulse").textContent !== words) el("pulse").textContent = words;
}

// --- models: queues, replicas, phases of a cold start ------------------------------------------

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;

function numbers(queue, replicas) {
  const waiting = Object.values(queue.waiting).reduce((sum, count) => sum + count, 0);
  const lanes = Object.entries(queue.waiting).map(([lane, count]) => `${lane} ${count}`).join(", ");
  const shown = [
    ["waiting", waiting, lanes],
    ["in delivery", queue.in_delivery, ""],
    ["retrying", queue.retrying, ""],
    ["a minute", queue.settled_per_minute, "jobs done a minute, of late"],
    ["expected wait", queue.expected_wait_s === null ? "–" : `${queue.expected_wait_s} s`, ""],
    ["replicas", replicas.length, ""],
  ];
  return make("dl", { className: "numbers" }, ...shown.map(([name, value, title]) =>
    make("div", { title }, make("dt", {}, name), make("dd", {}, String(value)))));
}

/** One replica: the phases of its start that are over, each as wide as it was long, and the present one. */
function replicaRow(replica, nowMs) {
  const phases = Object.entries(replica.phases);
  const total = phases.reduce((sum, [, long]) => sum + long, 0);
  const nowS = Math.max(0, (nowMs - replica.since_ms) / 1000);
  const bar = make("div", { className: "phases", role: "img" });
  const words = phases.map(([name, long]) => `${name} ${long.toFixed(2)} s`);
  phases.forEach(([name, long], index) => {
    const part = make("span", { title: `${name}: ${long.toFixed(2)} s` }, `${name} ${long.toFixed(1)}`);
    part.style.flex = `${Math.max(long, total / 60)} 1 0`;
    part.style.setProperty("--n", index);
    bar.append(part);
  });
  if (replica.phase !== "ready") {
    bar.append(make("span", { className: "now" }, `${replica.phase} ${nowS.toFixed(0)} s`));
    bar.lastChild.style.flex = `${Math.max(nowS, total / 10, 1)} 1 0`;
    words.push(`now ${replica.phase}`);
  }
  bar.setAttribute("aria-label", `cold start: ${words.join(", ") || "no phases"}`);
  const name = [replica.id, replica.phase, replica.device].filter(Boolean).join(" · ");
  return make("li", { className: "replica" }, make("span", { className: "name", title: name }, name), bar);
}

function drawModels(overview) {
  el("model-list").replaceChildren(...overview.models.map((model) => make("div", { className: "model" },
    make("h3", {}, model.model), numbers(model.queue, model.replicas),
    model.replicas.length
      ? make("ul", { className: "replicas", "aria-label": "Replicas" },
          ...model.replicas.map((replica) => replicaRow(replica, overview.now_ms)))
      : make("p", { className: "quiet replicas" }, "Asleep: no replica. The next job wakes one."))));
  const names = overview.models.map((model) => model.model);
  if (names.join() !== seen.models) {
    seen.models = names.join();
    el("model").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  }
}

// --- jobs ---------------------------------------------------------------------------------------

async function loadJobs() {
  const state = el("filter").value;
  const found = [];
  let cursor = "";
  for (let calls = 0; calls < 5 && found.length < 50; calls += 1) { // a page may be short before the end
    const query = new URLSearchParams({ limit: 50 - found.length, ...(state && { state }), ...(cursor && { cursor }) });
    const page = await call("GET", `/v1/jobs?${query}`);
    found.push(...page.data);
    if (!(cursor = page.next_cursor)) break;
  }
  seen.jobs = found;
  drawJobs();
}

/** Rows stay the same elements while their job is listed, so that focus stays where it is. */
function drawJobs() {
  const list = el("job-list");
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  const wanted = seen.jobs.map((job) => {
    const row = rows.get(job.id) ?? newRow(job.id);
    const [state, id, more] = row.firstChild.children;
    state.dataset.state = job.state;
    state.textContent = job.state.replace("_", " ");
    id.textContent = job.id;
    more.textContent = `${job.token_count} tokens · ${age(job.created_ms)}`;
    row.firstChild.setAttribute("aria-current", String(job.id === seen.current));
    return row;
  });
  if (wanted.length !== list.children.length || wanted.some((row, at) => list.children[at] !== row)) {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    list.replaceChildren(...wanted);
    focused?.focus({ preventScroll: true });
  }
  el("job-none").hidden = wanted.length > 0;
}

function newRow(id) {
  const button = make("button", { type: "button", className: "row", onclick: () => choose(id) },
    make("span", { className: "state" }), make("span", { className: "id" }), make("span", { className: "more" }));
  const row = make("li", {}, button);
  row.dataset.id = id;
  return row;
}

function age(ms) {
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 90) return `${s.toFixed(0)} s ago`;
  return s < 5400 ? `${(s / 60).toFixed(0)} min ago` : `${(s / 3600).toFixed(0)} h ago`;
}

async function submitJob() {
  const line = {
    url: "/v1/chat/completions",
    priority: el("priority").value,
    body: {
      model: el("model").value,
      max_tokens: Number(el("max-tokens").value),
      messages: [{ role: "user", content: el("prompt").value }],
    },
  };
  if (el("deadline").value) line.expires_after = Number(el("deadline").value);
  const job = await call("POST", "/v1/jobs", line);
  el("filter").value = "";
  await loadJobs();
  await choose(job.id);
}

// --- one job, live --------------------------------------------------------------------------------

async function choose(id) {
  seen.follow?.abort();
  seen.current = id;
  seen.follow = new AbortController();
  drawJobs();
  for (const name of ["detail-output", "detail-thinking", "detail-prompt", "detail-state"]) el(name).textContent = "";
  for (const name of ["detail-log", "detail-life"]) el(name).replaceChildren();
  seen.isWhole = false;
  el("thinking").hidden = true;
  el("detail-none").hidden = true;
  el("detail-body").hidden = false;
  el("detail-title").textContent = id;
  const { signal } = seen.follow;
  await doing(async () => {
    const job = await call("GET", `/v1/jobs/${id}?include=request`);
    if (signal.aborted) return;
    el("detail-prompt").textContent = promptOf(job.request.body);
    drawFacts(job);
    await loadLife();
    await followJob(id, signal);
  });
}

function promptOf(body) {
  if (!body.messages) return String(body.prompt ?? body.input ?? "");
  return body.messages.map((message) => {
    const { content } = message;
    const text = typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");
    return body.messages.length > 1 ? `${message.role}: ${text}` : text;
  }).join("\n");
}

function drawFacts(job) {
  const facts = [
    ["model", job.model], ["priority", job.priority], ["attempt", job.attempt], ["tokens", job.token_count],
    ["queued", job.timings.queued_ms], ["first token", job.timings.first_token_ms], ["total", job.timings.total_ms],
  ];
  el("detail-facts").replaceChildren(...facts.filter(([, value]) => value !== undefined).map(([name, value]) =>
    make("div", {}, make("dt", {}, name),
      make("dd", {}, ["queued", "first token", "total"].includes(name) ? seconds(value) : String(value)))));
  setState(job.state, job.error?.message);
}

function setState(state, why) {
  el("detail-state").dataset.state = state;
  el("detail-state").className = "state";
  el("detail-state").textContent = state.replace("_", " ") + (why ? `: ${why}` : "");
  el("detail-output").dataset.live = String(state === "in_progress");
  el("cancel").hidden = ENDED.has(state);
}

function note(words) {
  const log = el("detail-log");
  if (log.lastChild?.textContent === words) return;
  log.append(make("li", {}, words));
  log.scrollTop = log.scrollHeight;
}

/** Follows a job to its end; a cut is taken up again at the last cursor. */
async function followJob(id, signal) {
  let cursor = "", isOver = false;
  while (!isOver && !signal.aborted) {
    try {
      const more = cursor ? { "last-event-id": cursor } : {};
      const answer = await fetch(`/v1/jobs/${id}/events`, { headers: headers(more), signal });
      if (answer.status === 204) return;
      if (!answer.ok) throw new Refused(answer.status, `the stream was refused (${answer.status})`);
      for await (const event of events(answer.body)) {
        if (signal.aborted) return;
        cursor = event.id || cursor;
        isOver = event.name === "result";
        onEvent(event.name, event.data);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) throw error;
    }
    if (!isOver) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** The server-sent events of a stream. `EventSource` cannot carry a key, so we read them ourselves. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
      }
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data), id: fields.id };
    }
  }
}

function onEvent(name, data) {
  switch (name) {
    case "state":
      setState(data.state);
      note(data.state.replace("_", " "));
      break;
    case "waking":
      note(wakingWords(data));
      break;
    case "step":
      if (data.status !== "in_progress") note(`step ${data.name}: ${data.status.replace("_", " ")}`);
      break;
    case "attempt":
      if (data.is_restart) for (const part of ["detail-output", "detail-thinking"]) el(part).textContent = "";
      setState("in_progress");
      note(`attempt ${data.attempt}` + (data.is_restart ? ", starts over" : data.index ? `, goes on after ${data.index} tokens` : ""));
      break;
    case "gap":
      note("tokens are missing here; the result has the whole answer");
      break;
    case "tokens":
      for (const choice of data.delta) showDelta(choice);
      break;
    case "result":
      drawFacts(data);
      note(`${data.state.replace("_", " ")} after ${seconds(data.timings.total_ms ?? 0)}`);
      loadJobs().catch(() => {});
      break;
  }
}

function showDelta(choice) {
  const inner = choice.delta ?? {};
  const thought = inner.reasoning_content ?? "";
  if (thought) {
    el("thinking").hidden = false;
    el("detail-thinking").append(thought);
  }
  const output = el("detail-output");
  const isAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  output.append(inner.content ?? choice.text ?? "");
  if (isAtEnd) output.scrollTop = output.scrollHeight;
}

function wakingWords(data) {
  const words = [];
  if (data.position !== undefined) words.push(data.position ? `${data.position} ahead` : "next in line");
  if (data.expected_wait_s) words.push(`about ${data.expected_wait_s} s to wait`);
  if (data.phase) words.push(data.phase === "asleep" ? "no predictor is running yet" : `a predictor: ${data.phase}`);
  if (data.reason) words.push(data.reason);
  return words.join(", ") || "waiting";
}

// --- its life in steps, webhooks included ------------------------------------------------------------

/** Draws the steps of the chosen job, again until nothing more is to come. */
async function loadLife() {
  const id = seen.current;
  if (!id || seen.isWhole) return;
  const job = await call("GET", `/v1/jobs/${id}?include=timeline`);
  if (id !== seen.current) return;
  seen.isWhole = job.timeline.is_whole;
  drawLife(job.timeline.steps);
}

function drawLife(steps) {
  const start = steps[0].at_ms;
  // An ending's time is the whole job's, which the bars above it show; it is a point here.
  const long = (step) => (ENDED.has(step.step) ? 0 : step.duration_ms ?? 0);
  const end = Math.max(...steps.map((step) => step.at_ms + long(step)));
  const share = (ms) => `${(100 * ms) / Math.max(end - start, 1)}%`;
  el("detail-life").replaceChildren(...steps.map((step) => {
    const bar = make("span", { className: "bar" });
    bar.style.left = `min(${share(step.at_ms - start)}, calc(100% - 2px))`;
    bar.style.width = share(long(step));
    const words = stepWords(step);
    const row = make("li", { className: "step" }, make("span", { className: "name", title: words }, words),
      make("span", { className: "track", "aria-hidden": "true" }, bar),
      make("span", { className: "long" }, step.duration_ms === null ? "" : precise(step.duration_ms)));
    row.dataset.step = step.step;
    return row;
  }));
}

const precise = (ms) => (ms < 1000 ? `${ms} ms` : seconds(ms));

function stepWords(step) {
  switch (step.step) {
    case "waking": return `waking: ${step.phase}`;
    case "step": return `step ${step.name}: ${step.outcome.replace("_", " ")}`;
    case "attempt":
      return `attempt ${step.attempt}: ${step.outcome ?? "running"}`
        + (step.resumed_from ? `, goes on after ${step.resumed_from} tokens` : "");
    case "tokens": return `${step.count} tokens`;
    case "delivery": {
      if (!step.try) return `webhook to ${step.host}: ${step.state === "pending" ? "not tried yet" : step.state}`;
      const again = step.next_ms ? `, again in ${seconds(step.next_ms - step.at_ms)}` : "";
      return `webhook to ${step.host}, try ${step.try}: ${step.status ?? step.error}${again}`;
    }
    default: return step.step.replace("_", " ") + (ENDED.has(step.step) ? ", in all" : "");
  }
}

async function cancelJob() {
  const job = await call("DELETE", `/v1/jobs/${seen.current}`);
  drawFacts(job);
  await loadJobs();
}

// --- dead letters ---------------------------------------------------------------------------------

async function loadDead() {
  const page = await call("GET", "/v1/dead-letters?limit=50");
  const list = el("dead-list");
  const ids = page.data.map((job) => `${job.id}:${job.attempt}`).join();
  if (list.dataset.ids !== ids) {
    list.dataset.ids = ids;
    list.replaceChildren(...page.data.map(letter));
  }
  const count = page.data.length + (page.next_cursor ? "+" : "");
  el("dead-count").textContent = count;
  for (const name of ["dead-count", "redrive-all"]) el(name).hidden = !page.data.length;
  el("dead-none").hidden = page.data.length > 0;
}

function letter(job) {
  const why = `${job.error?.code ?? "failed"}: ${job.error?.message ?? ""}`;
  return make("li", { className: "letter" },
    make("div", {}, make("div", { className: "id" }, `${job.id} · attempt ${job.attempt} · ${age(job.finished_ms ?? job.created_ms)}`),
      make("div", { className: "why" }, why)),
    make("button", { type: "button", "aria-label": `Redrive ${job.id}`, onclick: () => doing(() => redrive(job.id)) }, "Redrive"),
    make("button", { type: "button", className: "danger", "aria-label": `Discard ${job.id}`, onclick: () => doing(() => discard(job.id)) }, "Discard"));
}

async function redrive(id) {
  await call("POST", `/v1/dead-letters/${id}/redrive`);
  await Promise.all([loadDead(), loadJobs()]);
  choose(id);
}

async function redriveAll() {
  const skipped = [];
  try {
    let page;
    do {
      const cursor = page?.next_cursor ? `?cursor=${page.next_cursor}` : "";
      page = await call("POST", `/v1/dead-letters/redrive${cursor}`);
      skipped.push(...page.skipped);
    } while (page.has_more);
  } finally {
    await Promise.all([loadDead(), loadJobs()]);
  }
  if (skipped.length) throw new Error(`${skipped.length} not redriven; ${skipped[0].id}: ${skipped[0].reason}`);
}

async function discard(id) {
  if (!await asked(`Discard ${id} and its tokens? This cannot be undone.`)) return;
  await call("DELETE", `/v1/dead-letters/${id}`);
  await Promise.all([loadDead(), loadJobs()]);
}

function asked(words) {
  el("ask-text").textContent = words;
  el("ask").showModal();
  return new Promise((resolve) => {
    el("ask").addEventListener("close", () => resolve(el("ask").returnValue === "yes"), { once: true });
  });
}

// --- key, theme, keyboard ---------------------------------------------------------------------------

function askForKey() {
  if (el("key-dialog").open) return;
  el("key").value = "";
  el("key-dialog").returnValue = "";
  el("key-dialog").showModal();
}

el("key-dialog").addEventListener("close", () => {
  const { returnValue } = el("key-dialog");
  if (returnValue === "forget") sessionStorage.removeItem("torpor-key");
  if (returnValue === "use" && el("key").value) sessionStorage.setItem("torpor-key", el("key").value.trim());
  el("key").value = "";
});

function switchTheme() {
  const isDark = (document.documentElement.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("torpor-theme", document.documentElement.dataset.theme);
}

function step(by) {
  const rows = [...el("job-list").querySelectorAll(".row")];
  const at = rows.findIndex((row) => row === document.activeElement || row.getAttribute("aria-current") === "true");
  const row = rows[Math.min(Math.max(at + by, 0), rows.length - 1)];
  row?.focus();
  row?.click();
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#submit")) {
    el("submit").requestSubmit();
    return;
  }
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    (el("job-list").querySelector('[aria-current="true"]') ?? el("jobs")).focus();
    return;
  }
  const isTyping = event.target.matches("input, textarea, select") || document.querySelector("dialog[open]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    n: () => el("prompt").focus(),
    j: () => step(1),
    k: () => step(-1),
    c: () => { if (!el("cancel").hidden) doing(cancelJob); },
    d: () => (el("dead-list").querySelector("button") ?? el("redrive-all")).focus(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
}

document.documentElement.dataset.theme = localStorage.getItem("torpor-theme") ?? "";
if (!document.documentElement.dataset.theme) delete document.documentElement.dataset.theme;
document.addEventListener("keydown", onKey);
el("submit").addEventListener("submit", (event) => { event.preventDefault(); doing(submitJob); });
el("filter").addEventListener("change", () => doing(loadJobs));
el("cancel").addEventListener("click", () => doing(cancelJob));
el("redrive-all").addEventListener("click", () => doing(redriveAll));
el("key-open").addEventListener("click", askForKey);
el("theme").addEventListener("click", switchTheme);
repeat(OVERVIEW_MS, async () => { drawModels(await call("GET", "/v1/overview")); pulse("live", "live"); });
repeat(JOBS_MS, loadJobs);
repeat(DEAD_MS, loadDead);
repeat(LIFE_MS, loadLife);
