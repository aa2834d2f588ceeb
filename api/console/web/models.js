// Models: queue, replicas, the phases of a cold start, providers, and what the api knows of each.

import { call } from "./api.js";
import { card, facts, make } from "./dom.js";
import { amount } from "./format.js";

const watchers = new Set();
let overview = null, cards = new Map();

/** Queues and replicas now; everyone who watches is told. */
async function load() {
  const [looked, listed] = await Promise.all([
    call("GET", "/v1/overview"), cards.size ? null : call("GET", "/v1/models")]);
  if (listed) cards = new Map(listed.data.map((model) => [model.id, model]));
  overview = looked;
  for (const tell of watchers) tell(overview);
}

/** Tells `work` of the overview now and each time it changes, until `signal`. */
function watch(signal, work) {
  watchers.add(work);
  signal.addEventListener("abort", () => watchers.delete(work));
  if (overview) work(overview);
}

const waitingOf = (queue) => Object.values(queue.waiting).reduce((sum, count) => sum + count, 0);

function numbers(queue, replicas) {
  const lanes = Object.entries(queue.waiting).map(([lane, count]) => `${lane} ${count}`).join(", ");
  const shown = [
    ["waiting", waitingOf(queue), lanes],
    ["in delivery", queue.in_delivery, ""],
    ["retrying", queue.retrying, ""],
    ["a minute", queue.settled_per_minute, "jobs done a minute, of late"],
    ["expected wait", queue.expected_wait_s === null ? "–" : `${queue.expected_wait_s} s`, ""],
    ["replicas", replicas.length, ""],
  ];
  return make("dl", { className: "numbers" }, shown.map(([name, value, title]) =>
    make("div", { title }, make("dt", {}, name), make("dd", {}, String(value)))));
}

/** One replica: the phases of its start that are over, each as wide as it was long, and the present one. */
function replicaRow(replica, nowMs) {
  const phases = Object.entries(replica.phases);
  const total = phases.reduce((sum, [, long]) => sum + long, 0);
  const nowS = Math.max(0, (nowMs - replica.since_ms) / 1000);
  const bar = make("div", { className: "phases", role: "img" });
  const said = phases.map(([name, long]) => `${name} ${long.toFixed(2)} s`);
  phases.forEach(([name, long], index) => {
    const part = make("span", { title: `${name}: ${long.toFixed(2)} s` }, `${name} ${long.toFixed(1)}`);
    part.style.flex = `${Math.max(long, total / 60)} 1 0`;
    part.style.setProperty("--n", index);
    bar.append(part);
  });
  if (!["ready", "draining"].includes(replica.phase)) {
    bar.append(make("span", { className: "now" }, `${replica.phase} ${nowS.toFixed(0)} s`));
    bar.lastChild.style.flex = `${Math.max(nowS, total / 10, 1)} 1 0`;
    said.push(`now ${replica.phase}`);
  }
  bar.setAttribute("aria-label", `cold start: ${said.join(", ") || "no phases"}`);
  const name = [replica.id, replica.phase, replica.device].filter(Boolean).join(" · ");
  const took = total ? `cold start ${total.toFixed(1)} s` : "";
  return make("li", { className: "replica" },
    make("div", { className: "who" }, make("span", { className: "name", title: name }, name),
      make("span", { className: "quiet" }, took)), bar);
}

/** An endpoint that the model's predictors ask: its breaker, the pause it asked for, what is left of its limits. */
function providerRow(provider) {
  const left = ["requests", "tokens"].filter((of) => provider[of]).map((of) =>
    `${amount(provider[of].left, 0)} of ${amount(provider[of].per_minute, 0)} ${of} a minute left`);
  const said = [`breaker ${provider.breaker.replace("_", " ")}`,
    provider.pause_s ? `asked for ${provider.pause_s.toFixed(0)} s of pause` : "", ...left].filter(Boolean).join(", ");
  return make("li", { className: "provider", data: { breaker: provider.breaker } },
    make("span", { className: "name" }, provider.endpoint), make("span", { className: "quiet" }, ` ${said}`));
}

function modelBlock(model, nowMs) {
  const known = cards.get(model.model) ?? {};
  const settings = facts([
    ["context", known.max_model_len && `${amount(known.max_model_len)} tokens`],
    ["can", known.capabilities?.join(", ")],
  ], { className: "facts settings" });
  return make("div", { className: "model" },
    make("div", {}, make("h3", {}, model.model), settings), numbers(model.queue, model.replicas),
    model.replicas.length
      ? make("ul", { className: "replicas", "aria-label": "Replicas" },
          model.replicas.map((replica) => replicaRow(replica, nowMs)))
      : make("p", { className: "quiet replicas" }, "Asleep: no replica. The next job wakes one."),
    model.providers?.length
      ? make("ul", { className: "replicas", "aria-label": "Providers" }, model.providers.map(providerRow)) : "");
}

export const models = {
  load,
  watch,
  waitingOf,
  open(root, _, signal) {
    const list = make("div", { id: "model-list" }, make("p", { className: "quiet" }, "Nothing is known yet."));
    root.append(card("models", "Models", null, list));
    watch(signal, (looked) =>
      list.replaceChildren(...looked.models.map((model) => modelBlock(model, looked.now_ms))));
  },
};
