// The playground: a conversation that is edited, sent as a job, followed, stopped and sent again.

import { call, follow, on } from "./api.js";
import { button, card, choice, doing, el, field, make, showTexts } from "./dom.js";
import { amount, words } from "./format.js";
import { TurnCalls } from "./calls.js";
import { answerOf } from "./job.js";
import { models } from "./models.js";
import { fieldsOf, optionsOf, requestOf, turnOf } from "./request.js";
import { go, link, replace } from "./route.js";
import { snippets } from "./snippet.js";
import { gallery, turnRow } from "./turns.js";

const NUMBERS = [
  ["max_tokens", "Most tokens", { min: 1, max: 1000000, value: 256 }],
  ["temperature", "Temperature", { min: 0, max: 2, step: "any" }],
  ["top_p", "Top p", { min: 0, max: 1, step: "any" }],
  ["seed", "Seed", { step: 1 }],
  ["deadline", "Deadline (s)", { min: 1, max: 2592000, placeholder: "none" }],
];
const EXAMPLE = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]';

/** Every field of the form by its name. */
function inputs() {
  const area = (props) => make("textarea", { rows: 2, spellcheck: false, ...props });
  const made = {
    model: make("select", { id: "model", required: true }),
    system: area({ id: "system", placeholder: "none", spellcheck: true }),
    priority: choice({ id: "priority" }, ["interactive", "default", "batch"], "default"),
    stop: area({ id: "stop", rows: 1, placeholder: "one a line" }),
    tools: area({ id: "tools", placeholder: EXAMPLE }),
    format: choice({ id: "format" }, [["text", "text"], ["json_object", "a JSON object"], ["json_schema", "JSON by a schema"]], "text"),
    schema: area({ id: "schema", placeholder: '{"type": "object", "properties": {}}' }),
    more: area({ id: "more", placeholder: '{"top_k": 20}' }),
    raw: area({ id: "raw", rows: 16 }),
  };
  for (const [name, , props] of NUMBERS) {
    made[name] = make("input", { id: name.replace("_", "-"), type: "number", ...props });
  }
  return made;
}

class Playground {
  constructor(root, signal) {
    Object.assign(this, { signal, turns: [], job: null, from: "", isRaw: false, draft: { text: "", images: [] } });
    this.in = inputs();
    this.build(root);
    models.watch(signal, (overview) => this.showModels(overview.models.map((model) => model.model)));
  }

  build(root) {
    this.list = make("ol", { id: "turns", "aria-label": "The conversation" });
    this.status = make("p", { id: "play-state", className: "quiet", role: "status" });
    this.prompt = make("textarea", { id: "prompt", rows: 3, placeholder: "Why do hummingbirds fall into torpor at night?" });
    this.images = make("span");
    this.send = button(["Send ", make("kbd", {}, "Ctrl"), make("kbd", {}, "Enter")], () => this.submit(), { id: "send", className: "primary" });
    this.stop = button("Stop", () => doing(() => this.cancel()), { id: "stop-job", className: "danger", hidden: true });
    this.retry = button("Retry", () => doing(() => this.again()), { id: "retry", hidden: true });
    this.redrive = button("Redrive with this", () => doing(() => this.redriveDead()), { id: "redrive", hidden: true });
    this.chat = make("div", {}, this.list, make("label", { for: "prompt" }, "Prompt"), this.prompt, this.images);
    this.raw = make("div", { hidden: true }, field("Request, as JSON", this.in.raw, { className: "block" }));
    const show = button("Code", () => doing(() => showTexts("This call", snippets(this.request(), location.origin))), { id: "code" });
    const json = button("Edit as JSON", () => doing(() => this.switchRaw()), { id: "edit-json" });
    const fresh = button("New", () => this.clear(), { id: "new" });
    root.append(
      card("conversation", "Playground", [fresh, json, show], this.chat, this.raw, this.status,
        make("div", { className: "buttons" }, this.retry, this.redrive, this.stop, this.send)),
      this.settings());
    this.drawTurns();
  }

  settings() {
    const block = (words, input) => field(words, input, { className: "block" });
    this.schemaField = block("Schema", this.in.schema);
    this.schemaField.hidden = true;
    this.in.format.addEventListener("change", () => this.showSchema());
    return card("settings", "Settings", null, make("form", { id: "settings-form", onsubmit: (event) => event.preventDefault() },
      make("div", { className: "fields" }, field("Model", this.in.model), field("Priority", this.in.priority),
        NUMBERS.map(([name, said]) => field(said, this.in[name]))),
      block("System", this.in.system), block("Stop at", this.in.stop), block("Answer as", this.in.format), this.schemaField,
      block("Tools (JSON)", this.in.tools), block("More fields (JSON)", this.in.more)));
  }

  showSchema() { this.schemaField.hidden = this.in.format.value !== "json_schema"; }

  showModels(names) {
    const { model } = this.in;
    if (names.join() === [...model.options].map((option) => option.value).join()) return;
    const chosen = this.wanted ?? model.value;
    model.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === chosen }, name)));
  }

  drawTurns() {
    this.list.replaceChildren(...this.turns.map((turn) =>
      turnRow(turn, () => { this.turns = this.turns.filter((each) => each !== turn); this.drawTurns(); })));
    this.images.replaceChildren(gallery(this.draft, () => {}));
    this.retry.hidden = Boolean(this.job) || !this.turns.some((turn) => turn.role === "assistant");
  }

  /** The fields by name; `raw` is null unless the request is edited as JSON. */
  fields() {
    const values = Object.fromEntries(Object.entries(this.in).map(([name, input]) => [name, input.value]));
    return { ...values, raw: this.isRaw ? values.raw : null };
  }

  request() {
    const draft = this.drafted();
    return requestOf(this.fields(), draft ? [...this.turns, draft] : this.turns);
  }

  drafted() {
    const text = this.prompt.value;
    return text.trim() || this.draft.images.length ? { role: "user", text, images: this.draft.images } : null;
  }

  switchRaw() {
    if (this.isRaw) {
      this.fill(JSON.parse(this.in.raw.value));
    } else {
      this.in.raw.value = JSON.stringify(this.request(), null, 2);
      this.showRaw(true);
    }
  }

  showRaw(isRaw) {
    this.isRaw = isRaw;
    this.raw.hidden = !isRaw;
    this.chat.hidden = isRaw;
    el("settings").hidden = isRaw;
    el("edit-json").textContent = isRaw ? "Edit as a conversation" : "Edit as JSON";
  }

  /** Shows a request in the form; the last turn of the user becomes the prompt, to be edited. */
  fill(request, answer = null) {
    const { fields, turns } = fieldsOf(request);
    for (const [name, value] of Object.entries(fields)) if (value !== null) this.in[name].value = value;
    this.wanted = fields.model;
    this.turns = turns;
    this.prompt.value = "";
    this.draft = { text: "", images: [] };
    if (answer) this.turns.push(...answer);
    else if (turns.at(-1)?.role === "user") {
      const last = this.turns.pop();
      this.prompt.value = last.text;
      this.draft.images = last.images;
    }
    this.showRaw(typeof fields.raw === "string");
    this.showSchema();
    this.drawTurns();
  }

  /** Shows the request of a job, with its answer where it has one. */
  async load(id) {
    this.from = id;
    const job = await call("GET", `/v1/jobs/${id}?include=request`, undefined, this.signal);
    this.fill(job.request, job.state === "completed" ? answerTurns(job.result) : null);
    this.in.priority.value = job.priority;
    this.redrive.hidden = !job.is_dead_letter;
    this.say(`The request of`, id, job.is_dead_letter ? `, a dead letter: ${job.error?.message ?? ""}` : "");
  }

  clear() {
    this.from = "";
    this.turns = [];
    this.prompt.value = "";
    this.draft = { text: "", images: [] };
    this.redrive.hidden = true;
    this.status.replaceChildren();
    if (this.isRaw) this.showRaw(false);
    replace("play");
    this.drawTurns();
    this.prompt.focus();
  }

  say(before, id, after = "") {
    this.status.replaceChildren(before, " ", make("a", { id: "play-job", href: link("jobs", id) }, id), after);
  }

  submit() {
    if (!this.job) doing(() => this.run());
  }

  async run() {
    const request = this.request();
    if (!this.isRaw && !request.body.messages.length) throw new Error("Write a prompt first.");
    const job = await call("POST", "/v1/jobs", { ...request, ...optionsOf(this.fields()) });
    const draft = this.drafted();
    if (draft && !this.isRaw) this.turns.push(draft);
    this.prompt.value = "";
    this.draft = { text: "", images: [] };
    await this.watchJob(job.id);
  }

  async watchJob(id) {
    this.job = { id, text: "", thinking: "" };
    this.from = id;
    replace("play", "", { from: id });
    this.redrive.hidden = true;
    const live = make("pre", { id: "live", "aria-label": "The answer", data: { live: "true" } });
    const thought = make("pre");
    const thinking = make("details", { hidden: true }, make("summary", {}, "Thinking"), thought);
    this.drawTurns();
    this.showRunning(true);
    this.list.append(make("li", { className: "turn", data: { role: "assistant" } }, thinking, live));
    this.say("queued:", id);
    const at = { live, thinking, thought, turn: new TurnCalls(), before: ["", ""] };
    try {
      await follow(id, this.signal, (name, data) => this.onEvent(name, data, at));
    } finally {
      this.job = null;
      if (!this.signal.aborted) { this.showRunning(false); this.drawTurns(); }
    }
  }

  showRunning(isRunning) {
    this.send.hidden = isRunning;
    this.stop.hidden = !isRunning;
  }

  onEvent(name, data, at) {
    const { id } = this.job;
    if (name === "state") this.say(`${words(data.state)}:`, id);
    if (name === "waking") this.say("waiting:", id, data.phase ? `, a predictor: ${data.phase}` : "");
    if (name === "attempt") {
      if (data.is_restart) [at.live.textContent, at.thought.textContent] = at.before;
      this.say(`attempt ${data.attempt}:`, id);
    }
    if (name === "tokens") {
      for (const { delta = {}, text } of data.delta) {
        at.live.append(delta.content ?? text ?? "");
        at.thought.append(delta.reasoning_content ?? delta.reasoning ?? "");
      }
      at.thinking.hidden = !at.thought.textContent;
      this.say(`in progress, ${data.index + data.count} tokens:`, id);
    }
    if (name === "turn") {
      at.turn.begin(data);
      at.live.append("\n\n");
      at.before = [at.live.textContent, at.thought.textContent];
    }
    if (name === "call") this.say(`${at.turn.change(data)}:`, id);
    if (name === "result") this.onResult(data);
  }

  onResult(job) {
    const tokens = job.usage?.completion_tokens ?? job.token_count;
    const why = job.error ? `: ${job.error.message}` : "";
    const took = job.timings.total_ms ? ` in ${amount(job.timings.total_ms / 1000, 1)} s` : "";
    this.say(`${words(job.state)}, ${amount(tokens)} tokens${took}:`, job.id, why);
    this.redrive.hidden = !job.is_dead_letter;
    if (job.is_dead_letter) on.deadChanged();
    if (this.isRaw) showTexts("Result", { JSON: JSON.stringify(job.result ?? job.error, null, 2) });
    else if (job.result) this.turns.push(...answerTurns(job.result));
  }

  async cancel() {
    if (this.job) await call("DELETE", `/v1/jobs/${this.job.id}`);
  }

  /** Asks the last turn of the user again. */
  async again() {
    while (this.turns.length && this.turns.at(-1).role !== "user") this.turns.pop();
    await this.run();
  }

  async redriveDead() {
    await call("POST", `/v1/dead-letters/${this.from}/redrive`, this.request());
    on.deadChanged();
    go("jobs", this.from);
  }
}

/** The answer as turns, and an empty turn for the answer of each tool that is called. */
function answerTurns(result) {
  const message = result?.choices?.[0]?.message;
  if (!message) return [{ role: "assistant", text: answerOf(result).text, images: [] }];
  const turn = { ...turnOf({ ...message, role: "assistant" }), thinking: answerOf(result).thinking };
  const tools = (message.tool_calls ?? []).map(({ id }) => ({ role: "tool", text: "", images: [], tool_call_id: id }));
  return [turn, ...tools];
}

export const play = {
  open(root, at, signal) {
    const ground = new Playground(root, signal);
    if (at.query.from) doing(() => ground.load(at.query.from));
    return {
      update(next) {
        const from = next.query.from ?? "";
        if (from && from !== ground.from) doing(() => ground.load(from));
      },
      submit: () => ground.submit(),
    };
  },
};

