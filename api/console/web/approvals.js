// Calls of tools that wait for a person: what they would do, and the decision.

import { call, pathOf, repeat } from "./api.js";
import { asked, button, card, doing, field, make } from "./dom.js";
import { moment, visible, words } from "./format.js";
import { link } from "./route.js";

const ROWS = 50, PAUSE_MS = 5000;

/** The buttons for what is asked; each gives the decision that it means. */
function answers(one, said) {
  if (one.kind === "doubt") {
    return [
      ["Run it again", async () => (await asked("Run the call again? It may have happened already.")) && { decision: "run_again" }],
      ["It ran", () => ({ decision: "it_ran", output: said.value })],
      ["Give up", () => ({ decision: "give_up" }), "danger"],
    ];
  }
  if (one.kind === "input") {
    return [
      ["Send", () => ({ action: "accept", content: JSON.parse(said.value || "{}") })],
      ["Decline", () => ({ action: "decline" }), "danger"],
    ];
  }
  return [
    ["Approve", () => ({ approve: true })],
    ["Deny", () => ({ approve: false, reason: said.value }), "danger"],
  ];
}

const SAYS = { approval: "Reason of a denial", doubt: "Its result, if it ran", input: "Answer, as JSON" };

function question(one, load) {
  const said = make("textarea", { rows: 1 });
  const decide = (work) => doing(async () => {
    const body = await work();
    if (!body) return;
    await call("POST", `/v1/jobs/${one.job_id}/approvals/${one.id}`, body);
    await load(true);
  });
  const questions = (one.questions ?? []).map((each) =>
    make("div", { className: "why" }, visible(each.message), each.url ? ` ${each.url}` : "", each.schema ? make("pre", {}, visible(JSON.stringify(each.schema))) : null));
  return make("li", { className: "letter" },
    make("div", {},
      make("a", { href: link("jobs", one.job_id) }, `${one.server}: ${one.tool}`),
      make("pre", {}, visible(one.arguments)),
      make("div", { className: "quiet" }, `${[...new Set([one.kind, words(one.reason)])].join(" · ")} · effect ${one.effect} · until ${moment(1000 * one.expires_at)}`),
      questions,
      field(SAYS[one.kind], said)),
    make("div", { className: "actions" }, answers(one, said).map(([name, work, look]) =>
      button(name, () => decide(work), { className: look, "aria-label": `${name}: ${one.tool}` }))));
}

export const approvals = {
  open(root, start, signal) {
    let shown = "";
    const list = make("ul", { id: "approval-list", className: "rows", "aria-label": "Calls that wait for a person" });
    const none = make("p", { id: "approval-none", className: "quiet", hidden: true }, "Nothing waits for a person.");

    async function load(isForced) {
      const page = await call("GET", pathOf("/v1/approvals", { limit: ROWS }), undefined, signal);
      const ids = page.data.map((one) => one.id).join();
      if (ids !== shown || isForced) list.replaceChildren(...page.data.map((one) => question(one, load)));
      shown = ids;
      none.hidden = page.data.length > 0;
    }

    root.append(card("approvals", "Approvals", null, list, none));
    repeat(PAUSE_MS, signal, () => load(false));
  },
};
