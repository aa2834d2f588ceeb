// The turns of a conversation: each can be edited, removed, and given images.

import { button, choice, make } from "./dom.js";

const ROLES = ["user", "assistant", "tool", "system"];

/** Images of a turn, and the button that adds one. */
export function gallery(turn, changed) {
  const shown = make("span", { className: "images" });
  const draw = () => shown.replaceChildren(...turn.images.map((url, at) => make("span", { className: "image" },
    make("img", { src: url.startsWith("data:") ? url : "", alt: url.startsWith("data:") ? `image ${at + 1}` : url }),
    button("×", () => { turn.images.splice(at, 1); draw(); changed(); }, { "aria-label": `Remove image ${at + 1}` }))));
  const input = make("input", { type: "file", accept: "image/*", multiple: true, "aria-label": "Add images" });
  input.addEventListener("change", async () => {
    for (const file of input.files) turn.images.push(await asUrl(file));
    input.value = "";
    draw();
    changed();
  });
  draw();
  return make("span", { className: "gallery" }, shown, make("label", { className: "button file" }, "Add image", input));
}

function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** One turn as an element; `remove` takes it away. */
export function turnRow(turn, remove) {
  const text = make("textarea", {
    className: "turn-text", value: turn.text, rows: 1, "aria-label": `Text of the ${turn.role}`,
    oninput: () => { turn.text = text.value; },
  });
  const role = choice({ "aria-label": "Role", onchange: () => { turn.role = role.value; } }, ROLES, turn.role);
  const calls = (turn.tool_calls ?? []).map((each) =>
    make("code", { className: "call" }, `${each.function?.name}(${each.function?.arguments ?? ""})`));
  const row = make("li", { className: "turn", data: { role: turn.role } },
    make("div", { className: "head" }, role,
      make("div", { className: "actions" }, turn.role === "user" ? gallery(turn, () => {}) : null,
        button("Remove", remove, { "aria-label": "Remove this turn" }))),
    turn.thinking ? make("details", {}, make("summary", {}, "Thinking"), make("pre", {}, turn.thinking)) : null,
    text, calls);
  return row;
}


