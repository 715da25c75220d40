// The conversation: its turns, and how they are shown.

import { preview } from "/page/attach.js";
import { render } from "/page/markdown.js";

const KEPT = "gemlet.turns";

export const log = document.getElementById("log");
export let turns = []; // {role, text, media, thought, figures, problem, node}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text) made.textContent = text;
  return made;
}

function button(action, text, label) {
  const made = element("button", "small", text);
  made.type = "button";
  made.dataset.action = action;
  if (label) made.setAttribute("aria-label", label);
  return made;
}

/** Adds a turn and shows it. */
export function add(turn, how) {
  turns.push(turn);
  turn.node = element("article", `turn ${turn.role}`);
  turn.node.setAttribute("aria-label", turn.role === "user" ? "You" : "Reply");
  log.append(turn.node);
  if (turn.role === "user") {
    const below = element("div", "below");
    below.append(button("copy", "Copy", "Copy your message"), button("edit", "Edit", "Edit your message"));
    if (turn.media?.length) {
      const sent = element("div", "sent");
      sent.append(...turn.media.map(preview));
      turn.node.append(sent);
    }
    if (turn.text) turn.node.append(element("div", "text", turn.text));
    turn.node.append(below);
  } else {
    turn.parts = { text: element("div", "text"), below: element("div", "below") };
    turn.node.append(turn.parts.text, turn.parts.below);
    show(turn, how);
  }
  return turn;
}

/** Removes the turn at `index` and all turns after it. */
export function cut(index) {
  for (const turn of turns.splice(index)) turn.node.remove();
}

export const turnOf = (node) => turns.findIndex((turn) => turn.node === node.closest(".turn"));

/** Shows a reply as it is now. */
export function show(turn, { isWriting = false } = {}) {
  const { parts, node } = turn;
  node.classList.toggle("writing", isWriting && turn.text !== "");
  parts.text.classList.toggle("waiting", isWriting && turn.text === "");
  if (turn.thought) {
    if (!parts.thought) {
      parts.thought = element("details", "thought");
      parts.thought.append(element("summary", ""), element("div", ""));
      node.prepend(parts.thought);
    }
    const [summary, inside] = parts.thought.children;
    const thinks = isWriting && turn.text === "";
    const label = thinks ? "Thinking…" : `Thought${turn.thinkingSeconds ? ` for ${seconds(turn.thinkingSeconds)}` : ""}`;
    if (summary.textContent !== label) summary.textContent = label;
    inside.textContent = turn.thought;
  }
  render(parts.text, turn.text);
  if (turn.problem && !parts.problem) {
    parts.problem = element("p", "problem");
    parts.problem.setAttribute("role", "alert");
    parts.text.after(parts.problem);
  }
  if (parts.problem) parts.problem.textContent = turn.problem;
  if (isWriting) {
    parts.figures ??= parts.below.appendChild(element("span", "figures"));
    parts.figures.textContent = turn.figures ?? "";
    return;
  }
  parts.figures = null;
  const found = [];
  if (turn.figures) found.push(element("span", "figures", turn.figures));
  if (turn.text) found.push(button("copy", "Copy", "Copy the reply"));
  found.push(button("again", turn.problem ? "Try again" : "Regenerate"));
  parts.below.replaceChildren(...found);
}

export const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);

/** Keeps the conversation in this tab, so that it survives a reload. */
export function keep() {
  try {
    const plain = turns.map(({ role, text, media, thought, thinkingSeconds, figures, problem }) => ({
      role,
      text,
      media,
      thought,
      thinkingSeconds,
      figures,
      problem,
    }));
    sessionStorage.setItem(KEPT, JSON.stringify(plain));
  } catch {
    sessionStorage.removeItem(KEPT); // the conversation is too long to be kept
  }
}

/** Shows the conversation that was kept. */
export function restore() {
  try {
    for (const turn of JSON.parse(sessionStorage.getItem(KEPT) ?? "[]")) add(turn);
  } catch {
    cut(0);
  }
}
