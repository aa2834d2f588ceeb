// openai-node on a loop with tools and an approval, against the address in argv.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const tools = [
  { type: "mcp", server_label: "weather", require_approval: "never" },
  { type: "mcp", server_label: "refund" },
];
const calls = [
  { name: "weather__forecast", arguments: { city: "Lima" } },
  { name: "refund__refund", arguments: { order_id: "N1", amount: 1 } },
];
const seeded = { turns: [{ text: "I look.", calls }, { text: "Paid." }] };

const helper = client.responses.stream({ model, input: "Pay", tools, seeded });
const numbers = [];
for await (const event of helper) numbers.push(event.sequence_number);
const first = await helper.finalResponse();
assert.deepEqual(numbers, [...numbers.keys()]);
const question = first.output.find((item) => item.type === "mcp_approval_request");
assert.ok(first.output.some((item) => item.type === "mcp_call" && item.output.includes("18 °C")));

const second = await client.responses.create({
  model,
  tools,
  seeded,
  previous_response_id: first.id,
  input: [{ type: "mcp_approval_response", approval_request_id: question.id, approve: true }],
});
const call = second.output.find((item) => item.type === "mcp_call");
assert.equal(call.approval_request_id, question.id);
console.log(JSON.stringify({ text: second.output_text, status: call.status }));
