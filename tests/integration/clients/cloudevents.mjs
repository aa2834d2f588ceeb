// The CloudEvents SDK for JavaScript: sends in both modes, and reads the results from the feed of events.
import assert from "node:assert/strict";
import { CloudEvent, HTTP } from "cloudevents";

const [api, broker, model] = process.argv.slice(2);
const REQUESTED = "dev.torpor.inference.requested.v1";
const data = { url: "/v1/completions", body: { model, prompt: "Why?", max_tokens: 3 } };
const jobs = [];
for (const [mode, target] of [
  ["binary", broker],
  ["structured", broker],
  ["binary", `${api}/v1/events`],
  ["structured", `${api}/v1/events`],
]) {
  const event = new CloudEvent({
    type: REQUESTED,
    source: "/shop",
    // In headers this SDK sends what is not ASCII in latin-1, which no receiver can read.
    id: `order-${mode}-${jobs.length}${mode === "binary" ? "" : " ü"}`,
    subject: mode === "binary" ? "size" : "größe",
    datacontenttype: "application/json",
    model,
    data,
  });
  const { headers, body } = HTTP[mode](event);
  const answer = await fetch(target, { method: "POST", headers, body });
  assert.equal(answer.status, 202, await answer.text());
  jobs.push(answer.headers.get("torpor-job-id"));
}
assert.equal(new Set(jobs).size, 4);

const found = new Map();
const feed = await fetch(`${api}/v1/events`, { headers: { "last-event-id": "0-0" } });
let buffer = "";
for await (const piece of feed.body.pipeThrough(new TextDecoderStream())) {
  buffer += piece;
  const frames = buffer.split("\n\n");
  buffer = frames.pop();
  for (const frame of frames) {
    const text = frame.split("\n").find((line) => line.startsWith("data: "));
    if (!text) continue;
    const headers = { "content-type": "application/cloudevents+json" };
    const event = HTTP.toEvent({ headers, body: text.slice(6) });
    assert.ok(event.validate());
    found.set(event.subject, event.type);
  }
  if (jobs.every((id) => found.has(id))) break;
}
for (const id of jobs) assert.equal(found.get(id), "dev.torpor.inference.completed.v1");
console.log(JSON.stringify(jobs));
process.exit(0);
