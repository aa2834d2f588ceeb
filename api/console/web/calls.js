// Calls of tools: as a model makes them, and what became of each, in words.

import { precise, words } from "./format.js";

const SHORT_CHARS = 200;
const WAITS = {
  awaiting_approval: "waits for approval",
  awaiting_input: "asks its user",
  in_doubt: "may have happened: say what is to be done",
};
const OPEN = new Set(["pending", "sent", "accepted"]);

const short = (text) => (text.length <= SHORT_CHARS ? text : `${text.slice(0, SHORT_CHARS)} …`);
const nameOf = (call) => (call.server ? `${call.server}.${call.tool}` : String(call.name).replace("__", "."));

/** Calls in a whole answer, as text. */
export function callsOf(calls) {
  return (calls ?? []).map((each) => `\n${each.function?.name ?? each.type}(${each.function?.arguments ?? ""})`).join("");
}

/** Calls of an answer that streams: a name comes once, its arguments in parts. */
export class StreamedCalls {
  constructor() {
    this.isOpen = false;
  }

  /** What the parts in a delta add to the text. */
  add(parts) {
    return (parts ?? []).map(({ function: called }) => {
      const start = called?.name ? `${this.end()}\n${called.name}(` : "";
      this.isOpen ||= Boolean(start);
      return start + (called?.arguments ?? "");
    }).join("");
  }

  /** What is missing at the end of the last call. */
  end() {
    const said = this.isOpen ? ")" : "";
    this.isOpen = false;
    return said;
  }
}

/** The calls of the present turn, from the events `turn` and `call`. */
export class TurnCalls {
  constructor() {
    this.states = new Map();
  }

  /** A turn was recorded; the lines that say so. */
  begin(turn) {
    this.states = new Map(turn.calls.map((call) => [call.place, call.state]));
    return turn.calls.map((call) => {
      const waits = WAITS[call.state] ? `, ${WAITS[call.state]}` : "";
      return `turn ${turn.turn}: calls ${nameOf(call)} ${short(call.arguments)}${waits}`;
    });
  }

  /** A call changed; the line that says how. */
  change(call) {
    this.states.set(call.call, call.status);
    return callWords(call);
  }

  /** What the job waits for, as its record calls it; nothing when all calls have ended. */
  phase() {
    const states = [...this.states.values()];
    if (states.some((state) => OPEN.has(state))) return "tool";
    if (states.some((state) => state === "awaiting_approval" || state === "in_doubt")) return "approval";
    return states.includes("awaiting_input") ? "input" : undefined;
  }
}

function callWords(call) {
  const name = nameOf(call), why = call.reason ? `: ${short(call.reason)}` : "", output = call.output ? `: ${short(call.output)}` : "";
  if (WAITS[call.status]) return `${name} ${WAITS[call.status]}${why}`;
  switch (call.status) {
    case "sent":
    case "accepted": {
      if (call.progress) return `${name}: ${progressWords(call.progress)}`;
      return `${name} runs${call.send > 1 ? ` (send ${call.send})` : ""}`;
    }
    case "returned": return `${name} ${call.is_error ? "failed" : "returned"}${call.ms ? ` after ${precise(call.ms)}` : ""}${output}`;
    case "denied": return `${name} denied${output || why}`;
    default: return `${name} ${words(call.status)}${why}`;
  }
}

function progressWords({ progress, total, message }) {
  const far = Number.isFinite(progress) ? `${progress}${Number.isFinite(total) ? ` of ${total}` : ""}` : "";
  return [far, message].filter(Boolean).join(" ");
}
