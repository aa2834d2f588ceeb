// Usage: what the tenant used and may use, and for operators every model's GPU time and cost.

import { call, pathOf, repeat } from "./api.js";
import { card, choice, doing, el, facts, make, table } from "./dom.js";
import { amount, size } from "./format.js";
import { bars } from "./plot.js";
import { here, replace } from "./route.js";

const PAUSE_MS = 30000;
/** Span and step in seconds. */
const SPANS = { "6 hours": [21600, 600], "24 hours": [86400, 3600], "7 days": [604800, 21600] };
const LIMITS = {
  requests_per_minute: "requests a minute", tokens_per_minute: "tokens a minute", jobs_in_flight: "jobs in flight",
  file_bytes: "files", key_requests_per_minute: "requests a minute, this key",
};

function limitRow([name, { limit, used }]) {
  const shown = name === "file_bytes" ? size : amount;
  const meter = make("meter", { max: limit || 1, value: used, high: 0.9 * limit, "aria-label": LIMITS[name] ?? name });
  return [LIMITS[name] ?? name, shown(used), limit ? shown(limit) : "no limit", limit ? meter : ""];
}

function limitTable(tenant) {
  return table(["limit", "used", "of", ""], Object.entries(tenant.limits).map(limitRow), "No limits.");
}

function plotsOf(series, stepS, price, parts) {
  const times = series.map((each) => each.at_ms), stepMs = stepS * 1000;
  const plot = (title, unit, names, isWhole = false) => bars({
    title, unit, times, stepMs, isWhole, series: names.map(([name, read]) => ({ name, values: series.map(read) })) });
  return make("div", { className: "plots" },
    plot("Tokens", "", [["output", (each) => each.output_tokens], ["input", (each) => each.input_tokens]], true),
    plot("Jobs", "", [["jobs", (each) => each.jobs]], true),
    plot("GPU time", "seconds", parts ? parts.map((name) => [name, (each) => each.gpu_seconds[name]]) : [["own", (each) => each.gpu_seconds]]),
    price ? plot("Cost", "", [["cost", (each) => each.cost]]) : null);
}

const money = (price, value, digits = 4) => (price ? amount(value, digits) : undefined);

function ownCard(tenant, own, stepS) {
  const { total, price_per_gpu_hour: price } = own;
  return [
    facts([["tenant", tenant.id], ["key", tenant.key_id], ["jobs", amount(total.jobs)], ["output tokens", amount(total.output_tokens)],
      ["input tokens", amount(total.input_tokens)],
      ["saved tokens", total.saved_tokens ? amount(total.saved_tokens) : undefined], ["GPU", `${amount(total.gpu_seconds, 1)} s`],
      ["cost", money(price, total.cost)], ["all in", total.cost_all_in === null ? undefined : money(price, total.cost_all_in)]]),
    plotsOf(own.series, stepS, price),
    make("h3", {}, "Limits"), limitTable(tenant),
  ];
}

function everyoneCard(all, stepS) {
  const price = all.price_per_gpu_hour;
  const models = Object.entries(all.models).map(([name, { jobs, output_tokens: tokens, gpu_seconds: gpu, cost }]) =>
    [name, amount(jobs), amount(tokens), amount(gpu.busy, 1), amount(gpu.idle, 1), amount(gpu.waking, 1), amount(gpu.wasted, 1),
      price ? amount(cost.total, 4) : "–", price ? amount(cost.per_1k_output_tokens, 4) : "–"]);
  const tenants = Object.entries(all.tenants).sort(([, one], [, other]) => other.gpu_seconds - one.gpu_seconds).map(([name, each]) =>
    [name, amount(each.jobs), amount(each.output_tokens), amount(each.gpu_seconds, 1), price ? amount(each.cost, 4) : "–"]);
  return [
    plotsOf(all.series, stepS, price, ["busy", "idle", "waking"]),
    make("h3", {}, "Models"),
    table(["model", "jobs", "output tokens", "busy, s", "idle, s", "waking, s", "wasted, s", "cost", "per 1,000 tokens"], models, "Nothing ran."),
    make("h3", {}, "Tenants"), table(["tenant", "jobs", "output tokens", "GPU, s", "cost"], tenants, "Nothing ran."),
  ];
}

export const usage = {
  open(root, start, signal) {
    let name = start.query.span in SPANS ? start.query.span : "24 hours";
    const own = make("div", { id: "own-usage" }), all = make("div", { id: "all-usage" });
    const span = choice({ id: "span", "aria-label": "How far back", onchange: () => replace("usage", "", { ...here().query, span: span.value }) },
      Object.keys(SPANS), name);
    const everyone = card("everyone", "All tenants", null, all);
    everyone.hidden = true;
    root.append(card("usage", "Usage", span, own), everyone);

    async function load() {
      const [sinceS, stepS] = SPANS[name];
      const query = { since_s: sinceS, step_s: stepS };
      const [tenant, used] = await Promise.all([
        call("GET", "/v1/tenant", undefined, signal), call("GET", pathOf("/v1/tenant/usage", query), undefined, signal)]);
      own.replaceChildren(...ownCard(tenant, used, stepS));
      everyone.hidden = !tenant.scopes.includes("metrics:read");
      if (everyone.hidden) return;
      all.replaceChildren(...everyoneCard(await call("GET", pathOf("/v1/usage", query), undefined, signal), stepS));
    }

    repeat(PAUSE_MS, signal, load);
    return {
      update(next) {
        name = next.query.span in SPANS ? next.query.span : "24 hours";
        el("span").value = name;
        doing(load);
      },
    };
  },
};
