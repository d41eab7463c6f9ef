// One caption at a time. Texts go into the page as text only; the policy forbids anything else.
"use strict";

const at = (id) => document.getElementById(id);
const token = takeToken();
let states = [];
let here = 0;
let shown = null;
let busy = false;
let editing = false;
let visit = 0;

function takeToken() {
  // The token leaves the address bar, and with it history and shared screens; a reload finds it in this tab.
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given || sessionStorage.getItem("token") || "";
}

async function ask(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The review was ended in the terminal; nothing more is saved. Everything decided before is.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `the server answered ${answer.status}`);
  }
  return answer;
}

function complain(error) {
  at("message").textContent = error ? error.message : "";
  at("message").hidden = !error;
}

function count() {
  const decided = states.filter(Boolean).length;
  at("count").textContent = `${decided} of ${states.length} decided`;
  at("bar").setAttribute("width", String((100 * decided) / states.length));
  at("progress").setAttribute("aria-valuemax", String(states.length));
  at("progress").setAttribute("aria-valuenow", String(decided));
}

async function show(number) {
  const mine = ++visit;
  wait(true);
  await look(number, mine);
  if (mine === visit) wait(false);
}

// Keys and buttons rest until a caption stands there with its picture: nobody decides about what they have not seen.
function wait(on) {
  busy = on;
  document.querySelector("main").setAttribute("aria-busy", String(on));
}

async function look(number, mine) {
  here = number;
  edit(false);
  let item;
  try {
    item = await (await ask(`/api/items/${number}`)).json();
  } catch (error) {
    complain(error);
    return;
  }
  if (mine !== visit) return;
  shown = item;
  complain(null);
  at("place").textContent = `${number + 1} of ${states.length}`;
  at("name").textContent = item.name;
  at("size").textContent = item.size;
  const failed = item.status !== "ok";
  at("fault").hidden = !failed;
  at("fault").textContent = failed ? `no caption: ${item.status}${item.detail ? `: ${item.detail}` : ""}` : "";
  at("text").textContent = item.action === "edit" ? item.edited : item.text;
  at("text").className = item.action;
  at("state").textContent = { accept: "Accepted.", edit: "Edited.", reject: "Rejected." }[item.action] || "";
  at("accept").disabled = failed;
  at("undo").disabled = !item.action;
  at("previous").disabled = number === 0;
  at("next").disabled = number === states.length - 1;
  at("facts").replaceChildren(
    ...Object.entries(item.facts).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const fact = document.createElement("dd");
      term.textContent = name.replaceAll("_", " ");
      fact.textContent = value;
      return [term, fact];
    }),
  );
  document.querySelector("main").hidden = false;
  await showPicture(number, mine, item.name);
}

async function showPicture(number, mine, name) {
  const picture = at("picture");
  try {
    const bytes = await (await ask(`/api/pictures/${number}`)).blob();
    if (mine !== visit) return;
    if (picture.src) URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(bytes);
    picture.alt = name;
    picture.hidden = false;
    at("no-picture").hidden = true;
  } catch (error) {
    if (mine !== visit) return;
    picture.hidden = true;
    at("no-picture").textContent = error.message;
    at("no-picture").hidden = false;
  }
}

async function decide(action, text = "") {
  if (busy || !shown || shown.number !== here || (action === "accept" && shown.status !== "ok")) return;
  if (action === "undo" && !shown.action) return;
  wait(true);
  try {
    states = (await (await ask(`/api/items/${here}/decision`, { action, text })).json()).states;
    count();
    const further = action === "undo" ? here : undecided(here + 1);
    await show(further < 0 ? here : further);
    if (further < 0) at("state").textContent = "Everything is decided. End the review in the terminal with Ctrl+C.";
  } catch (error) {
    complain(error);
    wait(false);
  }
}

function undecided(from) {
  for (let step = 0; step < states.length; step++) {
    const number = (from + step) % states.length;
    if (!states[number]) return number;
  }
  return -1;
}

function edit(on) {
  editing = on;
  at("editor").hidden = !on;
  at("text").hidden = on;
  at("actions").hidden = on;
  at("moves").hidden = on;
  if (on) {
    at("edited").value = shown.action === "edit" ? shown.edited : shown.text;
    at("edited").focus();
  }
}

function save() {
  const text = at("edited").value.trim();
  if (text) decide("edit", text);
}

const moves = {
  previous: () => here > 0 && show(here - 1),
  next: () => here < states.length - 1 && show(here + 1),
  open: () => undecided(here + 1) >= 0 && show(undecided(here + 1)),
};
const acts = {
  accept: () => decide("accept"),
  edit: () => !busy && shown?.number === here && edit(true),
  reject: () => decide("reject"),
  undo: () => decide("undo"),
  ...moves,
};
const keys = { a: "accept", e: "edit", r: "reject", u: "undo", k: "previous", j: "next", n: "open", arrowleft: "previous", arrowright: "next" };

for (const [id, act] of Object.entries(acts)) at(id).addEventListener("click", act);
at("save").addEventListener("click", save);
at("cancel").addEventListener("click", () => edit(false));

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (editing) {
    if (event.key === "Escape") edit(false);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else return;
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const name = keys[event.key.toLowerCase()];
  if (!name || event.repeat && !(name in moves)) return;
  event.preventDefault();
  acts[name]();
});

(async () => {
  try {
    const overview = await (await ask("/api/overview")).json();
    states = overview.states;
    at("layer").textContent = overview.layer;
    count();
    const first = undecided(0);
    await show(first < 0 ? 0 : first);
  } catch (error) {
    complain(error);
  }
})();
