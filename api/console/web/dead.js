// Dead letters: jobs that failed for good, to be redriven, edited or discarded.

import { call, on, pathOf, repeat } from "./api.js";
import { asked, button, card, doing, make } from "./dom.js";
import { age } from "./format.js";
import { go, link } from "./route.js";

const ROWS = 50, PAUSE_MS = 5000;

async function redriveAll(load) {
  const skipped = [];
  try {
    let page;
    do {
      page = await call("POST", pathOf("/v1/dead-letters/redrive", { cursor: page?.next_cursor }));
      skipped.push(...page.skipped);
    } while (page.has_more);
  } finally {
    await load(true);
    on.deadChanged();
  }
  if (skipped.length) throw new Error(`${skipped.length} not redriven; ${skipped[0].id}: ${skipped[0].reason}`);
}

function letter(job, load) {
  const why = `${job.error?.code ?? "failed"}: ${job.error?.message ?? ""}`;
  const redrive = async () => {
    await call("POST", `/v1/dead-letters/${job.id}/redrive`);
    on.deadChanged();
    go("jobs", job.id);
  };
  const discard = async () => {
    if (!await asked(`Discard ${job.id} and its tokens? This cannot be undone.`)) return;
    await call("DELETE", `/v1/dead-letters/${job.id}`);
    on.deadChanged();
    await load(true);
  };
  return make("li", { className: "letter" },
    make("div", {},
      make("a", { href: link("jobs", job.id) }, job.prompt || job.id),
      make("div", { className: "quiet" }, `${job.id} · ${job.model || "no model"} · attempt ${job.attempt} · ${age(job.finished_ms ?? job.created_ms)}`),
      make("div", { className: "why" }, why)),
    make("div", { className: "actions" },
      button("Redrive", () => doing(redrive), { "aria-label": `Redrive ${job.id}` }),
      make("a", { className: "button", "aria-label": `Edit ${job.id}`, href: link("play", "", { from: job.id }) }, "Edit"),
      button("Discard", () => doing(discard), { className: "danger", "aria-label": `Discard ${job.id}` })));
}

export const dead = {
  open(root, start, signal) {
    let at = start, shown = "";
    const list = make("ul", { id: "dead-list", className: "rows", "aria-label": "Dead letters, newest first" });
    const none = make("p", { id: "dead-none", className: "quiet", hidden: true }, "None. Every job that failed for good would stand here.");
    const pages = make("nav", { className: "pages", "aria-label": "Pages of the list" });
    const all = button("Redrive all", () => doing(() => redriveAll(load)), { id: "redrive-all", hidden: true });

    async function load(isForced) {
      const page = await call("GET", pathOf("/v1/dead-letters", { limit: ROWS, include: "prompt", cursor: at.query.cursor }), undefined, signal);
      const ids = page.data.map((job) => `${job.id}:${job.attempt}`).join();
      if (ids !== shown || isForced) list.replaceChildren(...page.data.map((job) => letter(job, load)));
      shown = ids;
      all.hidden = !page.data.length;
      none.hidden = page.data.length > 0;
      pages.replaceChildren(...[
        at.query.cursor ? make("a", { href: link("dead") }, "Newest") : null,
        page.next_cursor ? make("a", { href: link("dead", "", { cursor: page.next_cursor }) }, "Older") : null,
      ].filter(Boolean));
    }

    root.append(card("dead", "Dead letters", all, list, none, pages));
    repeat(PAUSE_MS, signal, () => load(false));
    return { update(next) { at = next; doing(() => load(true)); } };
  },
};
