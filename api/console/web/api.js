// Calls of the public API with the key of this tab, and nothing else.

const KEY = "torpor-key";
export const on = { unauthorized: () => {}, pulse: () => {}, deadChanged: () => {} };
let isLocked = false;

/** Whether there is no valid key: then nothing is asked again by itself. */
export const locked = () => isLocked;

export class Refused extends Error {
  constructor(status, words) { super(words); this.status = status; }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => { sessionStorage.setItem(KEY, text); isLocked = false; },
  forget: () => { sessionStorage.removeItem(KEY); isLocked = false; },
};

export function headers(more = {}) {
  return key.get() ? { authorization: `Bearer ${key.get()}`, ...more } : more;
}

/** The JSON of a call; throws `Refused` with the api's own words. `body` may be a form. */
export async function call(method, path, body, signal) {
  const isForm = body instanceof FormData;
  const more = body === undefined || isForm ? {} : { "content-type": "application/json" };
  const sent = body === undefined ? {} : { body: isForm ? body : JSON.stringify(body) };
  const answer = await fetch(path, { method, headers: headers(more), signal, ...sent });
  if (answer.status === 401) {
    isLocked = true;
    on.unauthorized();
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, content.detail || content.error?.message || `the api answered ${answer.status}`);
  return content;
}

/** A path with a query; empty values are left out. */
export function pathOf(path, query) {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

/** Saves what is at `path`; a link could not carry the key. */
export async function download(path, name) {
  const answer = await fetch(path, { headers: headers() });
  if (!answer.ok) throw new Refused(answer.status, `the api answered ${answer.status}`);
  const address = URL.createObjectURL(await answer.blob());
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Calls `work` again and again, `pauseMs` after it is done, until the page is left; rests while it is hidden. */
export function repeat(pauseMs, signal, work) {
  const turn = async () => {
    if (signal?.aborted) return;
    if (!document.hidden && !isLocked) {
      try { await work(); } catch (error) {
        if (error.name !== "AbortError" && !signal?.aborted) on.pulse("away", error.message);
      }
    }
    setTimeout(turn, pauseMs);
  };
  turn();
}

/** The server-sent events of a stream. `EventSource` cannot carry a key, so they are read here. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
      }
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data), id: fields.id };
    }
  }
}

const RETRY_MS = 1000;

/** Gives a job's events to `onEvent` until its end; a cut is taken up again at the last cursor. */
export async function follow(id, signal, onEvent) {
  let cursor = "", isOver = false;
  while (!isOver && !signal.aborted) {
    try {
      const more = cursor ? { "last-event-id": cursor } : {};
      const answer = await fetch(`/v1/jobs/${id}/events`, { headers: headers(more), signal });
      if (answer.status === 204) return;
      if (!answer.ok) throw new Refused(answer.status, `the stream was refused (${answer.status})`);
      for await (const event of events(answer.body)) {
        if (signal.aborted) return;
        cursor = event.id || cursor;
        isOver = event.name === "result";
        onEvent(event.name, event.data);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) throw error;
    }
    if (!isOver) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}
