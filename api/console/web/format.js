// Times, durations and amounts as people read them.

export const ENDED = new Set(["completed", "failed", "cancelled", "incomplete"]);

export const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
export const precise = (ms) => (ms < 1000 ? `${ms} ms` : seconds(ms));
export const words = (state) => String(state).replaceAll("_", " ");

export function age(ms) {
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 90) return `${s.toFixed(0)} s ago`;
  if (s < 5400) return `${(s / 60).toFixed(0)} min ago`;
  return s < 129600 ? `${(s / 3600).toFixed(0)} h ago` : moment(ms);
}

export const moment = (ms) => new Date(ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

export function amount(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at += 1; }
  return `${bytes.toFixed(at && bytes < 10 ? 1 : 0)} ${units[at]}`;
}

/** The text of a message's content: a string, or parts. */
export function textOf(content) {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => part.text ?? (part.image_url ? "[image]" : "")).join("");
}

/** What was asked, as text: the turns of a chat, a prompt, or the input of embeddings. */
export function promptOf(body) {
  if (!Array.isArray(body.messages)) {
    const asked = body.prompt ?? body.input ?? "";
    return typeof asked === "string" ? asked : JSON.stringify(asked);
  }
  return body.messages.map((message) =>
    (body.messages.length > 1 ? `${message.role}: ${textOf(message.content)}` : textOf(message.content))).join("\n");
}

/** What a person is asked to approve: characters that are not seen, or turn the line around, as \uXXXX. */
export function visible(text) {
  return text.replace(/[\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\u{e0000}-\u{e0fff}]/gu,
    (found) => `\\u${found.codePointAt(0).toString(16).padStart(4, "0")}`);
}
