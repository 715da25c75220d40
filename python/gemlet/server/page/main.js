// The page: what happens when a person writes, clicks and presses keys.

import { allow, contentOf, isEmpty, put, take as takeMedia } from "/page/attach.js";
import { add, cut, keep, log, restore, seconds, show, turnOf, turns } from "/page/chat.js";
import { Refused, key, reply, status } from "/page/server.js";

const at = (id) => document.getElementById(id);
const [question, send, stop, scroller, model, options, said] = [
  ..."question send stop scroller model options said".split(" ").map(at),
];
const OPTIONS = "gemlet.options";
const LOOK = "gemlet.look";

let writing = null; // the AbortController of the reply that is being written
let models = [];
let last = null; // the previous state of the server, and its time
let follows = true; // whether the end of the conversation stays in sight

// --- Writing ---------------------------------------------------------------------------------------------

function sampling() {
  const found = {};
  for (const field of options.querySelectorAll("input[type=number]")) {
    if (field.value !== "" && field.validity.valid) found[field.name] = field.valueAsNumber;
  }
  return found;
}

function request() {
  const messages = [];
  for (const { role, text, media } of turns) {
    const before = messages.at(-1);
    if (role === before?.role) {
      before.text += `\n\n${text}`; // the message before got no reply
      before.media = [...(before.media ?? []), ...(media ?? [])];
    } else if (text || media?.length) messages.push({ role, text, media });
  }
  const content = messages.map(({ role, text, media }) => ({ role, content: contentOf(text, media) }));
  const system = options.elements.system.value.trim();
  if (system) content.unshift({ role: "system", content: system });
  const chosen = models.find((one) => one.id === model.value);
  const thinks = chosen?.thinks ? { reasoning_effort: options.elements.thinks.checked ? "medium" : "none" } : {};
  const hears = hearsVideos(chosen) && options.elements.hears_videos.checked ? { load_audio_from_video: true } : {};
  return { model: model.value, messages: content, ...sampling(), ...thinks, ...hears };
}

/** Has the model answer the conversation. */
async function answer() {
  const body = request();
  const turn = add({ role: "assistant", text: "", thought: "" }, { isWriting: true });
  const clock = { begin: performance.now(), first: 0, last: 0, pieces: 0 };
  let [usage, reason, frame] = [null, null, 0];
  writing = new AbortController();
  refresh();
  log.setAttribute("aria-busy", "true");
  said.textContent = "The model is writing";
  const draw = () => {
    frame = 0;
    turn.figures = figures(clock, usage);
    show(turn, { isWriting: true });
    follow();
  };
  draw();
  try {
    for await (const piece of reply(body, writing.signal)) {
      reason = piece.reason ?? reason;
      usage = piece.usage ?? usage;
      if (piece.text || piece.thought) {
        clock.last = performance.now();
        clock.first ||= clock.last;
        clock.pieces += 1;
        turn.thought += piece.thought;
        if (piece.text && turn.thought && !turn.text) turn.thinkingSeconds = (clock.last - clock.first) / 1000;
        turn.text += piece.text;
        frame ||= requestAnimationFrame(draw);
      }
    }
    if (reason === "content_filter") turn.problem = "The server's content filter ended this reply.";
  } catch (error) {
    if (writing.signal.aborted) reason = "stopped";
    else {
      turn.problem = explain(error);
      if (error instanceof Refused && error.status === 401) askForKey("The server does not take this key.");
    }
  }
  cancelAnimationFrame(frame);
  writing = null;
  turn.figures = clock.pieces ? figures(clock, usage, reason) : reason === "stopped" ? "stopped" : "";
  show(turn);
  log.setAttribute("aria-busy", "false");
  said.textContent = turn.problem ? "" : `The reply is complete: ${turn.figures}`;
  keep();
  refresh();
  follow();
  look();
}

function figures({ begin, first, last, pieces }, usage, reason) {
  if (!pieces) return "";
  const count = usage?.completion_tokens ?? 0; // not known if the reply was stopped, as a piece may have many tokens
  const parts = usage ? [`${count} token${count === 1 ? "" : "s"}`] : [];
  if (last > first + 50 && count > 1) parts.push(`${(((count - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  parts.push(`first after ${seconds((first - begin) / 1000)}`);
  if (reason === "length") parts.push("cut at the limit");
  if (reason === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function explain(error) {
  if (!(error instanceof Refused)) {
    return error.name === "TypeError" ? "The server cannot be reached." : error.message;
  }
  const wait = error.after ? ` (after ${error.after} s)` : "";
  return `${error.message}${wait}`;
}

function submit() {
  const text = question.value.trim();
  if ((!text && isEmpty()) || writing || send.disabled) return;
  add({ role: "user", text, media: takeMedia() });
  question.value = "";
  follows = true;
  answer();
}

function again(index) {
  if (writing) return;
  cut(index);
  question.focus();
  answer();
}

function edit(index) {
  if (writing) return;
  question.value = turns[index].text;
  put(turns[index].media ?? []);
  cut(index);
  keep();
  refresh();
  question.focus();
}

// --- What is on the page ---------------------------------------------------------------------------------

function refresh() {
  const canChat = models.some((one) => one.chats);
  send.disabled = (!question.value.trim() && isEmpty()) || !canChat;
  send.hidden = writing !== null;
  stop.hidden = writing === null;
  at("welcome").hidden = turns.length > 0;
  at("new").disabled = turns.length === 0;
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  log.classList.toggle("busy", writing !== null);
}

const distance = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;

function follow() {
  if (follows) scroller.scrollTop = scroller.scrollHeight;
  at("to-end").hidden = distance() < 80;
}

async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    node.textContent = "Copied";
  } catch {
    node.textContent = "Not allowed";
  }
  said.textContent = node.textContent;
  setTimeout(() => (node.textContent = "Copy"), 1500);
}

log.addEventListener("click", (event) => {
  const node = event.target.closest("[data-action]");
  if (!node) return;
  const index = turnOf(node);
  if (node.dataset.action === "copy") copy(turns[index].text, node);
  else if (node.dataset.action === "copy-code") copy(node.closest(".code").querySelector("code").textContent, node);
  else if (node.dataset.action === "again") again(index);
  else if (node.dataset.action === "edit") edit(index);
});

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
question.addEventListener("input", refresh);
question.addEventListener("keydown", (event) => {
  const writesLines = matchMedia("(pointer: coarse)").matches; // an on-screen keyboard has no Shift + Enter
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !writesLines) {
    event.preventDefault();
    submit();
  }
});
stop.addEventListener("click", () => {
  writing?.abort();
  question.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing && !document.querySelector("dialog[open]")) stop.click();
});
at("new").addEventListener("click", () => {
  writing?.abort();
  cut(0);
  keep();
  refresh();
  question.focus();
});
scroller.addEventListener("scroll", () => {
  follows = distance() < 80;
  at("to-end").hidden = follows;
});
at("to-end").addEventListener("click", () => {
  follows = true;
  follow();
  question.focus();
});

// --- Settings --------------------------------------------------------------------------------------------

function setLook(look) {
  if (look) document.documentElement.dataset.look = look;
  else delete document.documentElement.dataset.look;
}

function keepOptions() {
  const { look, ...kept } = Object.fromEntries(new FormData(options));
  sessionStorage.setItem(OPTIONS, JSON.stringify({ ...kept, model: model.value }));
  localStorage.setItem(LOOK, look);
  setLook(look);
}

function restoreOptions() {
  const look = localStorage.getItem(LOOK) ?? "";
  options.elements.look.value = look;
  setLook(look);
  const kept = JSON.parse(sessionStorage.getItem(OPTIONS) ?? "{}");
  for (const [name, value] of Object.entries(kept)) {
    const field = options.elements.namedItem(name);
    if (field?.type === "checkbox") field.checked = value === "on";
    else if (field) field.value = value;
  }
  model.dataset.wanted = kept.model ?? "";
}

options.addEventListener("input", keepOptions);
options.addEventListener("submit", (event) => event.preventDefault());
model.addEventListener("change", () => {
  keepOptions();
  showAbilities();
});
at("open-settings").addEventListener("click", () => {
  at("settings").showModal();
  look();
});
at("close-settings").addEventListener("click", () => at("settings").close());
at("settings").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close(); // the click was outside the drawer
});

// --- Keys ------------------------------------------------------------------------------------------------

function askForKey(problem = "") {
  at("settings").close();
  at("key-error").textContent = problem;
  if (!at("keys").open) at("keys").showModal();
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  try {
    take(await status());
    at("key").value = "";
    at("keys").close();
    question.focus();
  } catch (error) {
    key.forget();
    at("key-error").textContent = error.status === 401 ? "The server does not take this key." : explain(error);
  }
});
at("keys").addEventListener("cancel", (event) => event.preventDefault()); // nothing works without a key
at("forget").addEventListener("click", () => {
  key.forget();
  look();
});

// --- The server ------------------------------------------------------------------------------------------

async function look() {
  try {
    take(await status());
  } catch (error) {
    const refused = error instanceof Refused;
    setState("lost", refused ? (error.status === 401 ? "needs a key" : `error ${error.status}`) : "not reachable");
    if (refused && error.status === 401 && !at("keys").open) {
      askForKey(key.get() ? "The server does not take this key any more." : "");
      key.forget();
    }
  }
}

function setState(state, text) {
  at("state").dataset.state = state;
  if (at("state-text").textContent !== text) at("state-text").textContent = text;
}

function take(state) {
  const now = performance.now();
  models = state.models;
  const { running } = state.requests;
  setState(state.ready ? "ready" : "waiting", !state.ready ? "loading" : running ? `${running} running` : "ready");
  showModels(models.filter((one) => one.chats).map((one) => one.id));
  at("key-section").hidden = !key.get();
  if (at("settings").open) showServer(state, now);
  last = { state, now };
  showAbilities();
  refresh();
}

function showModels(names) {
  const shown = [...model.options].map((option) => option.value);
  if (names.join("\n") === shown.join("\n")) return;
  const wanted = model.dataset.wanted || model.value;
  model.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
  model.disabled = names.length === 0;
  if (!names.length) model.append(new Option("no chat model", ""));
}

const hearsVideos = (chosen) => Boolean(chosen?.sees && chosen?.hears);

function showAbilities() {
  const chosen = models.find((one) => one.id === model.value);
  at("thinks").hidden = !chosen?.thinks;
  at("hears-videos").hidden = !hearsVideos(chosen);
  allow({ image: chosen?.sees, video: chosen?.sees, sound: chosen?.hears }, refresh);
}

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`);
const span = (value) =>
  value < 60 ? `${Math.round(value)} s` : value < 3600 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;

function facts(into, rows) {
  into.replaceChildren(
    ...rows.flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }),
  );
  return into;
}

function showServer(state, now) {
  facts(at("server"), [
    ["Version", state.version],
    ["Running for", span(state.uptime_seconds)],
    ["Requests", `${state.requests.running} of ${state.requests.most}`],
    ["Memory of the process", size(state.memory_bytes)],
  ]);
  at("models").replaceChildren(...state.models.map((one) => modelBox(one, now)));
}

function modelBox(one, now) {
  const box = document.createElement("div");
  box.className = "one-model";
  const title = document.createElement("h4");
  title.textContent = one.id;
  const rows = [["Kind", one.parent ? `adapter of ${one.parent}` : `${one.family}, ${one.weights}`]];
  rows.push(["Context", `${one.context_length.toLocaleString("en")} tokens`]);
  if (one.requests) {
    rows.push(["Texts", `${one.requests.running} advance, ${one.requests.waiting} wait`]);
    rows.push(["Weights", size(one.memory.weights + one.memory.embedding + one.memory.adapters)]);
    rows.push(["Texts in memory", size(one.memory.kv_cache)]);
    rows.push(["Kept prefixes", size(one.memory.prefix_cache)]);
  }
  if (one.engine) {
    const before = last?.state.models.find((old) => old.id === one.id)?.engine;
    const written = before ? one.engine.generated_tokens - before.generated_tokens : 0;
    if (before) rows.push(["Speed", `${((written * 1000) / (now - last.now)).toFixed(1)} tokens/s`]);
    rows.push(["Tokens written", one.engine.generated_tokens.toLocaleString("en")]);
  }
  const list = document.createElement("dl");
  list.className = "facts";
  box.append(title, facts(list, rows));
  return box;
}

// It asks seldom while the figures are hidden, and never while the tab is hidden.
let waited = 0;
setInterval(() => {
  waited += 2;
  const isLoading = at("state").dataset.state !== "ready";
  if (document.visibilityState === "hidden" || at("keys").open) return;
  if (at("settings").open || isLoading || writing || waited >= 30) {
    waited = 0;
    look();
  }
}, 2000);

restoreOptions();
restore();
refresh();
follow();
look();
