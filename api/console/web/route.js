// The address of a page, `#/jobs/job_1?state=failed`: it survives a reload and can be sent to others.

/** Where we are: the parts of the path, and the query as an object. */
export function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { page: parts[0] || "jobs", id: parts[1] ?? "", query: Object.fromEntries(new URLSearchParams(query)) };
}

/** The address of a page; empty values are left out of its query. */
export function link(page, id = "", query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value);
  const path = id ? `${page}/${encodeURIComponent(id)}` : page;
  return `#/${path}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
}

export function go(page, id = "", query = {}) {
  location.hash = link(page, id, query);
}

/** As `go`, without a new entry in the browser's history: for what is typed. */
export function replace(page, id = "", query = {}) {
  history.replaceState(null, "", link(page, id, query));
  dispatchEvent(new HashChangeEvent("hashchange"));
}
