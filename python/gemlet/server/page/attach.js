// Images, videos and sounds that go with a message: chosen, dropped, pasted or recorded.

const SENT = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // these are sent as they are; others are drawn again
const MOST_BYTES = 3_000_000;
const MOST_VIDEO_BYTES = 20_000_000; // base64 adds a third, and the server takes 32 MB
const LONGEST_SIDE = 2048;
const RATE = 16000;
const LONGEST_SOUND = 30; // seconds that a model hears at a time
const SHOWN = 96; // pixels of a preview

const at = (id) => document.getElementById(id);
const [list, files, attach, record, problem] = ["attachments", "files", "attach", "record", "attach-error"].map(at);

let media = []; // {kind: "image", "video" or "sound", name, url, seconds}
let can = { image: false, sound: false };
let recording = null;
let changed = () => {};

// --- From a file to what is sent -------------------------------------------------------------------------

function asUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function image(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} cannot be read as an image.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MOST_BYTES && SENT.includes(file.type)) return { url: await asUrl(file) };
  const canvas = drawn(bitmap, scale);
  return { url: canvas.toDataURL("image/jpeg", 0.92) };
}

function drawn(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // the background of transparent images
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Turns a sound into mono WAV at the rate that models hear, so the server need not know the browser's format. */
async function sound(file) {
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} cannot be read as a sound.`);
  }
  if (decoded.duration > LONGEST_SOUND + 1) {
    throw new Error(`${file.name} has ${Math.round(decoded.duration)} seconds; a model hears at most ${LONGEST_SOUND}.`);
  }
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
  const view = new DataView(new ArrayBuffer(44 + 2 * decoded.length));
  const text = (place, value) => [...value].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, RATE, 4], [28, 2 * RATE, 4], [32, 2, 2], [34, 16, 2]].forEach(
    ([place, value, bytes]) => (bytes === 4 ? view.setUint32(place, value, true) : view.setUint16(place, value, true)),
  );
  text(36, "data");
  view.setUint32(40, 2 * decoded.length, true);
  for (let i = 0; i < decoded.length; i += 1) {
    const level = channels.reduce((sum, one) => sum + one[i], 0) / channels.length;
    view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, level))), true);
  }
  return { url: await asUrl(new Blob([view], { type: "audio/wav" })), seconds: decoded.duration };
}

/** A video is sent as it is, and the server reads it. */
async function video(file) {
  if (file.size > MOST_VIDEO_BYTES) {
    throw new Error(`${file.name} has ${Math.ceil(file.size / 1e6)} MB; a video may have ${MOST_VIDEO_BYTES / 1e6}.`);
  }
  return { url: await asUrl(file) };
}

const READ = { image, video, sound };
const KINDS = { "image/": "image", "video/": "video", "audio/": "sound" };
const kindOf = (file) => KINDS[file.type.slice(0, 6)] ?? "";

async function add(given) {
  problem.textContent = "";
  for (const file of given) {
    const kind = kindOf(file);
    try {
      if (!can[kind]) {
        throw new Error(`${file.name || "This file"}: this model takes ${can.image ? "images and videos" : "no images"} and ${can.sound ? "sounds" : "no sounds"}.`);
      }
      media.push({ kind, name: file.name || kind, ...(await READ[kind](file)) });
    } catch (error) {
      problem.textContent = error.message;
    }
  }
  show();
}

// --- What is shown ---------------------------------------------------------------------------------------

/** A small drawing of an image, or the name of a video, or the length of a sound. The page draws images, so its
 * security policy need not allow it to load any. */
export function preview({ kind, name, url, seconds }) {
  const made = document.createElement("span");
  made.className = `preview ${kind}`;
  if (kind !== "image") {
    made.textContent = kind === "sound" ? `Sound, ${seconds.toFixed(1)} s` : `Video, ${name}`;
    return made;
  }
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  createImageBitmap(new Blob([bytes])).then((bitmap) => {
    const canvas = drawn(bitmap, Math.min(1, (2 * SHOWN) / Math.max(bitmap.width, bitmap.height)));
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    made.append(canvas);
  });
  return made;
}

function show() {
  list.replaceChildren(
    ...media.map((one, index) => {
      const item = document.createElement("li");
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "small";
      remove.textContent = "Remove";
      remove.setAttribute("aria-label", `Remove ${one.name}`);
      remove.addEventListener("click", () => {
        media.splice(index, 1);
        show();
        at("question").focus();
      });
      item.append(preview(one), remove);
      return item;
    }),
  );
  list.hidden = media.length === 0;
  changed();
}

// --- What the rest of the page asks ----------------------------------------------------------------------

export const isEmpty = () => media.length === 0;

/** Returns the attachments, and removes them. */
export function take() {
  const taken = media;
  put([]);
  return taken;
}

export function put(given) {
  media = [...given];
  problem.textContent = "";
  show();
}

/** Sets what the model can see and hear. `onChange` is called when the attachments change. */
export function allow(abilities, onChange) {
  can = abilities;
  changed = onChange;
  attach.hidden = !can.image && !can.sound;
  files.accept = [...(can.image ? ["image/*", "video/*"] : []), ...(can.sound ? ["audio/*"] : [])].join();
  record.hidden = !can.sound || !navigator.mediaDevices; // browsers give the microphone only to secure pages
}

/** The content of a message: a text, or a list of parts. */
export function contentOf(text, attached = []) {
  if (!attached.length) return text;
  const parts = attached.map(({ kind, url }) =>
    kind !== "sound"
      ? { type: `${kind}_url`, [`${kind}_url`]: { url } }
      : { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format: "wav" } },
  );
  return text ? [...parts, { type: "text", text }] : parts;
}

// --- What a person does ----------------------------------------------------------------------------------

attach.addEventListener("click", () => files.click());
files.addEventListener("change", () => {
  add([...files.files]);
  files.value = "";
});
at("question").addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  add([...event.clipboardData.files]);
});
// Without this, the browser would show a dropped file instead of the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.dataTransfer?.files.length && !document.querySelector("dialog[open]")) add([...event.dataTransfer.files]);
});

async function begin() {
  problem.textContent = "";
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    problem.textContent = "The browser does not allow the microphone.";
    return;
  }
  const pieces = [];
  recording = new MediaRecorder(stream);
  recording.addEventListener("dataavailable", (event) => pieces.push(event.data));
  recording.addEventListener("stop", () => {
    for (const track of stream.getTracks()) track.stop();
    recording = null;
    setRecording(false);
    const type = pieces[0]?.type || "audio/webm";
    add([new File(pieces, "Recording", { type: type.replace("video/", "audio/") })]);
  });
  recording.start();
  setRecording(true);
  const own = recording;
  setTimeout(() => own === recording && own.stop(), LONGEST_SOUND * 1000);
}

function setRecording(is) {
  record.setAttribute("aria-pressed", String(is));
  record.title = is ? "Stop recording" : "Record a sound";
  record.setAttribute("aria-label", record.title);
}

record.addEventListener("click", () => (recording ? recording.stop() : begin()));
