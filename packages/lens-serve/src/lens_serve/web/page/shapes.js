// Sizes as shapes: the model's own, and others of about as many pixels.

import { make } from "./dom.js";

const SHAPES = [["1:1", 1], ["4:3", 4 / 3], ["3:4", 3 / 4], ["16:9", 16 / 9], ["9:16", 9 / 16]];
const SPOKEN = { "1:1": "1:1, square", "4:3": "4:3, landscape", "3:4": "3:4, portrait", "16:9": "16:9, wide", "9:16": "9:16, tall" };

// A radio button for each shape that the bounds allow, and one for a size of one's own.
export function shapeChips(ownSize, bounds) {
  const [ownWidth, ownHeight] = ownSize.split("x").map(Number);
  const sizes = new Map();
  for (const [name, ratio] of SHAPES) {
    const size = sized(ratio, ownWidth, ownHeight, bounds);
    if (size && !sizes.has(size)) sizes.set(size, name);
  }
  if (!sizes.has(ownSize)) sizes.set(ownSize, "model");
  const chips = [...sizes].map(([size, name]) => chip(size, name, SPOKEN[name] || "The model’s own size", size === ownSize));
  return [...chips, chip("own", "Own", "Own size", false)];
}

function sized(ratio, ownWidth, ownHeight, { min_side, max_side, max_pixels, multiple_of }) {
  if (Math.abs(ownWidth / ownHeight - ratio) < 0.01) return `${ownWidth}x${ownHeight}`;
  const area = ownWidth * ownHeight;
  const [width, height] = [Math.sqrt(area * ratio), Math.sqrt(area / ratio)].map((side) => Math.round(side / multiple_of) * multiple_of);
  const fits = Math.min(width, height) >= min_side && Math.max(width, height) <= max_side && width * height <= max_pixels;
  return fits && Math.abs(width / height / ratio - 1) < 0.15 ? `${width}x${height}` : null;
}

function chip(value, name, spoken, checked) {
  const radio = make("input", { type: "radio", name: "shape", value, checked, "aria-label": value === "own" ? spoken : `${spoken}, ${value.replace("x", " by ")}` });
  return make("label", {}, radio, icon(value), name);
}

function icon(value) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const [width, height] = value === "own" ? [16, 16] : outline(...value.split("x").map(Number));
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const place = { x: 12 - width / 2, y: 12 - height / 2, width, height, rx: 2.5 };
  for (const [name, number] of Object.entries(place)) rect.setAttribute(name, String(number));
  if (value === "own") rect.setAttribute("stroke-dasharray", "3 2.4");
  svg.append(rect);
  return svg;
}

function outline(width, height) {
  const scale = 19 / Math.max(width, height, 1.15 * Math.min(width, height));
  return [width * scale, height * scale];
}
