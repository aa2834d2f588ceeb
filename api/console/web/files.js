// Files: upload, download, delete.

import { call, download, pathOf, repeat } from "./api.js";
import { asked, button, card, choice, doing, field, make, table } from "./dom.js";
import { moment, size } from "./format.js";
import { link } from "./route.js";

const PAUSE_MS = 10000, ROWS = 50;
const PURPOSES = ["batch", "user_data", "assistants", "evals", "fine-tune", "vision"];

/** Uploads a file; its object. */
export function upload(file, purpose) {
  const form = new FormData();
  form.append("purpose", purpose);
  form.append("file", file);
  return call("POST", "/v1/files", form);
}

function row(file, load) {
  const discard = async () => {
    if (!await asked(`Delete ${file.filename}? This cannot be undone.`, "Delete")) return;
    await call("DELETE", `/v1/files/${file.id}`);
    await load();
  };
  return [
    make("span", { title: file.id }, file.filename), file.purpose, size(file.bytes), moment(file.created_at * 1000),
    file.expires_at ? moment(file.expires_at * 1000) : "never",
    make("span", { className: "actions" },
      button("Download", () => doing(() => download(`/v1/files/${file.id}/content`, file.filename)), { "aria-label": `Download ${file.filename}` }),
      button("Delete", () => doing(discard), { className: "danger", "aria-label": `Delete ${file.filename}` })),
  ];
}

export const files = {
  open(root, start, signal) {
    let at = start;
    const list = make("div", { id: "file-list" });
    const pages = make("nav", { className: "pages", "aria-label": "Pages of the list" });
    const input = make("input", { id: "file", type: "file", required: true });
    const purpose = choice({ id: "purpose" }, PURPOSES, "batch");
    const form = make("form", { className: "fields" }, field("File", input), field("For", purpose),
      make("button", { className: "primary" }, "Upload"));

    async function load() {
      const query = { limit: ROWS, order: "desc", after: at.query.after };
      const page = await call("GET", pathOf("/v1/files", query), undefined, signal);
      list.replaceChildren(table(["name", "for", "size", "made", "kept until", ""], page.data.map((file) => row(file, load)),
        "No files. Those of batches come here, and their results."));
      pages.replaceChildren(...(page.has_more ? [make("a", { href: link("files", "", { after: page.last_id }) }, "Older")] : []));
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      doing(async () => { await upload(input.files[0], purpose.value); form.reset(); await load(); });
    });
    root.append(card("upload", "Upload a file", null, form), card("files", "Files", null, list, pages));
    repeat(PAUSE_MS, signal, load);
    return { update(next) { at = next; doing(load); } };
  },
};
