// What is being drawn and what was: frames, caption, receipt, and what can be done with a picture.

import { blobOf } from "./api.js";
import { at, fill, make, setPicture } from "./dom.js";

let frames = []; // elements, by the index of the picture in its drawing
let pictures = []; // what came into them
let shown = null;
let before = null; // what stood here before the drawing under way

export const current = () => shown;

// Empty frames for a drawing that begins.
export function begin(request) {
  if (shown) before = shown;
  [shown, pictures] = [null, []];
  build(request, request.n);
  at("welcome").hidden = at("caption").hidden = at("acts").hidden = at("receipt").hidden = at("by-hand").hidden = true;
  at("figure").hidden = at("under-way").hidden = false;
  advance(0, request.n * request.lens.steps);
}

function build(request, count) {
  const [width, height] = request.size.split("x");
  frames = Array.from({ length: count }, (_, index) => {
    const image = make("img", { alt: "", hidden: true });
    const choose = () => pictures[index] && describe(pictures[index]);
    const frame = count === 1 ? make("div", {}, image) : make("button", { type: "button", onclick: choose, "aria-label": `Picture ${index + 1}`, "aria-pressed": "false" }, image);
    frame.className = "frame empty";
    frame.style.setProperty("--width", width);
    frame.style.setProperty("--height", height);
    return frame;
  });
  at("frames").classList.toggle("many", count > 1);
  fill(at("frames"), ...frames);
}

function put(index, blob, alt, rough) {
  const frame = frames[index];
  const image = frame.firstElementChild;
  setPicture(image, blob);
  image.alt = alt;
  image.hidden = false;
  frame.className = rough ? "frame rough" : "frame";
}

// How far the drawing is: steps taken, of all.
export function advance(taken, steps) {
  at("bar").max = steps;
  at("bar").value = taken;
  at("steps-taken").textContent = `${taken} of ${steps} steps`;
}

export function preview(index, base64) {
  put(index, blobOf(base64, "image/png"), "Preview", true);
}

// A finished picture: {blob, request, receipt, index, …}.
export function finish(picture) {
  put(picture.index, picture.blob, picture.request.prompt, false);
  pictures[picture.index] = picture;
  if (!shown) describe(picture);
}

// The drawing ended, whichever way. Frames without a picture go, and without any the one before comes back.
export function end() {
  at("under-way").hidden = true;
  for (const [index, frame] of frames.entries()) {
    if (!pictures[index]) frame.remove();
  }
  if (shown) return;
  if (before) show(before);
  else {
    at("figure").hidden = true;
    at("welcome").hidden = false;
  }
}

// A picture of the gallery.
export function show(picture) {
  build(picture.request, 1);
  pictures = [picture];
  put(0, picture.blob, picture.request.prompt, false);
  at("welcome").hidden = true;
  at("figure").hidden = false;
  describe(picture);
}

// Nothing, as at first.
export function clear() {
  [shown, before, pictures] = [null, null, []];
  at("figure").hidden = at("acts").hidden = at("receipt").hidden = at("by-hand").hidden = true;
  at("welcome").hidden = false;
}

function describe(picture) {
  shown = picture;
  const { request, receipt } = picture;
  for (const [index, frame] of frames.entries()) {
    if (frames.length > 1) frame.setAttribute("aria-pressed", String(pictures[index] === picture));
  }
  at("shown-prompt").textContent = request.prompt;
  at("rewritten").hidden = !picture.rewritten || picture.rewritten === request.prompt;
  at("shown-rewritten").textContent = picture.rewritten || "";
  at("facts").textContent = [
    request.size.replace("x", " × "),
    `${request.lens.steps} steps`,
    `seed ${request.lens.seed}${picture.index ? `, picture ${picture.index + 1}` : ""}`,
    ...(picture.seconds ? [`${picture.seconds.toFixed(1)} s`] : []),
  ].join(" · ");
  fill(at("entries"), ...Object.entries(receipt || {}).flatMap(([name, value]) => entry(name, value)));
  const before = at("download").href;
  at("download").href = URL.createObjectURL(picture.blob);
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  at("download").download = fileName(picture);
  at("receipt").hidden = !receipt;
  at("caption").hidden = at("acts").hidden = false;
  at("by-hand").hidden = true;
}

function entry(name, value) {
  if (value === null || value === "") return [];
  const text = typeof value === "object" ? parts(value) : String(value);
  const kind = /sha256|hash|^model$/.test(name) ? { class: "hash" } : {};
  return [make("dt", {}, name.replaceAll("_", " ")), make("dd", kind, text)];
}

function parts(value) {
  return Object.entries(value).filter(([, item]) => item !== null).map(([name, item]) => `${name}: ${typeof item === "object" ? JSON.stringify(item) : item}`).join("\n");
}

function fileName({ request, index }) {
  const words = request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-+|-+$/g, "");
  return `${["lens", words, request.lens.seed, index].filter((part) => part !== "").join("-")}.png`;
}
