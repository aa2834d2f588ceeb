// Batches: a file of requests, its progress, its results.

import { call, download, pathOf, repeat } from "./api.js";
import { button, card, choice, doing, field, make } from "./dom.js";
import { upload } from "./files.js";
import { age, amount, words } from "./format.js";
import { link } from "./route.js";

const PAUSE_MS = 3000, ROWS = 20;
const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
const OVER = new Set(["completed", "failed", "expired", "cancelled"]);

function progress({ total, completed, failed }) {
  const bar = make("div", { className: "progress", role: "img", "aria-label": `${completed} of ${total} done, ${failed} failed` });
  for (const [name, count] of [["done", completed], ["failed", failed]]) {
    const part = make("span", { className: name });
    part.style.width = `${(100 * count) / Math.max(total, 1)}%`;
    bar.append(part);
  }
  return bar;
}

function block(batch, load) {
  const { request_counts: counts } = batch;
  const cancel = async () => { await call("POST", `/v1/batches/${batch.id}/cancel`); await load(); };
  const save = (words_, id) => id && button(words_, () => doing(() => download(`/v1/files/${id}/content`, `${batch.id}-${words_.toLowerCase()}.jsonl`)),
    { "aria-label": `${words_} of ${batch.id}` });
  const errors = batch.errors?.data?.slice(0, 3).map((error) => make("p", { className: "why" },
    `${error.line ? `line ${error.line}: ` : ""}${error.message}`));
  return make("li", { className: "batch", data: { id: batch.id } },
    make("div", { className: "head" },
      make("span", {}, make("span", { className: "state", data: { state: batch.status } }, words(batch.status)), " ",
        make("span", { className: "id" }, batch.id)),
      make("span", { className: "actions" }, save("Results", batch.output_file_id), save("Errors", batch.error_file_id),
        OVER.has(batch.status) ? null : button("Cancel", () => doing(cancel), { className: "danger", "aria-label": `Cancel ${batch.id}` }))),
    progress(counts),
    make("p", { className: "quiet" }, [
      `${amount(counts.completed)} of ${amount(counts.total)} done`, counts.failed ? `${amount(counts.failed)} failed` : "",
      batch.endpoint, batch.model ?? "", batch.usage?.total_tokens ? `${amount(batch.usage.total_tokens)} tokens` : "",
      age(batch.created_at * 1000)].filter(Boolean).join(" · ")),
    errors);
}

export const batches = {
  open(root, start, signal) {
    let at = start;
    const list = make("ul", { id: "batch-list", className: "blocks" });
    const none = make("p", { className: "quiet", hidden: true }, "No batches.");
    const pages = make("nav", { className: "pages", "aria-label": "Pages of the list" });
    const input = make("input", { id: "batch-file", type: "file", accept: ".jsonl", required: true });
    const endpoint = choice({ id: "endpoint" }, ENDPOINTS);
    const form = make("form", { className: "fields" }, field("Requests, one a line (JSON Lines)", input),
      field("Endpoint", endpoint), make("button", { className: "primary" }, "Start"));

    async function load() {
      const page = await call("GET", pathOf("/v1/batches", { limit: ROWS, after: at.query.after }), undefined, signal);
      list.replaceChildren(...page.data.map((batch) => block(batch, load)));
      none.hidden = page.data.length > 0;
      pages.replaceChildren(...[
        at.query.after ? make("a", { href: link("batches") }, "Newest") : null,
        page.has_more ? make("a", { href: link("batches", "", { after: page.last_id }) }, "Older") : null,
      ].filter(Boolean));
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      doing(async () => {
        const file = await upload(input.files[0], "batch");
        await call("POST", "/v1/batches", { input_file_id: file.id, endpoint: endpoint.value, completion_window: "24h" });
        form.reset();
        await load();
      });
    });
    root.append(card("new-batch", "New batch", null, form), card("batches", "Batches", null, list, none, pages));
    repeat(PAUSE_MS, signal, load);
    return { update(next) { at = next; doing(load); } };
  },
};
