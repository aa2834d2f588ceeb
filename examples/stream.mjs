// Ask one question from Node: a job, and its events; a stream that is cut goes on after its last event.
const api = process.env.TORPOR_API_URL ?? "http://127.0.0.1:8000";
const key = process.env.TORPOR_API_KEY;
const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };

async function call(path, options = {}) {
  const answer = await fetch(api + path, { ...options, headers: { ...headers, ...options.headers } });
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  return answer;
}

/** Each event of a job's life, to its end. */
async function* events(id) {
  let cursor = "";
  for (;;) {
    try {
      const resumed = cursor ? { "last-event-id": cursor } : {};
      const answer = await call(`/v1/jobs/${id}/events`, { headers: resumed });
      let rest = "";
      for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
        const frames = (rest + piece).split("\n\n");
        rest = frames.pop();
        for (const frame of frames) {
          const fields = Object.fromEntries(
            frame.split("\n").filter((line) => line.includes(": ")).map((line) => {
              const at = line.indexOf(": ");
              return [line.slice(0, at), line.slice(at + 2)];
            }),
          );
          if (!fields.data) continue;
          cursor = fields.id ?? cursor;
          yield { name: fields.event, data: JSON.parse(fields.data) };
          if (fields.event === "result") return;
        }
      }
    } catch (error) {
      if (/^4\d\d/.test(error.message)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

const model = (await (await call("/v1/models")).json()).data[0].id;
const messages = [{ role: "user", content: process.argv[2] ?? "Why is the sky blue?" }];
const line = { url: "/v1/chat/completions", body: { model, messages, max_tokens: 32 } };
const job = await (await call("/v1/jobs", { method: "POST", body: JSON.stringify(line) })).json();
console.error(`accepted as ${job.id}`);
for await (const { name, data } of events(job.id)) {
  if (name === "tokens") process.stdout.write(data.delta.map((c) => c.delta?.content ?? c.text ?? "").join(""));
}
process.stdout.write("\n");
