// A job's life as bars: queue, waking, steps before and after the model, attempts, tokens, webhooks.

import { make } from "./dom.js";
import { ENDED, precise, seconds, words } from "./format.js";

/** What a step told of itself. */
const detailOf = (job, step) =>
  job.pipeline?.find((each) => each.step === step.name && (each.started_ms ?? each.ended_ms) === step.at_ms)?.detail;

function detailWords(detail) {
  const isShort = (value) => typeof value !== "object" || value?.every?.((each) => typeof each === "string");
  const pairs = Object.entries(detail ?? {}).filter(([, value]) => isShort(value));
  return pairs.length ? ` (${pairs.slice(0, 4).map(([name, value]) => `${words(name)} ${value}`).join(", ")})` : "";
}

function stepWords(step) {
  switch (step.step) {
    case "step": return `step ${step.name}: ${words(step.outcome)}${detailWords(step.detail)}`;
    case "cache": return `cache: ${words(step.outcome)}${step.kind ? `, ${step.kind}, of ${step.source_job}` : ""}`;
    case "waking": return `waking: ${step.phase}`;
    case "attempt":
      return `attempt ${step.attempt}: ${step.outcome === "rejected" ? "not valid, asked again" : step.outcome ?? "running"}`
        + (step.resumed_from ? `, goes on after ${step.resumed_from} tokens` : "");
    case "turn": {
      const read = Number.isInteger(step.read_tokens) ? `, read ${step.read_tokens} of ${step.prompt_tokens}` : "";
      const first = Number.isInteger(step.first_token_ms) ? `, first after ${precise(step.first_token_ms)}` : "";
      return `turn ${step.turn}: ${step.count} tokens${read}${first}`;
    }
    case "call": return `call ${step.name}: ${words(step.outcome)}${step.sends > 1 ? `, ${step.sends} sends` : ""}`;
    case "tokens": return `${step.count} tokens`;
    case "delivery": {
      if (!step.try) return `webhook to ${step.host}: ${step.state === "pending" ? "not tried yet" : step.state}`;
      const again = step.next_ms ? `, again in ${seconds(step.next_ms - step.at_ms)}` : "";
      return `webhook to ${step.host}, try ${step.try}: ${step.status ?? step.error}${again}`;
    }
    default: return words(step.step) + (ENDED.has(step.step) ? ", in all" : "");
  }
}

/** Draws the timeline of `job` into `list`. */
export function drawTimeline(list, job) {
  const steps = job.timeline.steps.map((step) => ({ ...step, detail: detailOf(job, step) }));
  const start = steps[0].at_ms;
  // An ending's time is the whole job's, which the bars above it show; it is a point here.
  const long = (step) => (ENDED.has(step.step) ? 0 : step.duration_ms ?? 0);
  const end = Math.max(...steps.map((step) => step.at_ms + long(step)));
  const share = (ms) => `${(100 * ms) / Math.max(end - start, 1)}%`;
  list.replaceChildren(...steps.map((step) => {
    const bar = make("span", { className: "bar" });
    bar.style.left = `min(${share(step.at_ms - start)}, calc(100% - 2px))`;
    bar.style.width = share(long(step));
    const said = stepWords(step);
    const title = step.detail ? `${said}\n${JSON.stringify(step.detail)}` : said;
    return make("li", { className: "step", data: { step: step.step } }, make("span", { className: "name", title }, said),
      make("span", { className: "track", "aria-hidden": "true" }, bar),
      make("span", { className: "long" }, step.duration_ms === null ? "" : precise(step.duration_ms)));
  }));
}
