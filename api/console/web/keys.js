// Keys of the tenant: make, rotate, revoke. A key's text is shown once.

import { call, repeat } from "./api.js";
import { asked, button, card, doing, field, make, showTexts, table } from "./dom.js";
import { age, moment } from "./format.js";

const PAUSE_MS = 10000;
const SCOPES = ["jobs:read", "jobs:write", "jobs:cancel", "events:write", "metrics:read", "admin"];
const USUAL = new Set(SCOPES.slice(0, 4));

const showKey = (title, made) => showTexts(title, { Key: made.key });

function row(key, own, load) {
  const path = `/v1/keys/${key.id}`;
  const rotate = async () => {
    if (!await asked(`Make a new key like ${key.name || key.id}? The old one works for 24 hours more.`, "Rotate")) return;
    showKey("New key: shown once", await call("POST", `${path}/rotate`, { overlap_s: 86400 }));
    await load();
  };
  const revoke = async () => {
    if (!await asked(`Revoke ${key.name || key.id}? Calls with it are refused within seconds.`, "Revoke")) return;
    await call("DELETE", path);
    await load();
  };
  return [
    make("span", {}, make("strong", {}, key.name || "no name"), make("div", { className: "id quiet" }, key.id + (key.id === own ? ", in use here" : ""))),
    key.scopes.join(", "), key.requests_per_minute ?? "the tenant's", age(key.created_at * 1000),
    key.expires_at ? moment(key.expires_at * 1000) : "never",
    make("span", { className: "actions" }, button("Rotate", () => doing(rotate), { "aria-label": `Rotate ${key.id}` }),
      button("Revoke", () => doing(revoke), { className: "danger", "aria-label": `Revoke ${key.id}` })),
  ];
}

function newForm(load) {
  const name = make("input", { id: "key-name", maxLength: 256, placeholder: "what it is for" });
  const days = make("input", { id: "key-days", type: "number", min: 1, max: 3650, placeholder: "for ever" });
  const requests = make("input", { id: "key-requests", type: "number", min: 1, placeholder: "no limit" });
  const boxes = SCOPES.map((scope) => make("input", { type: "checkbox", value: scope, checked: USUAL.has(scope), defaultChecked: USUAL.has(scope) }));
  const form = make("form", {},
    make("div", { className: "fields" }, field("Name", name), field("Days", days), field("Calls a minute", requests),
      make("button", { className: "primary" }, "Make a key")),
    make("fieldset", {}, make("legend", {}, "May"), boxes.map((box) => make("label", { className: "check" }, box, " ", box.value))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(async () => {
      const body = { name: name.value, scopes: boxes.filter((box) => box.checked).map((box) => box.value) };
      if (days.value) body.expires_after_s = Number(days.value) * 86400;
      if (requests.value) body.requests_per_minute = Number(requests.value);
      const made = await call("POST", "/v1/keys", body);
      form.reset();
      showKey("Key: shown once", made);
      await load();
    });
  });
  return form;
}

export const keys = {
  open(root, _, signal) {
    const list = make("div", { id: "key-list" });
    const fresh = card("new-key", "New key", null);
    fresh.hidden = true;

    async function load() {
      try {
        const [tenant, page] = await Promise.all([
          call("GET", "/v1/tenant", undefined, signal), call("GET", "/v1/keys", undefined, signal)]);
        if (fresh.hidden) fresh.append(newForm(load));
        fresh.hidden = false;
        list.replaceChildren(table(["key", "may", "calls a minute", "made", "until", ""], page.data.map((key) => row(key, tenant.key_id, load)),
          "No keys of this tenant."));
      } catch (error) {
        if (error.name === "AbortError") return;
        list.replaceChildren(make("p", { className: "quiet" }, error.message));
      }
    }

    root.append(fresh, card("keys", "Keys", null, list));
    repeat(PAUSE_MS, signal, load);
  },
};
