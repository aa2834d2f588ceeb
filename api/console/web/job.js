// One job, live: what was asked, its tokens as they come, what happened, its timeline, and what can be done with it.

import { call, follow, on, repeat } from "./api.js";
import { callsOf, StreamedCalls, TurnCalls } from "./calls.js";
import { asked, button, doing, facts, make, showTexts } from "./dom.js";
import { amount, ENDED, moment, promptOf, seconds, textOf, words } from "./format.js";
import { go, here, link } from "./route.js";
import { snippets } from "./snippet.js";
import { drawTimeline } from "./timeline.js";

const LIFE_MS = 1000;
const TEXT_NAMES = ["content", "text", "refusal"];

/** The parts of the page that change. */
function parts() {
  const pre = (id, label) => make("pre", { id, tabIndex: 0, "aria-label": label });
  return {
    state: make("p", { id: "detail-state", className: "state", role: "status" }),
    facts: make("div", { id: "detail-facts" }),
    actions: make("div", { className: "actions" }),
    prompt: pre("detail-prompt", "Prompt"),
    thinking: pre("detail-thinking", "Thinking"),
    thought: make("details", { id: "thinking", hidden: true }, make("summary", {}, "Thinking")),
    output: pre("detail-output", "Answer"),
    log: make("ol", { id: "detail-log" }),
    life: make("ol", { id: "detail-life", "aria-label": "Steps with their times" }),
  };
}

function wakingWords(data) {
  const said = [];
  if (data.position !== undefined) said.push(data.position ? `${data.position} ahead` : "next in line");
  if (data.expected_wait_s) said.push(`about ${data.expected_wait_s} s to wait`);
  if (data.phase) said.push(data.phase === "asleep" ? "no predictor is running yet" : `a predictor: ${data.phase}`);
  if (data.reason) said.push(data.reason);
  return said.join(", ") || "waiting";
}

/** Who answered, where that is not the model that was asked, and why. */
const routingFacts = (routing) => (routing ? [["answered by", routing.answered], ["since", routing.reason]] : []);

/** The texts of a whole answer, for one that is read after its end. */
export function answerOf(result) {
  const choices = result?.choices ?? [];
  return {
    thinking: choices.map(({ message }) => message?.reasoning_content ?? message?.reasoning ?? "").join(""),
    text: choices.map((choice) => {
      const said = choice.message ? textOf(choice.message.content) : choice.text ?? "";
      return said + callsOf(choice.message?.tool_calls);
    }).join("\n"),
  };
}

class JobView {
  constructor(root, id, signal, hooks) {
    Object.assign(this, { id, signal, hooks, at: parts(), job: null, isWhole: false });
    Object.assign(this, { calls: new StreamedCalls(), turn: new TurnCalls(), before: { index: 0, text: "", thinking: "" } });
    this.at.thought.append(this.at.thinking);
    const { at } = this;
    const back = make("a", { className: "narrow", href: link("jobs", "", here().query) }, "All jobs");
    root.append(make("section", { id: "detail", "aria-labelledby": "detail-title", tabIndex: -1 },
      make("div", { className: "head" }, make("h2", { id: "detail-title" }, id), back), at.state, at.facts, at.actions,
      make("h3", {}, "Asked"), at.prompt, at.thought, make("h3", {}, "Answer"), at.output,
      make("h3", {}, "What happened"), at.log, make("h3", {}, "Timeline"), at.life));
  }

  async start() {
    const job = await call("GET", `/v1/jobs/${this.id}?include=request`, undefined, this.signal);
    this.at.prompt.textContent = promptOf(job.request.body);
    this.request = job.request;
    this.show(job);
    repeat(LIFE_MS, this.signal, () => this.loadLife());
    await follow(this.id, this.signal, (name, data) => this.onEvent(name, data));
  }

  show(job) {
    this.job = job;
    const { timings = {} } = job;
    const money = job.cost?.cost ? amount(job.cost.cost, 6) : undefined;
    this.at.facts.replaceChildren(facts([
      ["model", job.model], ...routingFacts(job.routing), ["priority", job.priority], ["attempt", job.attempt], ["tokens", job.token_count],
      ["submitted", moment(job.created_ms)],
      ["queued", timings.queued_ms === undefined ? undefined : seconds(timings.queued_ms)],
      ["first token", timings.first_token_ms === undefined ? undefined : seconds(timings.first_token_ms)],
      ["total", timings.total_ms === undefined ? undefined : seconds(timings.total_ms)],
      ["GPU", job.cost?.gpu_seconds ? `${amount(job.cost.gpu_seconds, 2)} s` : undefined], ["cost", money],
      ["custom_id", job.custom_id], ...Object.entries(job.metadata ?? {}),
    ]));
    this.setState(job.state, job.error?.message ?? (job.incomplete_reason && words(job.incomplete_reason)), job.phase);
  }

  /** A figure that changes while the job runs. */
  setFact(name, value) {
    const term = [...this.at.facts.querySelectorAll("dt")].find((dt) => dt.textContent === name);
    if (term) term.nextSibling.textContent = String(value);
  }

  setState(state, why, phase) {
    this.at.state.dataset.state = state;
    this.at.state.textContent = words(state) + (phase ? `, ${phase}` : "") + (why ? `: ${why}` : "");
    this.at.output.dataset.live = String(state === "in_progress");
    if (this.shownState === state) return;
    this.shownState = state;
    this.at.actions.replaceChildren(...this.actionsIn(state));
  }

  actionsIn(state) {
    const isOver = ENDED.has(state);
    const again = this.job?.is_dead_letter ? "Redrive" : "Run again";
    return [
      isOver ? null : button("Cancel job", () => this.cancel(), { id: "cancel", className: "danger" }),
      isOver ? button(again, () => doing(() => this.again()), { id: "again" }) : null,
      make("a", { className: "button", id: "edit", href: link("play", "", { from: this.id }) }, "Edit in the playground"),
      button("Copy as code", () => showTexts("Call it yourself", snippets(this.request, location.origin)), { id: "copy" }),
      isOver && this.job?.result ? button("Result", () => showTexts("Result", { JSON: JSON.stringify(this.job.result, null, 2) })) : null,
    ].filter(Boolean);
  }

  note(said) {
    const { log } = this.at;
    if (log.lastChild?.textContent === said) return;
    log.append(make("li", {}, said));
    log.scrollTop = log.scrollHeight;
  }

  onEvent(name, data) {
    switch (name) {
      case "state":
        this.setState(data.state, undefined, data.phase);
        if (this.at.log.children.length || !ENDED.has(data.state)) this.note(data.phase ?? words(data.state));
        break;
      case "waking":
        this.note(wakingWords(data));
        break;
      case "step":
        if (data.status !== "in_progress") this.note(`step ${data.name}: ${words(data.status)}`);
        break;
      case "attempt":
        if (data.is_restart) this.startOver(data.index);
        this.setState("in_progress");
        this.setFact("attempt", data.attempt);
        this.note(`attempt ${data.attempt}` + (data.is_restart ? ", starts over" : data.index ? `, goes on after ${data.index} tokens` : ""));
        break;
      case "turn":
        this.turnEnded(data);
        break;
      case "call":
        this.note(this.turn.change(data));
        this.setState("in_progress", undefined, this.turn.phase());
        break;
      case "gap":
        this.note("tokens are missing here; the result has the whole answer");
        break;
      case "tokens":
        this.setFact("tokens", data.index + data.count);
        for (const choice of data.delta) this.showDelta(choice);
        break;
      case "result":
        this.onResult(data);
        break;
    }
  }

  onResult(job) {
    this.shownState = "";
    this.show(job);
    const { thinking, text } = answerOf(job.result);
    if (!this.at.output.textContent) this.at.output.textContent = text; // no token was streamed: a cached answer
    if (!this.at.thinking.textContent && thinking) this.showThought(thinking);
    this.note(`${words(job.state)} after ${seconds(job.timings.total_ms ?? 0)}`);
    this.hooks.onChange();
  }

  /** A turn was recorded: what it said stays, whatever becomes of the next one. */
  turnEnded(turn) {
    for (const said of this.turn.begin(turn)) this.note(said);
    this.setState("in_progress", undefined, this.turn.phase());
    const { output, thinking } = this.at;
    output.append(`${this.calls.end()}\n`);
    this.before = { index: turn.index, text: output.textContent, thinking: thinking.textContent };
  }

  /** The tokens from `index` on are void. */
  startOver(index) {
    if (index < this.before.index) this.before = { index: 0, text: "", thinking: "" };
    this.at.output.textContent = this.before.text;
    this.at.thinking.textContent = this.before.thinking;
    this.calls = new StreamedCalls();
  }

  showThought(thought) {
    this.at.thought.hidden = false;
    this.at.thinking.append(thought);
  }

  showDelta(choice) {
    const inner = choice.delta ?? {};
    const thought = inner.reasoning_content ?? inner.reasoning ?? "";
    if (thought) this.showThought(thought);
    const { output } = this.at;
    const isAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    const said = TEXT_NAMES.map((name) => inner[name] ?? "").join("") + (choice.text ?? "") + this.calls.add(inner.tool_calls);
    output.append(said + (choice.finish_reason ? this.calls.end() : ""));
    if (isAtEnd) output.scrollTop = output.scrollHeight;
  }

  /** Draws the steps, again until nothing more is to come. */
  async loadLife() {
    if (this.isWhole) return;
    const job = await call("GET", `/v1/jobs/${this.id}?include=timeline`, undefined, this.signal);
    this.isWhole = job.timeline.is_whole;
    drawTimeline(this.at.life, job);
  }

  cancel() {
    if (ENDED.has(this.shownState)) return;
    doing(async () => {
      this.shownState = "";
      this.show(await call("DELETE", `/v1/jobs/${this.id}`));
      this.hooks.onChange();
    });
  }

  /** A dead letter is queued again under its id; of any other job a new one is made. */
  async again() {
    if (this.job.is_dead_letter) {
      await call("POST", `/v1/dead-letters/${this.id}/redrive`);
      on.deadChanged();
      this.hooks.reopen();
      return;
    }
    if (!await asked(`Run the request of ${this.id} again, as a new job?`, "Run")) return;
    const { metadata, priority } = this.job;
    const job = await call("POST", "/v1/jobs", { ...this.request, priority, metadata });
    go("jobs", job.id);
    this.hooks.onChange();
  }
}

/** Shows the job `id` in `root` until `signal`. `hooks`: `onChange` when its row should be read again, `reopen`. */
export function openJob(root, id, signal, hooks) {
  const view = new JobView(root, id, signal, hooks);
  doing(() => view.start());
  return view;
}
