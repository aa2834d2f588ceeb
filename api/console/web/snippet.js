// A job's request as a call that a person can run: curl, Python, JavaScript. The key is a variable, never the key.

const KEY = "TORPOR_API_KEY";

/** A value as Python writes it. */
function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    if (!value.length) return "[]";
    return `[\n${value.map((each) => `${inner}${python(each, inner)},\n`).join("")}${indent}]`;
  }
  if (typeof value === "object") {
    const entries = Object.entries(value);
    if (!entries.length) return "{}";
    return `{\n${entries.map(([name, each]) => `${inner}${JSON.stringify(name)}: ${python(each, inner)},\n`).join("")}${indent}}`;
  }
  return JSON.stringify(value); // a JSON string or number is one of Python's, too
}

/** Text in single quotes of a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The call in each language, by its name. */
export function snippets(line, origin) {
  const sent = { url: line.url, body: line.body };
  const { model: _, ...rest } = line.body;
  const json = JSON.stringify(sent, null, 2);
  return {
    curl: [
      `curl '${origin}/v1/jobs' \\`,
      `  -H "authorization: Bearer $${KEY}" \\`,
      "  -H 'content-type: application/json' \\",
      `  -d ${quoted(json)}`,
      "",
      `# its tokens as they come: curl -N '${origin}/v1/jobs/JOB_ID/events' -H "authorization: Bearer $${KEY}"`,
    ].join("\n"),
    Python: line.url === "/v1/chat/completions"
      ? [
        "import os",
        "",
        "from openai import OpenAI",
        "",
        `client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ.get("${KEY}", "none"))`,
        "answer = client.chat.completions.create(",
        `    model=${JSON.stringify(line.body.model)},`,
        ...extras(rest),
        ")",
        "print(answer.choices[0].message.content)",
      ].join("\n")
      : [
        "import os",
        "",
        "import httpx",
        "",
        `call = ${python(sent)}`,
        `headers = {"authorization": f"Bearer {os.environ.get('${KEY}', '')}"}`,
        `job = httpx.post(${JSON.stringify(`${origin}/v1/jobs`)}, json=call, headers=headers).raise_for_status().json()`,
        `print(httpx.get(f"${origin}/v1/jobs/{job['id']}?wait=60", headers=headers, timeout=90).json())`,
      ].join("\n"),
    JavaScript: [
      "const headers = {",
      '  "content-type": "application/json",',
      `  authorization: \`Bearer \${process.env.${KEY}}\`,`,
      "};",
      `const answer = await fetch(${JSON.stringify(`${origin}/v1/jobs`)}, {`,
      '  method: "POST",',
      "  headers,",
      `  body: JSON.stringify(${json.split("\n").join("\n  ")}),`,
      "});",
      "const { id } = await answer.json();",
      `const job = await fetch(\`${origin}/v1/jobs/\${id}?wait=60\`, { headers });`,
      "console.log((await job.json()).result);",
    ].join("\n"),
  };
}

const OPENAI = new Set([
  "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "tools", "tool_choice",
  "response_format", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "metadata",
  "reasoning_effort", "user", "parallel_tool_calls",
]);

/** Arguments of OpenAI's client; fields that it does not know go in its `extra_body`. */
function extras(body) {
  const known = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const lines = known.map(([name, value]) => `    ${name}=${python(value, "    ")},`);
  return Object.keys(others).length ? [...lines, `    extra_body=${python(others, "    ")},`] : lines;
}
