// What went wrong, and when to come again.

import { at } from "./dom.js";
import { duration, inWords } from "./words.js";

let ticking = null;

// Shows a problem. Where the server says when to come again, counts down to it, and then calls `again`.
export function show(problem, again) {
  dismiss();
  const { title, detail } = inWords(problem);
  at("trouble").hidden = false;
  at("trouble-title").textContent = title;
  at("trouble-detail").textContent = detail;
  at("again").hidden = !problem.retry;
  at("try-now").hidden = !problem.passing || problem.code === "quota_exceeded";
  at("try-now").onclick = () => again();
  at("trouble").scrollIntoView({ block: "nearest" });
  if (!at("again").hidden) countDown(performance.now() + problem.waitMs, again);
}

function countDown(time, again) {
  const left = time - performance.now();
  at("countdown").textContent = duration(left);
  if (left > 0) ticking = setTimeout(() => countDown(time, again), Math.min(left, 200));
  else if (at("by-itself").checked) ticking = setTimeout(again);
}

export function dismiss() {
  clearTimeout(ticking);
  at("trouble").hidden = true;
  at("trouble-title").textContent = "";
}
