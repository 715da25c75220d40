// Asks the server for its state and for replies. The key stays in this tab.

const KEY = "gemlet.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The server answered with an error. */
export class Refused extends Error {
  constructor(status, message, after) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

async function ask(path, more = {}) {
  const headers = { ...more.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const answer = await fetch(path, { ...more, headers, cache: "no-store", credentials: "omit" });
  if (answer.ok) return answer;
  let message = `The server answered with ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // It may be a proxy's page, which does not help a reader.
  }
  throw new Refused(answer.status, message, answer.headers.get("Retry-After"));
}

/** The server's state. */
export async function status() {
  return (await ask("/status", { signal: AbortSignal.timeout(10_000) })).json();
}

/** The deltas of a reply, as `{text, thought, reason, usage}`. A missing value is "" or null. */
export async function* reply(body, signal) {
  const answer = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let ended = false;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const piece = JSON.parse(data);
    if (piece.error) throw new Refused(piece.error.code ?? 500, piece.error.message);
    const [choice] = piece.choices;
    yield {
      text: choice?.delta.content ?? "",
      thought: choice?.delta.reasoning ?? "",
      reason: choice?.finish_reason ?? null,
      usage: piece.usage ?? null,
    };
  }
  if (!ended) throw new Error("The connection ended in the middle of the reply.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data: "));
        if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
