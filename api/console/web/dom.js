// Elements. What a model or a tenant wrote only ever becomes text (textContent), never markup.

export const el = (id) => document.getElementById(id);

/** An element with properties and children; strings become text, null and false nothing. */
export function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined) continue;
    if (name === "data") Object.assign(node.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An element of SVG with attributes. */
export function drawn(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Name and value pairs; those without a value are left out. */
export function facts(pairs, props = {}) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return make("dl", { className: "facts", ...props }, known.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value instanceof Node ? value : String(value)))));
}

/** A section with a heading; `actions` stand beside it. */
export function card(id, title, actions, ...children) {
  return make("section", { id, "aria-labelledby": `${id}-title`, tabIndex: -1 },
    make("div", { className: "head" }, make("h2", { id: `${id}-title` }, title),
      make("div", { className: "actions" }, actions)),
    children);
}

export function button(words, onclick, props = {}) {
  return make("button", { type: "button", onclick, ...props }, words);
}

/** A table; a cell may be an element. Without rows, `none` is said. */
export function table(columns, rows, none) {
  if (!rows.length) return make("p", { className: "quiet" }, none);
  return make("div", { className: "table", tabIndex: 0, role: "region", "aria-label": columns.filter(Boolean).join(", ") },
    make("table", {}, make("thead", {}, make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell, at) =>
        make("td", { data: { name: columns[at] } }, cell ?? "")))))));
}

/** A field with its label around it. */
export function field(words, input, props = {}) {
  return make("label", props, words, " ", input);
}

/** A select of options: texts, or pairs of value and text. */
export function choice(props, options, chosen) {
  return make("select", props, options.map((option) => {
    const [value, words] = Array.isArray(option) ? option : [option, option];
    return make("option", { value, selected: value === chosen }, words);
  }));
}

/** Runs what a person asked for; a refusal is said, not thrown. */
export async function doing(work) {
  try {
    el("alert").hidden = true;
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    el("alert").textContent = error.message;
    el("alert").hidden = false;
    return undefined;
  }
}

/** Whether a person agrees to what cannot be undone; the safe answer has the focus. */
export function asked(words, yes = "Discard") {
  el("ask-text").textContent = words;
  el("ask-yes").textContent = yes;
  el("ask").returnValue = "";
  el("ask").showModal();
  return new Promise((resolve) => {
    el("ask").addEventListener("close", () => resolve(el("ask").returnValue === "yes"), { once: true });
  });
}

/** Shows texts, one a tab, to be copied. */
export function showTexts(title, texts) {
  const pick = (name) => {
    el("text-body").textContent = texts[name];
    for (const tab of el("text-tabs").children) tab.setAttribute("aria-selected", String(tab.textContent === name));
  };
  el("text-title").textContent = title;
  const names = Object.keys(texts);
  el("text-tabs").replaceChildren(...(names.length > 1 ? names : []).map((name) =>
    button(name, () => pick(name), { role: "tab" })));
  pick(names[0]);
  el("text-copy").textContent = "Copy";
  el("text-dialog").showModal();
}

/** Copies the shown text; where the browser has no clipboard (plain http), it is selected. */
export async function copyText() {
  getSelection().selectAllChildren(el("text-body"));
  try {
    await navigator.clipboard.writeText(el("text-body").textContent);
    el("text-copy").textContent = "Copied";
  } catch {
    el("text-copy").textContent = "Selected: press Ctrl+C";
  }
}
