// The form: what a model offers, what is asked for, and what is wrong with it. This window remembers its own.

import { at, fill, make } from "./dom.js";
import { faultless, mark, say } from "./faults.js";
import { shapeChips } from "./shapes.js";

const form = at("form");
const WORDS = { exact: "exact: the same bits, whatever else is drawn", lossless: "lossless", fast: "fast: approximations" };
const CHECKS = ["keep", "rewrite"];
const FIELDS = ["prompt", "negative", "seed", "steps", "guidance", "width", "height", "tier", "lora", "lora-scale", ...CHECKS];

let model = null;

// What this model can do; fields keep what they hold as far as it still applies.
export function offer(offered, remembered = values()) {
  model = offered;
  const { bounds, ...own } = model.lens;
  fill(at("shapes"), ...shapeChips(own.size, bounds));
  fill(at("numbers"), ...Array.from({ length: bounds.max_images }, (_, index) => numberChip(index + 1)));
  at("how-many").hidden = bounds.max_images === 1;
  for (const side of ["width", "height"]) {
    Object.assign(at(side), { min: bounds.min_side, max: bounds.max_side, step: bounds.multiple_of });
  }
  [at("width").value, at("height").value] = own.size.split("x");
  at("steps").max = bounds.max_steps;
  at("steps").value = own.steps;
  at("guidance").max = bounds.max_guidance;
  at("guidance").value = own.guidance;
  at("rewrite-field").hidden = !own.rewriter;
  at("rewrite").checked = own.rewrite;
  options("tier", own.tiers.map((tier) => [tier, WORDS[tier] || tier]), own.tier);
  options("lora", [["", "none"], ...own.loras.map((name) => [name, name])], "");
  at("tier-field").hidden = own.tiers.length < 2;
  at("lora-field").hidden = own.loras.length === 0;
  if (!at("seed").value) throwSeed();
  restore(remembered);
  refresh();
}

function options(id, pairs, chosen) {
  fill(at(id), ...pairs.map(([value, text]) => make("option", { value }, text)));
  at(id).value = chosen;
}

function numberChip(number) {
  const name = number === 1 ? "1 picture" : `${number} pictures`;
  const radio = make("input", { type: "radio", name: "n", value: number, "aria-label": name, checked: number === 1 });
  return make("label", {}, radio, String(number));
}

export function throwSeed() {
  at("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

export const keepsSeed = () => at("keep").checked;

// What the form asks for, or null when something is wrong; then the first wrong field has the focus.
export function request() {
  faultless();
  const { bounds } = model.lens;
  const prompt = at("prompt").value.trim();
  const negative = at("negative").value.trim();
  if (!prompt) mark("prompt", "Say what the picture should show.");
  for (const [id, text] of Object.entries({ prompt, negative })) {
    if (text.length > bounds.max_prompt_chars) {
      mark(id, `${text.length} characters; at most ${bounds.max_prompt_chars} are taken.`);
    }
  }
  const seed = Number(at("seed").value);
  if (!/^\d+$/.test(at("seed").value.trim()) || !Number.isSafeInteger(seed)) {
    mark("seed", `A whole number from 0 to ${Number.MAX_SAFE_INTEGER}.`);
  }
  const size = chosenSize();
  if (form.elements.shape.value === "own") checkSize(size, bounds);
  if (say()) return null;
  const lens = { seed, steps: at("steps").valueAsNumber, guidance: at("guidance").valueAsNumber };
  if (negative) lens.negative_prompt = negative;
  if (model.lens.rewriter) lens.rewrite = at("rewrite").checked;
  if (model.lens.tiers.length > 1) lens.tier = at("tier").value;
  if (at("lora").value) Object.assign(lens, { lora: at("lora").value, lora_scale: at("lora-scale").valueAsNumber });
  return { model: model.id, prompt, n: Number(form.elements.n.value), size, output_format: "png", lens };
}

function chosenSize() {
  const shape = form.elements.shape.value;
  return shape === "own" ? `${at("width").value}x${at("height").value}` : shape;
}

function checkSize(size, bounds) {
  const [width, height] = size.split("x").map(Number);
  for (const side of [width, height]) {
    if (!(side >= bounds.min_side && side <= bounds.max_side) || side % bounds.multiple_of) {
      mark("size", `Each side is a multiple of ${bounds.multiple_of} from ${bounds.min_side} to ${bounds.max_side}.`);
    }
  }
  if (width * height > bounds.max_pixels) mark("size", `${width * height} pixels; at most ${bounds.max_pixels} are drawn.`);
}

// The form as it was for an earlier drawing. Its seed is kept, or drawing again would not be what was asked for.
export function take(earlier) {
  const { lens } = earlier;
  const [width, height] = earlier.size.split("x");
  restore({
    prompt: earlier.prompt, n: earlier.n, shape: earlier.size, width, height, negative: lens.negative_prompt || "",
    seed: lens.seed, keep: true, steps: lens.steps, guidance: lens.guidance, rewrite: lens.rewrite ?? true,
    tier: lens.tier, lora: lens.lora || "", "lora-scale": lens.lora_scale ?? 1,
  });
  refresh();
  remember();
}

function restore(held) {
  for (const id of FIELDS) {
    if (held[id] === undefined) continue;
    if (CHECKS.includes(id)) at(id).checked = held[id];
    else if (at(id).tagName !== "SELECT" || [...at(id).options].some((option) => option.value === held[id])) at(id).value = held[id];
  }
  choose("n", held.n);
  if (!choose("shape", held.shape) && held.shape) choose("shape", "own");
}

function choose(name, value) {
  const radio = [...form.querySelectorAll(`input[name="${name}"]`)].find((each) => each.value === String(value));
  if (radio) radio.checked = true;
  return Boolean(radio);
}

function values() {
  const held = Object.fromEntries(FIELDS.map((id) => [id, CHECKS.includes(id) ? at(id).checked : at(id).value]));
  return model ? { ...held, n: form.elements.n.value, shape: form.elements.shape.value } : remembered();
}

const remembered = () => JSON.parse(sessionStorage.getItem("lens.form") || "{}");
export const remember = () => sessionStorage.setItem("lens.form", JSON.stringify(values()));

function refresh() {
  for (const id of ["steps", "guidance", "lora-scale"]) at(`${id}-value`).textContent = at(id).value;
  at("pixels").textContent = chosenSize().replace("x", " × ");
  at("own-size").hidden = form.elements.shape.value !== "own";
  at("lora-weight").hidden = !at("lora").value;
}

form.addEventListener("input", () => {
  refresh();
  remember();
});
