// The pictures that this browser keeps, as a grid: those of this session first.

import { at, fill, make } from "./dom.js";
import * as history from "./history.js";
import * as stage from "./stage.js";

const THUMBNAIL = 256; // pixels
const session = (sessionStorage["lens.session"] ||= crypto.getRandomValues(new Uint32Array(2)).join("-"));

let pictures = []; // newest first
let keeps = true; // whether the browser does
const items = new Map(); // by id of the picture

export async function open(onShow) {
  at("groups").addEventListener("click", ({ target }) => {
    const id = target.closest("button")?.dataset.id;
    const picture = pictures.find((each) => String(each.id) === id);
    if (picture) {
      onShow(picture);
      render();
    }
  });
  history.onChange(load);
  await load();
}

async function load() {
  try {
    const unkept = pictures.filter(({ id }) => typeof id === "string");
    pictures = [...unkept, ...(await history.kept()).reverse()];
  } catch {
    keeps = false;
  }
  render();
}

// A new picture; where the browser keeps none, it stays until the page is closed.
export async function add(picture) {
  Object.assign(picture, { session, thumbnail: await thumbnail(picture.blob) });
  try {
    picture.id = await history.keep(picture);
  } catch {
    keeps = false;
    picture.id = crypto.randomUUID?.() ?? String(Math.random());
  }
  pictures = [picture, ...pictures].slice(0, history.LIMIT);
  render();
}

export async function clear() {
  await history.clear().catch(() => {});
  pictures = [];
  render();
}

export const count = () => pictures.length;

async function thumbnail(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.85));
}

export function render() {
  const here = pictures.filter((picture) => picture.session === session);
  const earlier = pictures.filter((picture) => picture.session !== session);
  at("gallery").hidden = pictures.length === 0;
  at("kept").textContent = keeps ? `Kept in this browser, on this device: ${pictures.length} of at most ${history.LIMIT}.` : "This browser does not keep pictures; they go when the page is closed.";
  const ids = new Set(pictures.map(({ id }) => id));
  for (const [id, item] of items) {
    if (ids.has(id)) continue;
    URL.revokeObjectURL(item.querySelector("img").src);
    items.delete(id);
  }
  const focused = document.activeElement;
  fill(at("groups"), ...group("This session", here), ...group("Earlier", earlier));
  if (at("groups").contains(focused)) focused.focus({ preventScroll: true });
}

function group(title, members) {
  if (!members.length) return [];
  return [make("div", {}, make("h3", {}, title), make("ul", {}, ...members.map(item)))];
}

// Elements are made once: an <img> made anew would flicker, and lose the focus.
function item(picture) {
  if (!items.has(picture.id)) {
    const image = make("img", { alt: picture.request.prompt, src: URL.createObjectURL(picture.thumbnail), loading: "lazy" });
    items.set(picture.id, make("li", {}, make("button", { type: "button", "data-id": picture.id, title: picture.request.prompt.slice(0, 200) }, image)));
  }
  const made = items.get(picture.id);
  made.firstElementChild.setAttribute("aria-current", String(stage.current()?.id === picture.id));
  return made;
}
