// A tool as a CloudEvents function in JavaScript (Node 18 or newer, no library): dice, the same for the same call.
// Run: node function_dice.mjs [PORT]
import { createHash } from "node:crypto";
import { createServer } from "node:http";

const port = Number(process.argv[2] ?? 9003);

const server = createServer(async (request, response) => {
  let body = "";
  for await (const part of request) body += part;
  const id = request.headers["ce-id"]; // the idempotency key: the same on every send of one call
  const { arguments: text } = JSON.parse(body);
  const sides = Math.max(2, Number(JSON.parse(text || "{}").sides ?? 6));
  const roll = 1 + (createHash("sha256").update(id).digest().readUInt32BE(0) % sides);
  response.writeHead(200, {
    "ce-specversion": "1.0",
    "ce-type": "dev.torpor.tool.returned.v1",
    "ce-source": "/dice",
    "ce-id": id,
    "content-type": "application/json",
  });
  response.end(JSON.stringify({ content: [{ type: "text", text: `rolled ${roll}` }], isError: false }));
});

const host = process.env.HOST ?? "127.0.0.1";
server.listen(port, host, () => {
  console.log(`listening on http://${host}:${server.address().port}`);
});
