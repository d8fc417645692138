"use strict";
// The page of `lorarar app`: files go to the server, jobs come back. Nothing is asked of any other server.

const $ = (selector, within = document) => within.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const sides = ["content", "style"];
const chosen = {};  // side -> what the server told about its file
const weights = [1, 1];
const edited = {};  // method -> option -> value, kept while another method is shown
let about, session, prompted = "", drawn = null, past = [], timer;

// The server

async function ask(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

const mine = (path = "") => `api/${session}${path}`;
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

/** Asks for a job and waits for its end; `show` hears how it goes. */
async function work(path, body, show = () => {}) {
  let job = await ask("POST", mine(path), body);
  for (let wait = 80; job.state === "waiting" || job.state === "running"; wait = Math.min(wait * 1.4, 800)) {
    show(job);
    await pause(wait);
    job = await ask("GET", mine(`/jobs/${job.job}`));
  }
  if (job.state === "failed") throw new Error(job.error);
  return job;
}

/** Runs `action`; a mistake becomes one line in `place`. */
async function tell(place, action) {
  place.hidden = true;
  try {
    return await action();
  } catch (error) {
    place.textContent = error.message;
    place.hidden = false;
  }
}

/** Shows that a job waits or runs; returns what hears of it. */
function progress(box, doing) {
  const begun = Date.now();
  return job => {
    box.hidden = Date.now() - begun < 300;  // what is done at once needs no bar
    $("[role=status]", box).textContent =
      job.state === "waiting" && job.before ? `${job.before} before you` : `${doing} … ${job.seconds.toFixed(1)} s`;
  };
}

const size = bytes => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

// 1. Files

const box = side => $(`[data-side=${side}]`);

function show(side, file) {
  if (file) chosen[side] = file; else delete chosen[side];
  $("#leave").hidden = !sides.some(side => chosen[side]);
  const place = box(side), facts = $(".facts", place);
  facts.hidden = !file;
  $(".drop", place).hidden = $(".example", place).hidden = Boolean(file);
  if (!file) $("select", place).value = "";
  if (file) {
    $(".name b", place).textContent = file.name;
    const ranks = file.ranks.length > 1 ? `${file.ranks[0]} to ${file.ranks.at(-1)}` : file.ranks.join();
    const rows = [["base", file.base], ["format", `${file.format}, ${file.dtypes.join(", ")}, ${size(file.bytes)}`]];
    if (file.layers) rows.push(["layers", `${file.layers} linear, rank ${ranks}`], ["norm", file.norm.toPrecision(4)]);
    if (file.others) rows.push(["others", `${file.others} convolutions and layers of text encoders`]);
    for (const words of file.triggers) rows.push(["trigger", words]);
    $("dl", place).replaceChildren(
      ...rows.flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: text })]));
  }
}

async function changed(told) {
  if (told && (told.prompt || $("#prompt").value === prompted)) $("#prompt").value = prompted = told.prompt;
  $("#merged").hidden = $("#fit").hidden = true;
  drawn = null;
  past = [];
  const both = sides.every(side => chosen[side]);
  $("#merge").disabled = $("#draw").disabled = !both;
  empty();
  if (!both) return;
  live(0);
  const fit = $("#fit"), line = (text, kind = "") => make("p", { textContent: text, className: kind });
  try {
    const found = await work("/compare");
    const percent = share => `${(100 * share).toFixed(0)} %`;
    fit.replaceChildren(
      found.warnings.length ? line("They can be merged, but:") : line("They fit.", "good"),
      ...found.warnings.map(warning => line(warning, "warning")),
      line(`${found.shared} layers in both, ${found.only_first + found.only_second} in one; ` +
        `the content is ${found.norm_ratio.toPrecision(2)} times as strong; ` +
        `directions shared: ${percent(found.overlap)}, by chance ${percent(found.by_chance)}; ` +
        `cosine of the updates ${found.cosine.toFixed(2)}.`, "quiet"));
  } catch (error) {
    fit.replaceChildren(line(error.message, "problem"));
  }
  fit.hidden = false;
}

/** Sends a file and shows how far it is: `fetch` does not tell. */
function send(side, file) {
  const bar = $(".upload", box(side));
  return tell($(".problem", box(side)), () => new Promise((resolve, reject) => {
    if (file.size > about.largest) throw new Error(`${file.name}: larger than the ${size(about.largest)} that fit here`);
    const request = new XMLHttpRequest();
    request.open("PUT", mine(`/files/${side}?name=${encodeURIComponent(file.name)}`));
    request.upload.onprogress = event => {
      bar.hidden = false;
      if (event.loaded < event.total) bar.value = event.loaded / event.total; else bar.removeAttribute("value");
    };
    request.onerror = () => reject(new Error("The file did not get through. Is the server still running?"));
    request.onload = () => {
      const told = JSON.parse(request.responseText);
      if (request.status === 200) resolve(told); else reject(new Error(told.error));
    };
    request.send(file);
  }).finally(() => { bar.hidden = true; })).then(told => { if (told) { show(side, told.file); changed(told); } });
}

for (const side of sides) {
  const place = box(side), drop = $(".drop", place), input = $("input", drop), problem = $(".problem", place);
  input.onchange = () => { if (input.files[0]) send(side, input.files[0]); input.value = ""; };
  place.ondragover = event => { event.preventDefault(); drop.classList.add("over"); };
  place.ondragleave = () => drop.classList.remove("over");
  place.ondrop = event => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) send(side, event.dataTransfer.files[0]);
  };
  $("select", place).onchange = event => event.target.value && tell(problem, async () => {
    const told = await ask("POST", mine(`/files/${side}`), { name: event.target.value });
    show(side, told.file);
    changed(told);
  });
  $(".facts button", place).onclick = () => tell(problem, async () => {
    await ask("DELETE", mine(`/files/${side}`));
    show(side);
    changed();
    input.focus();
  });
}

// 2. The method and its options

const row = () => about.methods.find(method => method.name === $("#method").value);
const plain = name => name.replaceAll("_", " ");

function settings() {
  const method = row();
  return { method: method.name, options: { ...edited[method.name] }, weights: [...weights] };
}

function set(name, value) {
  const method = row(), option = method.options.find(option => option.name === name);
  const values = edited[method.name] ??= {};
  if (JSON.stringify(value) === JSON.stringify(option.default)) delete values[name]; else values[name] = value;
  $("#merged").hidden = true;
  live();
}

function slider(label, value, give) {
  const properties = { min: -1, max: 2, step: 0.05, value };
  const range = make("input", { type: "range", ...properties, ariaLabel: `${label} weight, slider` });
  const number = make("input", { type: "number", step: 0.05, value, id: `weight-${label}` });
  range.oninput = () => { number.value = range.value; give(Number(range.value)); };
  number.oninput = () => { if (number.value !== "") { range.value = number.value; give(Number(number.value)); } };
  return make("div", { className: "slider" }, make("label", { htmlFor: number.id, textContent: `${label} weight` }), range, number);
}

/** A control for an option: what it is, its default tells. */
function control(option, current) {
  const { name, choices } = option, initial = option.default, id = `option-${name}`;
  let input;
  if (choices.length) {
    input = make("select", { id }, ...choices.map(choice => make("option", { textContent: choice })));
    input.value = current;
    input.onchange = () => set(name, input.value);
  } else if (typeof initial === "boolean") {
    input = make("input", { id, type: "checkbox", checked: current });
    input.onchange = () => set(name, input.checked);
  } else if (typeof initial === "number") {
    input = make("input", { id, type: "number", step: "any", value: current });
    input.oninput = () => { if (input.value !== "") set(name, Number(input.value)); };
  } else if (Array.isArray(initial)) {
    input = make("input", { id, value: current.join(", ") });
    input.onchange = () => set(name, input.value.split(",").map(part => part.trim()).filter(Boolean));
  } else {  // a text, or nothing: then the method chooses
    input = make("input", { id, value: current ?? "", placeholder: initial === null ? "chosen by the method" : "" });
    input.onchange = () => set(name, read(input.value, initial));
  }
  return [make("div", { className: "option" }, make("label", { htmlFor: id, textContent: plain(name) }), input)];
}

/** Text as a value: nothing is the default, then JSON (a number, a list), else the text itself. */
function read(text, initial) {
  if (!text.trim()) return initial;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function options() {
  const method = row(), values = edited[method.name] ?? {};
  const kinds = {
    exact: "The result is one LoRA that is exactly the method's formula.",
    approximated: "The result is one LoRA, close to the method's formula.",
    schedule: "The result changes with the denoising step: a file that only lorarar opens.",
  };
  const scaled = method.weighs ? "" : " Weights multiply the updates before the method.";
  $("#about").textContent = `${method.paper}. ${kinds[method.kind]}${scaled}`;
  $("#format").disabled = method.kind === "schedule";
  $("#weights").replaceChildren(...sides.map((side, index) => slider(side, weights[index], value => {
    weights[index] = value;
    $("#merged").hidden = true;
    live();
  })));
  $("#options").replaceChildren(
    ...method.options.flatMap(option => control(option, values[option.name] ?? option.default)));
}

$("#method").onchange = () => { options(); $("#merged").hidden = true; live(); };
$("#settings").onsubmit = event => event.preventDefault();

// 3. The merged file

$("#merge").onclick = () => tell($("#result .problem"), async () => {
  const wanted = { ...settings(), format: $("#format").value || null, dtype: $("#dtype").value || null };
  if ($("#format").disabled) wanted.format = null;
  $("#merge").disabled = true;
  $("#merged").hidden = true;
  try {
    const job = await work("/merge", wanted, progress($("#merging"), "Merging"));
    const link = $("#merged a");
    link.href = mine(`/jobs/${job.job}/${encodeURIComponent(job.file)}`);
    link.download = job.name;
    link.textContent = `Download ${job.name} (${size(job.bytes)})`;
    $("#merged ul").replaceChildren(
      ...[`merged in ${job.seconds.toFixed(1)} s`, ...job.notes].map(note => make("li", { textContent: note })));
    $("#merged").hidden = false;
    link.focus();
  } finally {
    $("#merging").hidden = true;
    $("#merge").disabled = false;
  }
});

// 4. Pictures

const labels = { base: "base alone", content: "content alone", style: "style alone", merge: "merge" };

function empty() {
  const figure = of => make("figure", { className: of }, make("div", { className: "blank" }),
    make("figcaption", { textContent: labels[of] }));
  $("#now").replaceChildren(...Object.keys(labels).map(figure));
  history();
}

/** Words for settings: the method, and the options that are not its defaults. */
function caption({ method, options: given, weights: pair }) {
  const title = about.methods.find(row => row.name === method).title;
  return [title, pair.join(" : "), ...Object.entries(given).map(([name, value]) => `${plain(name)} ${value}`)].join(", ");
}

function history() {
  const card = view => {
    const picture = make("img", { src: view.src, alt: `Merge by ${caption(view)}` });
    const button = make("button", { type: "button" }, make("figure", {}, picture,
      make("figcaption", { textContent: caption(view) })));
    button.onclick = () => {
      edited[view.method] = { ...view.options };
      weights.splice(0, 2, ...view.weights);
      $("#method").value = view.method;
      options();
      live(0);
    };
    return button;
  };
  $("#past").hidden = !past.length;
  $("#past .gallery").replaceChildren(...past.map(card));
}

function live(delay = 350) {
  clearTimeout(timer);
  if (about.base && $("#live").checked && !$("#draw").disabled && $("#prompt").value.trim()) timer = setTimeout(draw, delay);
}

let turn = 0;
async function draw() {
  clearTimeout(timer);
  const now = ++turn, view = settings();
  const sitting = {
    ...view, prompt: $("#prompt").value.trim(), seed: Number($("#seed").value), steps: Number($("#steps").value),
  };
  const scene = JSON.stringify([sitting.prompt, sitting.seed, sitting.steps]);
  const fresh = drawn?.scene !== scene;  // the pictures that no setting of the merge changes
  const hear = progress($("#drawing"), "Drawing");
  for (const figure of $("#now").children) if (fresh || figure.className.includes("merge")) figure.classList.add("stale");
  await tell($("#pictures .problem"), async () => {
    const one = async of => {
      const job = await work("/draw", { ...sitting, of }, job => now === turn && hear(job));
      if (job.state === "dropped" || now !== turn) return;
      const src = mine(`/jobs/${job.job}/${job.file}`);
      const figure = $(`#now .${of}`);
      figure.classList.remove("stale");
      figure.firstChild.replaceWith(make("img", { src, alt: labels[of] }));
      if (of === "merge") {
        $("figcaption", figure).textContent = caption(view);
        if (drawn?.view && caption(drawn.view) !== caption(view))
          past = [drawn.view, ...past].slice(0, 12);
        drawn = { scene: drawn?.scene, view: { ...view, src } };
        history();
      }
      return true;
    };
    try {
      let all = await one("merge");
      if (fresh) for (const of of ["content", "style", "base"]) all = (await one(of)) && all;
      if (all && drawn) drawn.scene = scene;
    } finally {
      if (now === turn) $("#drawing").hidden = true;
    }
  });
}

$("#draw").onclick = draw;
for (const name of ["prompt", "seed", "steps", "live"]) $(`#${name}`).onchange = () => live(0);

// Arrival

$("#leave").onclick = () => tell($("#problem"), async () => {
  await ask("DELETE", mine());
  sessionStorage.removeItem("lorarar");
  location.reload();
});
// A file that misses its place would be opened by the browser.
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => event.preventDefault());

tell($("#problem"), async () => {
  about = await ask("GET", "api");
  session = sessionStorage.getItem("lorarar");
  const known = session ? await ask("GET", mine()).catch(() => null) : null;
  if (!known) sessionStorage.setItem("lorarar", session = (await ask("POST", "api")).session);

  const long = about.minutes >= 2 ? `${Math.round(about.minutes)} minutes` : `${Math.round(60 * about.minutes)} seconds`;
  $("#privacy").textContent = `Files stay on this server until you leave, or ${long} after your last step.`;
  const groups = { exact: "one exact LoRA", approximated: "one LoRA, approximated", schedule: "changes with the step" };
  for (const [kind, label] of Object.entries(groups)) {
    const rows = about.methods.filter(method => method.kind === kind);
    $("#method").append(make("optgroup", { label },
      ...rows.map(method => make("option", { value: method.name, textContent: method.title }))));
  }
  $("#method").value = "direct";
  for (const [list, names] of [["#format", about.formats], ["#dtype", about.dtypes]])
    $(list).append(...names.map(name => make("option", { value: name, textContent: name })));
  for (const side of sides) {
    $("select", box(side)).append(...about.examples.map(name => make("option", { value: name, textContent: plain(name) })));
    if (!about.examples.length) $(".example", box(side)).remove();
  }
  $("#pictures").hidden = !about.base;
  $("#base").textContent = about.base === "pocket" ? "the miniature base model, 64 × 64 pixels" : about.base;
  options();
  for (const side of sides) if (known?.files[side]) show(side, known.files[side]);
  changed(known);
});
