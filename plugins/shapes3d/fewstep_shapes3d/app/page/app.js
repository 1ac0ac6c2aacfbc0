// The page of the app: orders, their progress, and the results. All outside data is set as text, never as HTML.
"use strict";
const find = (id) => document.getElementById(id);
const MOST = 4; // methods side by side
const WAIT = 350; // milliseconds between polls of a job

function element(name, values = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is fewstep app still running in its terminal?");
  }
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

function say(trouble) {
  find("trouble").hidden = !trouble;
  find("trouble").textContent = trouble ?? "";
}

// ---- the order

let about, picture = {}; // what the order says about the picture

function show(url, told) {
  picture = told;
  find("shown").src = url;
  find("shown").hidden = false;
  find("examples").childNodes.forEach((one, at) => one.setAttribute("aria-pressed", String(at === told.example)));
  say();
}

function choose(file) {
  if (!file) return;
  if (file.size > about.largest) return say(`picture: got ${file.name} of ${Math.round(file.size / 2 ** 20)} MiB; accepted: at most ${about.largest / 2 ** 20} MiB`);
  const reader = new FileReader();
  reader.onload = () => show(reader.result, { picture: reader.result.slice(reader.result.indexOf(",") + 1), name: file.name });
  reader.readAsDataURL(file);
}

function addMethod(number) {
  const select = element("select", { "aria-label": "method" }, ...about.choices.map((one, at) => element("option", { value: at }, one.label)));
  const remove = element("button", { type: "button", class: "drop", "aria-label": "remove this method" }, "\u00d7");
  const steps = element("div", { class: "steps" });
  const made = element("div", { class: "method" }, element("div", { class: "row" }, select, remove), steps);
  const fill = () => {
    const choice = about.choices[select.selectedIndex];
    steps.replaceChildren(...about.stages.map((stage, at) => element("label", {}, `${stage}, steps`,
      element("input", { type: "number", min: 1, step: 1, value: choice.steps[at] }), element("small", {}, choice.made_for[at]))));
  };
  select.selectedIndex = number;
  select.addEventListener("change", fill);
  remove.addEventListener("click", () => {
    made.remove();
    count();
  });
  fill();
  find("methods").append(made);
  count();
}

function count() {
  const methods = find("methods").childElementCount;
  find("methods").querySelectorAll(".drop").forEach((one) => { one.hidden = methods === 1; });
  find("more").hidden = methods >= MOST;
}

// An empty or malformed field stays a text, which the server refuses, saying what it accepts.
const whole = (input) => (/^-?\d+$/.test(input.value) ? Number(input.value) : input.value || null);

function orders() {
  return [...find("methods").children].map((method) => ({
    ...picture, keep: find("keep").checked, seed: whole(find("seed")), choice: method.querySelector("select").selectedIndex,
    steps: [...method.querySelectorAll("input")].map(whole),
  }));
}

// ---- what was made

let turntable = null, panes = [];

// Students differ only in the flows. Models are loaded once, so that time counts for neither the flows nor the total.
const LOADING = "loading models";
const sum = (seconds, counts) => Object.entries(seconds).reduce((all, [stage, passed]) => all + (counts(stage) ? passed : 0), 0);
const inFlows = (seconds) => sum(seconds, (stage) => stage.endsWith(" flow"));
const worked = (seconds) => sum(seconds, (stage) => stage !== LOADING);
const inSeconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;

function pane(order) {
  const canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": about.choices[order.choice].label });
  const said = element("div", { class: "said" });
  const title = `${about.choices[order.choice].label}, ${order.steps.join(" + ")} step${order.steps.every((one) => one === 1) ? " each" : "s"}`;
  const caption = element("figcaption", {}, element("h2", {}, title));
  const made = { canvas, said, caption, flows: 0 };
  made.figure = element("figure", {}, element("div", { class: "stage" }, canvas, said), caption);
  return made;
}

function wait(one, number, state) {
  const text = state.state === "waiting" ? `waiting, ${state.ahead} before it` : state.text || "starting";
  if (one.text === text) return;
  one.text = text;
  const stop = element("button", { type: "button" }, "Cancel");
  stop.addEventListener("click", () => ask(`jobs/${number}`, { method: "DELETE" }).catch((error) => say(error.message)));
  one.said.replaceChildren(element("div", {}, element("div", { class: "working" }, text), stop));
}

async function fill(one, state) {
  one.flows = inFlows(state.seconds);
  const loading = state.seconds[LOADING] ?? 0;
  const counts = Object.entries(state.counts).map(([what, number]) => `${number.toLocaleString("en")} ${what}`).join(", ");
  const rest = `${inSeconds(worked(state.seconds))} in all` + (loading >= 0.05 ? `, and ${inSeconds(loading)} to load models` : "");
  one.length = element("i");
  const rows = Object.entries(state.seconds).map(([stage, passed]) => element("tr", {}, element("td", {}, stage), element("td", {}, inSeconds(passed))));
  one.caption.append(
    element("p", { class: "time" }, inSeconds(one.flows), element("span", {}, " in the flows")), element("div", { class: "length" }, one.length),
    element("p", { class: "facts" }, rest), element("p", { class: "facts" }, counts), ...state.warnings.map((line) => element("p", { class: "warning" }, line)),
    element("a", { class: "download", href: state.file, download: state.file.split("/").pop() }, `Download .glb (${(state.size / 2 ** 20).toFixed(1)} MiB)`),
    element("details", {}, element("summary", {}, "Time by stage, and how it was sampled"), element("table", {}, element("tbody", {}, ...rows)),
      ...state.how.map((line) => element("div", {}, line))));
  const longest = Math.max(...panes.map((other) => other.flows));
  for (const other of panes) if (other.length) other.length.style.width = `${(100 * other.flows) / longest}%`;
  one.said.hidden = true;
  find("turning").hidden = false;
  if (!turntable) return;
  turntable.show(one.canvas, await viewer.load(await (await fetch(state.file)).arrayBuffer()));
}

function end(one, text) {
  one.said.replaceChildren(element("div", { class: "failed" }, text));
}

// Cancel what is not made yet: a new order replaces it, or nobody waits for it any more.
function dropPending() {
  for (const one of panes) if (one.number) fetch(`jobs/${one.number}`, { method: "DELETE", keepalive: true });
}

async function follow(one, number) {
  one.number = number;
  for (;;) {
    const state = await ask(`jobs/${number}`);
    if (state.state === "waiting" || state.state === "running") wait(one, number, state);
    else one.number = null;
    if (state.state === "done") return fill(one, state);
    if (one.number === null) return end(one, state.text || "cancelled");
    await new Promise((done) => setTimeout(done, WAIT));
  }
}

async function generate() {
  say();
  const given = orders();
  const post = (order) => ask("jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order) });
  const first = await post(given[0]); // a refused order leaves the page as it is
  dropPending();
  panes.forEach((one) => turntable?.remove(one.canvas));
  panes = given.map(pane);
  find("empty").hidden = true;
  find("panes").replaceChildren(...panes.map((one) => one.figure));
  find("panes").scrollIntoView({ behavior: "smooth", block: "nearest" }); // in a narrow window they are below the form
  turntable?.reset();
  await Promise.all(panes.map(async (one, at) => {
    try {
      await follow(one, (at ? await post(given[at]) : first).number);
    } catch (error) {
      end(one, error.message);
    }
  }));
}

function spin() {
  if (!find("spin").checked) return;
  turntable?.turn(-0.5, 0);
  requestAnimationFrame(spin);
}

async function start() {
  about = await ask("about");
  find("title").textContent = about.title;
  find("examples").append(...about.examples.map((name, at) => {
    const button = element("button", { type: "button", title: name, "aria-pressed": "false" }, element("img", { src: `examples/${at}`, alt: name }));
    button.addEventListener("click", () => show(`examples/${at}`, { example: at }));
    return button;
  }));
  find("file").addEventListener("change", (event) => choose(event.target.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    find("drop").addEventListener(name, (event) => {
      event.preventDefault();
      find("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") choose(event.dataTransfer.files[0]);
    });
  }
  find("shown").addEventListener("error", () => { find("shown").hidden = true; }); // not a picture: the server says so
  addMethod(0);
  find("more").addEventListener("click", () => addMethod(find("methods").childElementCount % about.choices.length));
  find("another").addEventListener("click", () => { find("seed").value = Math.floor(Math.random() * 2 ** 31); });
  find("spin").addEventListener("change", spin);
  addEventListener("pagehide", dropPending);
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate().catch((error) => say(error.message));
  });
  try {
    turntable = viewer.create();
  } catch (error) {
    say(`The objects cannot be shown in this browser (${error.message}); they can be downloaded.`);
  }
}

start().catch((error) => say(error.message));
