// The page at /: a photo, what a person points at on it, and the server's last answer.

import { call, tokenDialog } from "./api.js";
import { Photo } from "./photo.js";
import { cocoDataset, maskPicture, save } from "./result.js";
import { Stage } from "./stage.js";

const NOTHING = { foreground: [], background: [], box: null, mask: null };
const SLOW = 250; // ms until waiting is shown

const part = (id) => document.getElementById(id);
const checked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const number = new Intl.NumberFormat("en");

const askToken = tokenDialog(part("login"), part("login-form"), part("token"), part("login-cancel"));

let photo = null;
let past = [];
let present = NOTHING;
let future = [];
let asking = null; // AbortController of the question under way: only the last one is answered
let answer = null; // {segmenter, proposals}
let answered = NOTHING; // the prompt that it answers
let chosen = 0; // which of its proposals is drawn

const stage = new Stage({
  kind: () => checked("mode"),
  onPoint: (kind, point) => pointAt({ ...present, [kind]: [...present[kind], point] }),
  onBox: (box) => pointAt({ ...present, box }),
  onView: (scale) => {
    part("zoom").textContent = `${Math.round(scale * 100)} %`;
  },
});

// ---- the prompt and its history

function pointAt(prompt) {
  past.push(present);
  future = [];
  setPrompt(prompt);
}

function undo() {
  if (!past.length) return;
  future.push(present);
  setPrompt(past.pop());
}

function redo() {
  if (!future.length) return;
  past.push(present);
  setPrompt(future.pop());
}

function clear() {
  if (present !== NOTHING) pointAt(NOTHING);
}

/** Answer from now on with what becomes of `mask`, {size, counts} as /v1/proposals takes it. */
function refine({ size, counts }) {
  pointAt({ ...NOTHING, mask: { size, counts } });
}

function setPrompt(prompt) {
  present = prompt;
  stage.setPrompt(prompt);
  part("undo").disabled = !past.length;
  part("clear").disabled = prompt === NOTHING;
  propose();
}

// ---- asking the server

function say(text, retry = null) {
  part("message").hidden = !text;
  part("message-text").textContent = text;
  part("again").hidden = !retry;
  part("again").onclick = retry;
}

function sender(signal) {
  const onWait = (seconds) => say(`The server is busy. Trying again in ${number.format(seconds)} s …`);
  return (path, body) => call(path, { body, signal, askToken, onWait });
}

function segmenter() {
  return part("segmenter").value || null; // null until they are listed: the server's default
}

/** Let the server encode the photo before the first click. */
async function prepare() {
  const of = photo;
  try {
    if (of.known) await of.ask(sender(), "/v1/images", { segmenter: segmenter() });
    else await of.digest(sender(), segmenter());
  } catch (error) {
    if (of === photo && present === NOTHING) say(error.message, prepareAgain);
  }
}

function prepareAgain() {
  say("");
  if (present === NOTHING) prepare();
  else propose();
}

async function propose() {
  asking?.abort();
  const turn = new AbortController();
  asking = turn;
  say("");
  if (!present.foreground.length && !present.box && !present.mask) {
    busy(false);
    showAnswer(null);
    if (present.background.length) say("Now click on the object: background points alone do not say where it is.");
    return;
  }
  const started = performance.now();
  const slow = setTimeout(() => busy(true), SLOW);
  try {
    const body = {
      prompt: present,
      segmenter: segmenter(),
      want: ["rle", "polygons"],
      min_iou: Number(checked("quality")),
      controls: controls(),
    };
    const given = await photo.ask(sender(turn.signal), "/v1/proposals", body);
    if (turn === asking) showAnswer(given, performance.now() - started);
  } catch (error) {
    if (turn !== asking) return;
    showAnswer(null);
    say(error.message, propose);
  } finally {
    clearTimeout(slow);
    if (turn === asking) busy(false);
  }
}

/** What the person asks of any mask: an object of `controls` in /v1/proposals. */
function controls() {
  return {
    smooth: Number(part("smooth").value),
    fill_holes: part("fill-holes").checked ? photo.width * photo.height : 0,
    max_parts: part("one-part").checked ? 1 : null,
    second_look: part("second-look").checked,
  };
}

function busy(waiting) {
  part("stage").setAttribute("aria-busy", String(waiting));
}

// ---- the answer

function showAnswer(given, milliseconds) {
  // Another outline of the same prompt: the person's choice among the proposals still stands.
  chosen = given && answer && present === answered ? Math.min(chosen, given.proposals.length - 1) : 0;
  answer = given;
  answered = present;
  part("figure-time").textContent = given ? `${number.format(Math.round(milliseconds))} ms` : "–";
  const several = given !== null && given.proposals.length > 1;
  part("candidates").hidden = !several;
  part("candidate-list").replaceChildren(...(several ? given.proposals.map(candidate) : []));
  showProposal();
  if (!given) return;
  say(proposal().area ? "" : "Nothing was found there. Add a point, or drag a box around the object.");
}

function proposal() {
  return answer?.proposals[chosen] ?? null;
}

function candidate({ score }, index) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "candidate", value: index });
  input.checked = index === chosen;
  input.addEventListener("change", () => choose(index));
  const text = document.createElement("span");
  text.textContent = `${index + 1} · ${score.toFixed(2)}`;
  label.append(input, text);
  return label;
}

function choose(index) {
  const inputs = part("candidate-list").querySelectorAll("input");
  if (!inputs[index]) return;
  inputs[index].checked = true;
  chosen = index;
  showProposal();
}

function showProposal() {
  const shown = proposal();
  stage.setProposal(shown);
  part("figure-points").textContent = shown ? number.format(shown.points) : "–";
  part("figure-iou").textContent = shown?.area ? shown.iou.toFixed(4) : "–";
  part("figure-area").textContent = shown ? `${number.format(shown.area)} px` : "–";
  part("figure-score").textContent = shown ? shown.score.toFixed(2) : "–";
  for (const id of ["copy", "save-json", "save-mask", "refine"]) part(id).disabled = !shown?.area;
  part("said").textContent = shown
    ? `Outline of ${shown.points} points, ${shown.area} pixels, score ${shown.score.toFixed(2)}.`
    : "";
}

// ---- taking it away

function json() {
  return `${JSON.stringify(cocoDataset(photo, proposal(), answer.segmenter), null, 1)}\n`;
}

function fileName(ending) {
  return `${photo.name.replace(/\.[^.]*$/, "")}${ending}`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(json());
    part("copy").textContent = "Copied";
    setTimeout(() => {
      part("copy").textContent = "Copy JSON";
    }, 1500);
  } catch {
    say("The browser does not let this page copy. Use “Save JSON”.");
  }
}

// ---- masks and photos in

async function openMask(file) {
  try {
    const mask = JSON.parse(await file.text()).annotations[0].segmentation;
    if (typeof mask.counts !== "string") throw new TypeError("polygons");
    refine(mask);
  } catch {
    say("This is no COCO file with a mask as compressed run lengths, such as “Save JSON” writes.");
  }
}

async function open(file) {
  let read;
  try {
    read = await Photo.read(file);
  } catch (error) {
    refuse(error.message);
    return;
  }
  photo?.close();
  photo = read;
  past = [];
  future = [];
  document.body.dataset.photo = "shown";
  part("figure-size").textContent = `${photo.width} × ${photo.height}`;
  stage.show(photo.url, photo.width, photo.height);
  setPrompt(NOTHING);
  part("stage").focus({ preventScroll: true });
  prepare();
}

/** Say why there is no new photo, where the person is looking. */
function refuse(sentence) {
  part("refusal").textContent = photo ? "" : sentence;
  if (photo) say(sentence);
}

function openFirst(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) open(file);
}

async function openSample(name) {
  try {
    const response = await fetch(`/static/samples/${name}`);
    if (!response.ok) throw new TypeError(response.statusText);
    open(new File([await response.blob()], name, { type: "image/jpeg" }));
  } catch {
    refuse("The server does not answer. Is it still running?");
  }
}

async function listSegmenters() {
  const select = part("segmenter");
  try {
    const given = await call("/v1/segmenters", { askToken });
    const options = given.segmenters.map(({ name, ready, reason }) => {
      const option = new Option(ready ? name : `${name} (not ready)`, name, false, name === given.default);
      option.disabled = !ready;
      option.title = reason ?? "";
      return option;
    });
    select.replaceChildren(...options);
    select.disabled = false;
  } catch (error) {
    refuse(error.message);
  }
}

// ---- wiring

part("undo").onclick = undo;
part("clear").onclick = clear;
part("zoom-in").onclick = () => stage.zoom(1.4);
part("zoom-out").onclick = () => stage.zoom(1 / 1.4);
part("zoom-fit").onclick = () => stage.fit();
part("copy").onclick = copy;
part("refine").onclick = () => refine(proposal().rle);
part("open-mask").onclick = () => part("mask-file").click();
part("mask-file").onchange = (event) => {
  openMask(event.target.files[0]);
  event.target.value = ""; // the same file can be chosen again
};
part("save-json").onclick = () => save(new Blob([json()], { type: "application/json" }), fileName(".json"));
part("save-mask").onclick = async () => save(await maskPicture(photo, proposal()), fileName("-mask.png"));
part("open-keys").onclick = () => part("keys").showModal();
part("close-keys").onclick = () => part("keys").close();
for (const name of ["mask", "outline", "vertices"]) {
  part(`show-${name}`).onchange = (event) => stage.toggle(name, event.target.checked);
}
for (const id of ["quality", "controls"]) part(id).addEventListener("change", () => photo && propose());
part("segmenter").onchange = () => {
  if (!photo) return;
  prepare();
  propose();
};
for (const id of ["choose", "choose-first"]) part(id).onclick = () => part("file").click();
part("file").onchange = (event) => {
  openFirst(event.target.files);
  event.target.value = ""; // the same file can be chosen again
};
part("samples").addEventListener("click", (event) => {
  const button = event.target.closest("[data-sample]");
  if (button) openSample(button.dataset.sample);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFirst(event.dataTransfer.files);
});
addEventListener("paste", (event) => openFirst(event.clipboardData.files));
addEventListener("online", () => photo && !part("again").hidden && prepareAgain());

const KEYS = {
  Escape: () => stage.cancelBox() || clear(),
  o: () => document.querySelector('input[name="mode"][value="foreground"]').click(),
  b: () => document.querySelector('input[name="mode"][value="background"]').click(),
  "+": () => stage.zoom(1.4),
  "=": () => stage.zoom(1.4),
  "-": () => stage.zoom(1 / 1.4),
  0: () => stage.fit(),
  "?": () => part("keys").showModal(),
};

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.target.closest("select, input:not([type=radio], [type=checkbox])")) {
    return;
  }
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let act = null;
  if (command && key === "z") act = event.shiftKey ? redo : undo;
  else if (command && key === "y") act = redo;
  else if (!command && !event.altKey && photo) act = /^[1-9]$/.test(key) ? () => choose(Number(key) - 1) : KEYS[key];
  if (!act) return;
  event.preventDefault();
  act();
});

listSegmenters();
