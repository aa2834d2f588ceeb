// The playground's fields as a request, and a request as those fields. Pure.

/** JSON in a field; the refusal names the field. */
function parsed(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
}

/** The content of a turn: text, or parts where it has images. */
function contentOf({ text, images = [] }) {
  if (!images.length) return text;
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [{ type: "text", text }, ...parts] : parts;
}

function messageOf(turn) {
  const message = { role: turn.role, content: contentOf(turn) };
  if (turn.role === "assistant" && turn.tool_calls?.length) {
    message.tool_calls = turn.tool_calls;
    message.content = turn.text || null;
  }
  if (turn.role === "tool") message.tool_call_id = turn.tool_call_id ?? "";
  return message;
}

export function turnOf(message) {
  const parts = Array.isArray(message.content) ? message.content : [{ type: "text", text: message.content ?? "" }];
  return {
    role: message.role === "developer" ? "system" : message.role,
    text: parts.map((part) => part.text ?? "").join(""),
    images: parts.map((part) => part.image_url?.url).filter(Boolean),
    tool_calls: message.tool_calls,
    tool_call_id: message.tool_call_id,
  };
}

/** What `POST /v1/jobs` takes. Throws with the name of a field that is no JSON. */
export function requestOf(fields, turns) {
  if (fields.raw !== null) {
    const line = parsed(fields.raw, "Request");
    return { url: line.url, body: line.body };
  }
  const messages = turns.map(messageOf);
  if (fields.system.trim()) messages.unshift({ role: "system", content: fields.system });
  const body = { model: fields.model, messages };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (fields[name] !== "") body[name] = Number(fields[name]);
  }
  const stop = fields.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (fields.tools.trim()) body.tools = parsed(fields.tools, "Tools");
  if (fields.format === "json_object") body.response_format = { type: "json_object" };
  if (fields.format === "json_schema") {
    const schema = parsed(fields.schema || "{}", "Schema");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (fields.more.trim()) Object.assign(body, parsed(fields.more, "More fields"));
  return { url: "/v1/chat/completions", body };
}

/** Priority and deadline, which stand beside a request. */
export function optionsOf(fields) {
  const options = { priority: fields.priority };
  if (fields.deadline !== "") options.expires_after = Number(fields.deadline);
  return options;
}

const FORM = new Set(["model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "tools", "response_format"]);

/** The fields and turns of a request; one that is no chat is edited as JSON. */
export function fieldsOf(request) {
  const { url, body } = request;
  if (url !== "/v1/chat/completions" || !Array.isArray(body.messages)) {
    return { fields: { raw: JSON.stringify({ url, body }, null, 2) }, turns: [] };
  }
  const turns = body.messages.map(turnOf);
  const isSystem = turns[0]?.role === "system";
  const more = Object.fromEntries(Object.entries(body).filter(([name]) => !FORM.has(name)));
  const format = body.response_format ?? { type: "text" };
  return {
    turns: isSystem ? turns.slice(1) : turns,
    fields: {
      raw: null,
      model: body.model,
      system: isSystem ? turns[0].text : "",
      max_tokens: body.max_completion_tokens ?? body.max_tokens ?? "",
      temperature: body.temperature ?? "",
      top_p: body.top_p ?? "",
      seed: body.seed ?? "",
      stop: [body.stop ?? []].flat().join("\n"),
      tools: body.tools ? JSON.stringify(body.tools, null, 2) : "",
      format: format.type,
      schema: format.json_schema ? JSON.stringify(format.json_schema.schema, null, 2) : "",
      more: Object.keys(more).length ? JSON.stringify(more, null, 2) : "",
    },
  };
}
