// The page: it asks what can be drawn, draws what the form says, and shows what comes.

import * as api from "./api.js";
import { asCurl, asPython } from "./code.js";
import { at, fill, make } from "./dom.js";
import { blame } from "./faults.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as stage from "./stage.js";
import * as trouble from "./trouble.js";
import { inWords } from "./words.js";

const PREVIEWS = 3;
const narrow = matchMedia("(max-width: 899px)"); // then the picture is below the form
const EXAMPLES = [
  "A lighthouse on a cliff at dusk, its beam crossing low clouds",
  "A bowl of ripe apricots on a blue cloth, soft morning light",
  "A paper boat on a rain puddle that mirrors a red tram",
];

let known = []; // models
let running = null; // the AbortController of what is being drawn

// ---- what can be drawn

async function enter() {
  let problem = null;
  try {
    known = await api.models();
  } catch (error) {
    problem = error;
  }
  at("waiting").textContent = problem ? entrance(problem) : "";
  if (!problem) unlock();
  else if ([401, 403].includes(problem.status)) lock(api.key.get() ? problem.message : "");
  else setTimeout(enter, problem.waitMs ?? 1000);
}

// What is said to those who wait for the page to begin.
function entrance(problem) {
  if ([401, 403].includes(problem.status)) return "";
  if (problem.status === 503) return "The server is loading its model. The page goes on by itself.";
  return `${inWords(problem).title} ${inWords(problem).detail}`;
}

function lock(why) {
  for (const id of ["form", "show"]) at(id).hidden = true;
  document.querySelector("main").classList.add("locked");
  at("door").hidden = false;
  at("key-problem").textContent = why;
  at("forget").hidden = true;
  at("only-model").textContent = "";
  at("key").focus();
}

function unlock() {
  document.querySelector("main").classList.remove("locked");
  at("door").hidden = true;
  for (const id of ["form", "show"]) at(id).hidden = false;
  at("forget").hidden = !api.key.get();
  fill(at("model"), ...known.map(({ id }) => make("option", { value: id }, id)));
  document.querySelector(".model").hidden = known.length < 2;
  at("only-model").textContent = known.length === 1 ? `Model: ${known[0].id}` : "";
  form.offer(known[0]);
}

// ---- drawing

async function draw(request, ticket = null) {
  if (running) return;
  trouble.dismiss();
  running = new AbortController();
  busy(true);
  stage.begin(request);
  if (narrow.matches) at("stage").scrollIntoView({ block: "start" });
  status("Waiting for its turn.");
  const began = performance.now();
  const steps = Array(request.n).fill(0);
  let done = 0;
  try {
    const asked = { ...request, stream: true, partial_images: PREVIEWS };
    for await (const event of api.draw(asked, { signal: running.signal, ticket })) {
      if (event.type === "step") {
        if (!steps.some(Boolean)) status("Drawing.");
        steps[event.index] = event.step;
        stage.advance(steps.reduce((sum, taken) => sum + taken), request.n * event.steps);
      } else if (event.type.endsWith(".partial_image")) {
        status(`Drawing, ${at("bar").value} of ${at("bar").max} steps.`);
        stage.preview(event.lens.index, event.b64_json);
      } else {
        done += 1;
        const { index, receipt, revised_prompt: rewritten } = event.lens;
        const blob = api.blobOf(event.b64_json, "image/png");
        const picture = { blob, request, receipt, rewritten, index, seconds: (performance.now() - began) / 1000 };
        stage.finish(picture);
        await gallery.add(picture);
      }
    }
    if (done < request.n) throw new api.Problem(0, { message: "The connection broke off before the end." });
    status(done === 1 ? "The picture is done." : `${done} pictures are done.`, true);
    if (!form.keepsSeed()) form.throwSeed();
    form.remember();
  } catch (error) {
    failed(error, request);
  } finally {
    running = null;
    stage.end();
    busy(false);
  }
}

function failed(error, request) {
  if (error.name === "AbortError") return status("Cancelled.");
  if (!(error instanceof api.Problem)) throw error;
  status("");
  if (error.status === 401) return lock(error.message);
  if (blame(error)) return null;
  return trouble.show(error, () => draw(request, error.ticket));
}

// While something is drawn, Cancel stands where Draw was, and has the focus if Draw had it.
function busy(on) {
  const [shown, hidden] = on ? [at("cancel"), at("draw")] : [at("draw"), at("cancel")];
  const focused = document.activeElement === hidden;
  shown.hidden = false;
  if (focused) shown.focus();
  hidden.hidden = true;
  at("again-seed").disabled = on;
  document.title = on ? "Drawing… · Lens" : "Lens";
}

// `spoken`: for those who listen; those who look see it anyway.
function status(text, spoken = false) {
  at("status").textContent = text;
  at("status").className = spoken ? "spoken" : "";
}

function submit(event) {
  event?.preventDefault();
  if (running) return;
  const request = form.request();
  if (request) draw(request);
}

// ---- what can be done with a picture

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    status(`Copied as ${what}.`);
  } catch {
    // Pages that did not come over https, or from this machine, may not write to the clipboard.
    at("by-hand").hidden = false;
    at("code").value = text;
    at("code").select();
  }
}

function again() {
  const { request } = stage.current();
  if (known.some(({ id }) => id === request.model)) at("model").value = request.model;
  form.offer(known.find(({ id }) => id === at("model").value));
  form.take(request);
  submit();
}

// ---- wiring

at("form").addEventListener("submit", submit);
at("cancel").addEventListener("click", () => running?.abort());
at("dice").addEventListener("click", () => {
  form.throwSeed();
  form.remember();
});
at("model").addEventListener("change", () => form.offer(known.find(({ id }) => id === at("model").value)));
at("dismiss").addEventListener("click", () => {
  trouble.dismiss();
  at("draw").focus();
});
at("again-seed").addEventListener("click", again);
at("copy-curl").addEventListener("click", () => copy(asCurl(stage.current().request), "curl"));
at("copy-python").addEventListener("click", () => copy(asPython(stage.current().request), "Python"));
at("clear").addEventListener("click", () => {
  const count = gallery.count();
  at("sure-title").textContent = count === 1 ? "Remove this picture from this browser?" : `Remove these ${count} pictures from this browser?`;
  at("sure").returnValue = "";
  at("sure").showModal();
});
at("sure").addEventListener("close", async () => {
  if (at("sure").returnValue !== "clear") return;
  await gallery.clear();
  if (!running) stage.clear();
  status("The pictures were removed.");
  at("prompt").focus();
});
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  at("key").value = "";
  if (!/^[!-~]+$/.test(key)) return lock("Keys have plain letters and digits only.");
  api.key.set(key);
  return enter();
});
at("forget").addEventListener("click", () => {
  running?.abort();
  api.key.forget();
  enter();
});

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("form").hidden) submit(event);
  if (event.key === "Escape" && running && !at("sure").open) running.abort();
});

at("draw-keys").textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵";
fill(at("examples"), ...EXAMPLES.map((text) => {
  const use = () => {
    at("prompt").value = text;
    form.remember();
    at("prompt").focus();
  };
  return make("li", {}, make("button", { type: "button", onclick: use }, text));
}));
gallery.open((picture) => {
  if (running) {
    status("This one can be looked at when the drawing is done.");
    return;
  }
  stage.show(picture);
  status("The picture is shown.", true);
  at("stage").scrollIntoView({ block: "start" });
});
enter();
