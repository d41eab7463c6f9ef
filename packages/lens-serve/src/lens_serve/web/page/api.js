// The server's API as this page uses it: what models there are, and drawing with events on the way.

import { events } from "./sse.js";

// Relative to this file, so that the page also works below a path that a proxy gave it.
const root = new URL("../", import.meta.url);
export const address = (path) => new URL(path, root).href;

// The key lives as long as this tab, and in this tab only.
export const key = {
  get: () => sessionStorage.getItem("lens.key") || "",
  set: (value) => sessionStorage.setItem("lens.key", value),
  forget: () => sessionStorage.removeItem("lens.key"),
};

// What went wrong: `status` (0: no answer), OpenAI's `code`, `message` and `param`, and when to come again.
export class Problem extends Error {
  constructor(status, told = {}, headers = new Headers()) {
    super(told.message || `The server answered ${status}.`);
    this.status = status;
    this.code = told.code || "";
    this.param = told.param || "";
    this.ticket = headers.get("x-lens-ticket");
    this.waitMs = wait(headers);
    this.passing = status === 0 || status === 429 || status >= 500; // and not the request's own fault
    this.retry = this.passing && this.waitMs !== null && headers.get("x-should-retry") !== "false";
  }
}

function wait(headers) {
  const milliseconds = parseFloat(headers.get("retry-after-ms"));
  if (Number.isFinite(milliseconds)) return milliseconds;
  const seconds = parseFloat(headers.get("retry-after"));
  return Number.isFinite(seconds) ? seconds * 1000 : null;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { message: "The server does not answer." });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, body.error, answer.headers);
}

export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

// Errors that come in the stream have no status of their own any more; these are what they would have had.
const STATUSES = { content_policy_violation: 403, unavailable: 503, deadline: 504 };

// Each event of a drawing, as the server says it, and {type: "step", index, step, steps} for its comments on the way.
// Ends after the last picture. Aborting the signal cancels the drawing.
export async function* draw(request, { signal, ticket }) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (ticket) headers["x-lens-ticket"] = ticket;
  const answer = await ask("v1/images/generations", { method: "POST", headers, body: JSON.stringify(request), signal });
  try {
    for await (const { data, comment } of events(answer.body)) {
      if (comment !== undefined) {
        const [, index, step, steps] = comment.match(/^image (\d+) step (\d+)\/(\d+)$/)?.map(Number) ?? [];
        if (steps) yield { type: "step", index, step, steps };
        continue;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Problem(statusOf(event.error), event.error);
      yield event;
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem(0, { message: "The connection broke off." });
  }
}

const statusOf = ({ code, type }) => STATUSES[code] || (type === "invalid_request_error" ? 400 : 500);

// The bytes of base64 as a blob.
export function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}
