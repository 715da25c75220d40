// Shows Markdown as elements of the page. The text of a model stays text: it is never parsed as HTML, its pictures are
// not fetched, and its links lead only to http or https. Every scan is linear in the length of the text.

const MOST_LEVELS = 8; // the deepest nesting of lists and quotations, and of marks
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^([ \t]*)([-*+•]|\d{1,9}[.)])[ \t]+(\S.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DELIMITERS = /^[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?[ \t]*)?$/;

const shown = new WeakMap(); // maps an element to the source that it shows

/** Shows `source` in the element `into`. Blocks that did not change stay, so that a stream can call it often. */
export function render(into, source) {
  const blocks = split(source.split(/\r\n?|\n/));
  blocks.forEach((block, index) => {
    const old = into.children[index];
    const text = block.lines.join("\n");
    if (old && shown.get(old) === `${block.kind} ${text}`) return;
    if (old && block.kind === "code" && old.matches(".code") && old.dataset.language === block.language) {
      old.querySelector("code").textContent = block.code.join("\n");
      shown.set(old, `${block.kind} ${text}`);
      return;
    }
    const made = build(block, 0);
    shown.set(made, `${block.kind} ${text}`);
    if (old) old.replaceWith(made);
    else into.append(made);
  });
  while (into.children.length > blocks.length) into.lastElementChild.remove();
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Splits lines into blocks. */
function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
      continue;
    }
    const begin = at;
    const block = { kind: kindOf(lines, at) };
    if (block.kind === "code") {
      const [, fence, language] = FENCE.exec(line);
      block.language = language.slice(0, 40);
      for (at += 1; at < lines.length && !closes(lines[at], fence); at += 1);
      block.code = lines.slice(begin + 1, at);
      at += 1; // skips the closing fence, which may not be there yet
    } else if (block.kind === "list") {
      at = endOfList(lines, at);
    } else if (block.kind === "table") {
      for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim(); at += 1);
    } else if (block.kind === "quote") {
      for (at += 1; at < lines.length && lines[at].trim() && QUOTE.test(lines[at]); at += 1);
    } else if (block.kind === "text") {
      for (at += 1; at < lines.length && lines[at].trim() && kindOf(lines, at) === "text"; at += 1);
    } else {
      at += 1;
    }
    block.lines = lines.slice(begin, at);
    blocks.push(block);
  }
  return blocks;
}

function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (QUOTE.test(line)) return "quote";
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].length < 4000 && DELIMITERS.test(lines[at + 1])) {
    return "table";
  }
  return "text";
}

function closes(line, fence) {
  const trimmed = line.trim();
  return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
}

const indentOf = (line) => /^[ \t]*/.exec(line)[0].replaceAll("\t", "    ").length;
const isNumber = (mark) => mark >= "0" && mark < ":";

/** Whether a line begins an item of the list whose first item is `first`. */
function isSibling(line, first) {
  const found = ITEM.exec(line);
  return found !== null && indentOf(line) < indentOf(first[0]) + 2 && isNumber(found[2]) === isNumber(first[2]);
}

function endOfList(lines, begin) {
  const first = ITEM.exec(lines[begin]);
  const inner = indentOf(lines[begin]) + 2;
  let at = begin + 1;
  while (at < lines.length) {
    let next = at;
    while (next < lines.length && !lines[next].trim()) next += 1;
    if (next === lines.length) return at;
    const belongs = isSibling(lines[next], first) || indentOf(lines[next]) >= inner;
    if (!belongs && (next > at || kindOf(lines, next) !== "text")) return at;
    at = next + 1;
  }
  return at;
}

function build(block, level) {
  if (level > MOST_LEVELS) return element("p", "", block.lines.join("\n"));
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading": {
      const [, marks, text] = HEADING.exec(block.lines[0]);
      let end = text.length;
      while (end && "# \t".includes(text[end - 1])) end -= 1;
      return marked(element(`h${Math.min(5, marks.length + 2)}`), text.slice(0, end));
    }
    case "rule":
      return element("hr");
    case "quote": {
      const inner = split(block.lines.map((line) => line.replace(QUOTE, "")));
      return element("blockquote", "", ...inner.map((part) => build(part, level + 1)));
    }
    case "list":
      return list(block.lines, level);
    case "table":
      return table(block.lines);
    default:
      return marked(element("p"), block.lines.map((line) => line.trim()).join("\n"));
  }
}

function code(block) {
  const copy = element("button", "small", "Copy");
  copy.type = "button";
  copy.dataset.action = "copy-code";
  copy.setAttribute("aria-label", "Copy the code");
  const made = element(
    "div",
    "code",
    element("div", "code-head", element("span", "", block.language || "code"), copy),
    element("pre", "", element("code", "", block.code.join("\n"))),
  );
  made.dataset.language = block.language;
  made.querySelector("pre").tabIndex = 0; // it scrolls sideways
  return made;
}

function list(lines, level) {
  const first = ITEM.exec(lines[0]);
  const made = element(isNumber(first[2]) ? "ol" : "ul");
  if (isNumber(first[2])) made.start = parseInt(first[2], 10);
  let item = null;
  const items = [];
  for (const line of lines) {
    if (isSibling(line, first)) {
      const [, indent, mark, text] = ITEM.exec(line);
      item = { lines: [text], inner: indentOf(indent) + mark.length + 1 };
      items.push(item);
    } else {
      item.lines.push(line.slice(Math.min(item.inner, /^[ \t]*/.exec(line)[0].length)));
    }
  }
  for (const { lines: inside } of items) {
    const row = element("li");
    for (const part of split(inside)) {
      if (part.kind === "text" && !row.hasChildNodes()) {
        marked(row, part.lines.map((line) => line.trim()).join("\n"));
      } else {
        row.append(build(part, level + 1));
      }
    }
    made.append(row);
  }
  return made;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").slice(0, 50);
  const row = (line, name) => element("tr", "", ...cells(line).map((cell) => marked(element(name), cell.trim())));
  const made = element(
    "table",
    "",
    element("thead", "", row(lines[0], "th")),
    element("tbody", "", ...lines.slice(2).map((line) => row(line, "td"))),
  );
  const box = element("div", "table", made);
  box.tabIndex = 0;
  return box;
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "s"],
  ["*", "em"],
  ["_", "em"],
];
const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
const ADDRESS = /https?:\/\/[^\s<>"'`*|\\]+/y;

/** Appends `text` to `into`, with bold, code, links and so on as elements; returns `into`. */
function marked(into, text, level = 0) {
  const unclosed = new Set(); // marks that have no end in the rest of the text
  let plain = "";
  const flush = () => {
    if (plain) into.append(plain);
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const character = text[at];
    if (character === "\n") {
      flush();
      into.append(element("br"));
      at += 1;
      continue;
    }
    if (character === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const found = level < MOST_LEVELS && (span(text, at, unclosed) || link(text, at, unclosed) || mark(text, at, unclosed));
    if (found) {
      flush();
      if (found.inner === undefined) found.made.textContent = found.text;
      else marked(found.made, found.inner, level + 1);
      into.append(found.made);
      at = found.end;
    } else {
      // A run of marks without a meaning is skipped as a whole.
      const length = "`*_~".includes(character) ? runAt(text, at) : 1;
      plain += text.slice(at, at + length);
      at += length;
    }
  }
  flush();
  return into;
}

function runAt(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function span(text, at, unclosed) {
  if (text[at] !== "`") return null;
  const length = runAt(text, at);
  const ticks = "`".repeat(length);
  if (unclosed.has(ticks)) return null;
  for (let end = text.indexOf(ticks, at + length); end >= 0; ) {
    const run = runAt(text, end);
    if (run === length) {
      const inner = text.slice(at + length, end).replaceAll("\n", " ");
      const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
      return { made: element("code"), text: padded ? inner.slice(1, -1) : inner, end: end + length };
    }
    end = text.indexOf(ticks, end + run);
  }
  unclosed.add(ticks);
  return null;
}

function link(text, at, unclosed) {
  if (text[at] === "h") {
    ADDRESS.lastIndex = at;
    const found = isWord(text[at - 1]) ? null : ADDRESS.exec(text);
    let address = found?.[0] ?? "";
    while (address && ".,;:!?)]}".includes(address.at(-1))) address = address.slice(0, -1);
    const made = address && anchor(address);
    return made ? { made, text: address, end: at + address.length } : null;
  }
  if (text[at] !== "[" || unclosed.has("](")) return null;
  const middle = text.indexOf("](", at);
  if (middle < 0) unclosed.add("](");
  if (middle < 0 || middle > at + 1000) return null;
  const end = text.slice(middle, middle + 2000).indexOf(")") + middle;
  const made = end > middle ? anchor(text.slice(middle + 2, end).trim()) : null;
  return made ? { made, inner: text.slice(at + 1, middle), end: end + 1 } : null;
}

function anchor(address) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  const made = element("a");
  made.href = address;
  made.title = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

function mark(text, at, unclosed) {
  const found = MARKS.find(([sign]) => text.startsWith(sign, at));
  if (!found || unclosed.has(found[0])) return null;
  const [sign, name] = found;
  const begin = at + sign.length;
  if (/\s/.test(text[begin] ?? " ") || (sign[0] === "_" && isWord(text[at - 1]))) return null;
  for (let end = begin; ; ) {
    end = text.indexOf(sign, end);
    if (end < 0) {
      unclosed.add(sign);
      return null;
    }
    const run = runAt(text, end);
    const fits = sign.length === 1 ? run !== 2 : run >= 2;
    const close = end + (sign.length === 2 && run > 2 && text[begin] === sign[0] ? run - 2 : 0);
    const isEnd = !/\s/.test(text[end - 1]) && !(sign[0] === "_" && isWord(text[close + sign.length]));
    if (fits && isEnd && close > begin) {
      return { made: element(name), inner: text.slice(begin, close), end: close + sign.length };
    }
    end += run;
  }
}
