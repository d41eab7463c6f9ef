// What is wrong with a field, said beside it.

import { at } from "./dom.js";

const FIELDS = ["prompt", "negative", "seed", "size"];
// The API's names for the fields of the form.
const PARAMS = { prompt: "prompt", size: "size", "lens.seed": "seed", "lens.negative_prompt": "negative" };

const control = (field) => at(field === "size" ? "width" : field);

export function mark(field, text) {
  at(`${field}-problem`).textContent = text;
  at(`${field}-problem`).hidden = false;
  control(field).setAttribute("aria-invalid", "true");
}

export function faultless() {
  for (const field of FIELDS) {
    at(`${field}-problem`).hidden = true;
    control(field).removeAttribute("aria-invalid");
  }
}

// Whether anything is wrong; then the first such field gets the focus, and a reader says why.
export function say() {
  const wrong = FIELDS.find((field) => !at(`${field}-problem`).hidden);
  if (!wrong) return false;
  if (wrong !== "prompt" && wrong !== "size") at("more").open = true;
  control(wrong).focus();
  return true;
}

// The field that an answer of the server blames, if it is one of the form's.
export function blame(problem) {
  const field = PARAMS[problem.param];
  if (problem.status !== 400 || !field) return false;
  mark(field, problem.message);
  return say();
}
