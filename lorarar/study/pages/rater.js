// The rater's page. The server knows the state; this page shows it, and sends each answer until it is acknowledged.
"use strict";

const token = location.pathname.split("/").pop();
const api = `../api/${token}`;  // relative, so that a proxy may serve the study under any path
const $ = (selector, root = document) => root.querySelector(selector);
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

let state = null;     // what the server last said
let position = 0;     // the comparison shown
let shownAt = null;   // when both of its images were visible
let sending = false;

// ---- the server -----------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Asks until there is an answer: a server that is down or busy is waited for, a refusal is thrown.
async function ask(path, body) {
  for (let wait = 0.5; ; wait = Math.min(wait * 2, 8)) {
    try {
      const options = body === undefined ? {} : {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        keepalive: true,  // sent even if the tab is closed now
      };
      const answer = await fetch(api + path, options);
      const content = await answer.json();
      if (answer.ok) {
        say("");
        return content;
      }
      if (answer.status < 500) throw new Refused(answer.status, content.error);
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    say(body && body.id ? "Your last answer is not saved yet. Trying again …" : "The server does not answer. Trying again …");
    await pause(wait);
  }
}

// An answer is noted in the browser until it is acknowledged: a tab that is closed meanwhile sends it when it is back.
const noted = {
  prefix: `answer ${token} `,
  add(ballot) { try { localStorage.setItem(this.prefix + ballot.id, JSON.stringify(ballot)); } catch { /* private */ } },
  remove(ballot) { try { localStorage.removeItem(this.prefix + ballot.id); } catch { /* private */ } },
  all() {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(this.prefix))
        .map((key) => JSON.parse(localStorage.getItem(key)));
    } catch {
      return [];
    }
  },
};

async function send(ballot) {
  noted.add(ballot);
  try {
    return await ask("/vote", ballot);
  } finally {
    noted.remove(ballot);  // acknowledged, or refused for good
  }
}

function drawnId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- what is seen ---------------------------------------------------------------------------------------------------

function say(text) {
  $("#status").textContent = text;
  $("#status").hidden = !text;
}

function show(name) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== name;
  scrollTo(0, 0);
  $("h1", $(`#${name}`)).focus({ preventScroll: true });
}

// A captioned picture that can be enlarged.
function figure(caption, label, image) {
  const made = document.createElement("figure");
  const title = document.createElement("figcaption");
  const button = document.createElement("button");
  const picture = document.createElement("img");
  title.textContent = caption;
  picture.alt = label;
  // Small pictures are enlarged by whole pixels: what is judged is what was generated.
  picture.addEventListener("load", () => picture.classList.toggle("pixels", picture.naturalWidth < 256));
  picture.src = `../image/${image}`;
  button.type = "button";
  button.className = "picture";
  button.setAttribute("aria-label", `Enlarge: ${label}`);
  button.append(picture);
  button.addEventListener("click", () => {
    const large = $("#zoom img");
    large.src = picture.src;
    large.alt = label;
    large.className = picture.className;
    $("#zoom").showModal();
  });
  made.append(title, button);
  return made;
}

function references(item) {
  return [
    figure(`Subject: ${item.subject.name}`, `Subject reference, ${item.subject.name}`, item.subject.image),
    figure(`Style: ${item.style.name}`, `Style reference, ${item.style.name}`, item.style.image),
  ];
}

function options(item) {
  return item.options.map((image, side) => figure(`Option ${side + 1}`, `Option ${side + 1}`, image));
}

function name(root, item) {
  for (const place of root.querySelectorAll("[data-name]")) place.textContent = item[place.dataset.name].name;
}

function introduce() {
  const root = $("#intro");
  $("[data-fill=example]", root).replaceChildren(...references(state.example), ...options(state.example));
  name(root, state.example);
  for (const place of root.querySelectorAll("[data-wrong]")) place.hidden = place.dataset.wrong !== state.example.wrong;
  $("#start").textContent = state.slots.some((slot) => slot.choice) ? "Continue" : "Start";
  show("intro");
}

function open() {
  for (const button of document.querySelectorAll("#answers button")) button.disabled = sending || shownAt === null;
  $("#back").disabled = sending || position === 0;
}

async function compare(number) {
  position = number;
  shownAt = null;
  const slot = state.slots[position];
  const root = $("#task");
  const answered = state.slots.filter((other) => other.choice).length;
  $("#place").textContent = `${position + 1} of ${state.slots.length}`;
  $("#place").setAttribute("aria-label", `Comparison ${position + 1} of ${state.slots.length}`);
  $("#progress").max = state.slots.length;
  $("#progress").value = answered;
  name(root, slot);
  $("[data-fill=references]", root).replaceChildren(...references(slot));
  $("[data-fill=options]", root).replaceChildren(...options(slot));
  for (const button of document.querySelectorAll("#answers button")) {
    button.setAttribute("aria-pressed", String(button.dataset.choice === slot.choice));
  }
  open();
  show("task");
  const pictures = [...root.querySelectorAll("img")];
  try {
    await Promise.all(pictures.map((picture) => picture.decode()));
  } catch {
    if (state.slots[position] === slot) fail("A picture of this comparison cannot be shown. Please tell who sent the link.");
    return;
  }
  if (state.slots[position] !== slot) return;  // gone on meanwhile
  shownAt = performance.now();
  open();
  const next = state.slots[position + 1];
  for (const image of next ? [...next.options, next.subject.image, next.style.image] : []) new Image().src = `../image/${image}`;
}

function proceed() {
  const next = state.slots.findIndex((slot) => !slot.choice);
  if (state.finished) thank();
  else if (next < 0) show("end");
  else compare(next);
}

function thank() {
  $("#code b").textContent = state.code || "";
  $("#code").hidden = !state.code;
  if (state.link) $("#return a").href = state.link;
  $("#return").hidden = !state.link;
  show("thanks");
}

function fail(message) {
  $("#reason").textContent = message;
  show("problem");
}

// ---- what is done ---------------------------------------------------------------------------------------------------

async function answer(choice) {
  if (sending || shownAt === null) return;
  const slot = state.slots[position];
  const seconds = Math.min((performance.now() - shownAt) / 1000, 86400);
  sending = true;
  open();
  try {
    const done = await send({ id: drawnId(), position, revision: slot.revision, choice, seconds });
    Object.assign(slot, { choice: done.choice, revision: done.revision });
    sending = false;
    proceed();
  } catch (error) {
    sending = false;
    await load();
    if (error.status === 409) say(error.message);
  }
}

async function load() {
  try {
    for (const ballot of noted.all()) {
      try {
        await send(ballot);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;  // refused: another answer to it is kept
      }
    }
    state = await ask("");
    if (state.slots.every((slot) => !slot.choice)) introduce();
    else proceed();
  } catch (error) {
    fail(error.message);
  }
}

async function finish() {
  try {
    Object.assign(state, await ask("/finish", {}));
    proceed();
  } catch (error) {
    await load();
    say(error.message);
  }
}

$("#start").addEventListener("click", proceed);
$("#help").addEventListener("click", introduce);
$("#back").addEventListener("click", () => compare(position - 1));
$("#last").addEventListener("click", () => compare(state.slots.length - 1));
$("#finish").addEventListener("click", finish);
$("#again").addEventListener("click", load);
$("#close").addEventListener("click", () => $("#zoom").close());
for (const button of document.querySelectorAll("#answers button")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
document.addEventListener("keydown", (event) => {
  const choice = { 1: "1", 2: "similar", 3: "2" }[event.key];
  if (!choice || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (!$("#task").hidden && !$("#zoom").open) answer(choice);
});
load();
