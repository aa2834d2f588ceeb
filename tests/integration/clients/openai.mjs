// openai-node against the address in argv: each answer is checked here, and told as one line of JSON.
import assert from "node:assert/strict";
import OpenAI, { NotFoundError, toFile } from "openai";

const [url, model, secret, body, headers] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 2 });
const ask = { model, messages: [{ role: "user", content: "Why?" }], max_tokens: 6 };

assert.ok((await client.models.list()).data.some((each) => each.id === model));

const whole = await client.chat.completions.create(ask);
assert.ok(whole.choices[0].message.content);
assert.ok(whole.usage.completion_tokens > 0);

let streamed = "";
let usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...ask, ...options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.ok(streamed);
assert.ok(usage.completion_tokens > 0);

const helper = client.chat.completions.stream(ask);
assert.equal((await helper.finalChatCompletion()).choices[0].finish_reason !== null, true);

const asked = { model, input: "Why?", max_output_tokens: 6 };
const response = await client.responses.create(asked);
assert.ok(response.output_text);
let text = "";
let numbers = [];
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  numbers.push(event.sequence_number);
  if (event.type === "response.output_text.delta") text += event.delta;
}
assert.ok(text);
assert.deepEqual(numbers, [...numbers.keys()]);
assert.equal((await client.responses.retrieve(response.id)).output_text, response.output_text);

const background = await client.responses.create({ ...asked, background: true });
assert.ok(["queued", "in_progress", "completed", "incomplete"].includes(background.status));

await assert.rejects(client.chat.completions.create({ ...ask, model: "nobody" }), NotFoundError);

const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: ask };
const file = await client.files.create({
  file: await toFile(Buffer.from(JSON.stringify(line) + "\n"), "Größe.jsonl"),
  purpose: "batch",
});
assert.equal(file.filename, "Größe.jsonl");
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.status, "completed");
const lines = await (await client.files.content(batch.output_file_id)).text();
assert.equal(JSON.parse(lines).custom_id, "a");

const told = await client.webhooks.unwrap(body, JSON.parse(headers), secret);
assert.equal(told.type, "response.completed");

console.log(JSON.stringify({ whole: whole.id, streamed, text }));
