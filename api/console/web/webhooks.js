// Webhooks: endpoints (make, test, rotate, delete) and the log of deliveries.

import { call, pathOf, repeat } from "./api.js";
import { asked, button, card, choice, doing, field, make, showTexts, table } from "./dom.js";
import { age, moment, words } from "./format.js";
import { link } from "./route.js";

const PAUSE_MS = 5000, ROWS = 20;

const showSecret = (title, endpoint) => showTexts(title, { Secret: endpoint.signing_secret });

function endpointBlock(endpoint, types, load) {
  const path = `/v1/webhook_endpoints/${endpoint.id}`;
  const type = choice({ "aria-label": `Event for the test of ${endpoint.url}` }, types);
  const said = make("span", { className: "quiet", role: "status" });
  const test = async () => {
    said.textContent = "sent …";
    try {
      const answer = await call("POST", `${path}/test`, { event_type: type.value });
      said.textContent = `the receiver answered ${answer.status_code}`;
    } catch (error) {
      said.textContent = error.message;
    }
  };
  const rotate = async () => {
    if (!await asked("Make a new signing secret? The old one signs too for 24 hours.", "Rotate")) return;
    const body = { keep_old_secret_active_for_24_hours: true };
    showSecret("New signing secret: shown once", await call("POST", `${path}/rotate_secret`, body));
    await load();
  };
  const discard = async () => {
    if (!await asked(`Delete the endpoint ${endpoint.url}? What is still to be sent to it is dropped.`, "Delete")) return;
    await call("DELETE", path);
    await load();
  };
  return make("li", { className: "endpoint", data: { id: endpoint.id } },
    make("div", { className: "head" },
      make("span", {}, make("strong", {}, endpoint.name || endpoint.url), endpoint.name ? make("div", { className: "quiet" }, endpoint.url) : null),
      make("span", { className: "actions" }, type, button("Test", () => doing(test)), button("Rotate secret", () => doing(rotate)),
        button("Delete", () => doing(discard), { className: "danger" }))),
    endpoint.switched_off ? make("p", { className: "why" }, `switched off: ${endpoint.switched_off}`) : null,
    make("p", { className: "quiet" }, `${endpoint.event_types.length === types.length ? "every event" : endpoint.event_types.join(", ")} · secret ${endpoint.signing_secret_hint} `, said));
}

function deliveryRow(delivery) {
  const last = delivery.tries.at(-1);
  const result = last ? String(last.status ?? last.error) : "not tried yet";
  const subject = delivery.data.id;
  const tries = make("details", {}, make("summary", {}, `${delivery.tries.length} ${delivery.tries.length === 1 ? "try" : "tries"}`),
    make("ol", {}, delivery.tries.map((each) => make("li", {},
      `${moment(each.at_ms)}: ${each.status ?? each.error}, ${each.duration_ms} ms${each.next_ms ? `, again ${moment(each.next_ms)}` : ""}`))));
  return [
    make("span", { className: "state", data: { state: delivery.state } }, words(delivery.state)), delivery.type, delivery.url,
    subject.startsWith("job_") ? make("a", { href: link("jobs", subject) }, subject) : subject,
    result, delivery.tries.length ? tries : "", age(delivery.created_ms),
  ];
}

function newForm(types, load) {
  const url = make("input", { id: "hook-url", type: "url", required: true, placeholder: "https://example.org/hook" });
  const name = make("input", { id: "hook-name", maxLength: 256, placeholder: "none" });
  const boxes = types.map((type) => make("input", { type: "checkbox", value: type, checked: true }));
  const form = make("form", {},
    make("div", { className: "fields" }, field("URL", url), field("Name", name), make("button", { className: "primary" }, "Add")),
    make("fieldset", {}, make("legend", {}, "Events"), boxes.map((box) => make("label", { className: "check" }, box, " ", box.value))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(async () => {
      const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
      const made = await call("POST", "/v1/webhook_endpoints", { url: url.value, name: name.value, event_types: chosen });
      form.reset();
      showSecret("Signing secret: shown once", made);
      await load();
    });
  });
  return form;
}

export const webhooks = {
  open(root, start, signal) {
    let at = start, types = [];
    const place = make("div");
    const list = make("ul", { id: "endpoint-list", className: "blocks" });
    const none = make("p", { className: "quiet", hidden: true }, "No endpoints.");
    const log = make("div", { id: "delivery-list" });
    const pages = make("nav", { className: "pages", "aria-label": "Pages of the log" });

    async function loadEndpoints() {
      const page = await call("GET", "/v1/webhook_endpoints?limit=100", undefined, signal);
      list.replaceChildren(...page.data.map((endpoint) => endpointBlock(endpoint, types, loadEndpoints)));
      none.hidden = page.data.length > 0;
    }

    async function loadLog() {
      if (log.querySelector("details[open]")) return; // its tries are being read
      const page = await call("GET", pathOf("/v1/webhook_deliveries", { limit: ROWS, before: at.query.before }), undefined, signal);
      log.replaceChildren(table(["state", "event", "to", "about", "answer", "", "made"], page.data.map(deliveryRow), "Nothing was sent yet."));
      pages.replaceChildren(...[
        at.query.before ? make("a", { href: link("webhooks") }, "Newest") : null,
        page.next_before ? make("a", { href: link("webhooks", "", { before: page.next_before }) }, "Older") : null,
      ].filter(Boolean));
    }

    root.append(card("new-endpoint", "New endpoint", null, place), card("endpoints", "Endpoints", null, list, none),
      card("deliveries", "Deliveries", null, log, pages));
    doing(async () => {
      types = (await call("GET", "/v1/webhook_event_types", undefined, signal)).data;
      place.append(newForm(types, loadEndpoints));
      await loadEndpoints();
    });
    repeat(PAUSE_MS, signal, loadLog);
    return { update(next) { at = next; doing(loadLog); } };
  },
};
