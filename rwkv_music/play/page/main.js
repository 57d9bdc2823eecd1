// The page: connects the piano roll, the player, the forms and the server.

import * as api from "/api.js";
import { Candidates } from "/candidates.js";
import { History } from "/history.js";
import { PartList } from "/parts.js";
import { Piece } from "/piece.js";
import { Player } from "/player.js";
import { Roll } from "/roll.js";
import { Selection } from "/selection.js";

const $ = (id) => document.getElementById(id);

const history = new History();
const parts = new PartList($("parts"), (index) => selection.togglePart(index), () => roll.invalidate());
const isSilent = (index) => parts.isSilent(index);
const roll = new Roll($("roll"), $("scroller"), $("extent"), $("parts"));
roll.isSilent = isSilent;
const player = new Player(isSilent);
const selection = new Selection(roll, selectionChanged);
const candidates = new Candidates($("candidates"), $("candidate-list"), choose);
let server = null; // the answer of /api/state
let writing = null; // {controller, drafts, shown, cells} during a request
let looping = false;
let starting = false; // whether playback begins as soon as the sounds are loaded

// ---- messages ----

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// ---- showing ----

function shownPiece() {
  return writing?.drafts?.[writing.shown] ?? history.piece;
}

function show() {
  const piece = shownPiece();
  const step = history.step;
  roll.written = new Set((writing?.drafts ? writing.cells : step?.cells ?? []).map(([bar, part]) => `${bar}:${part}`));
  roll.peers = writing?.drafts ?? step?.candidates ?? [];
  $("welcome").hidden = Boolean(piece);
  if (piece) {
    parts.show(piece);
    roll.show(piece);
    player.show(piece);
    selection.fit();
    updateLoop();
  }
  $("title").textContent = piece?.title ?? "No piece";
  document.title = piece ? `${piece.title} – RWKV-Music` : "RWKV-Music";
  $("undo").disabled = !history.canUndo || Boolean(writing);
  $("redo").disabled = !history.canRedo || Boolean(writing);
  $("play").disabled = $("rewind").disabled = !piece;
  const download = $("download");
  download.setAttribute("aria-disabled", String(!history.piece));
  if (history.piece) {
    download.href = `/api/pieces/${history.piece.id}/file`;
    download.download = `${history.piece.title.replace(/[\\/:*?"<>|]/g, "-")}.mid`;
  } else download.removeAttribute("href");
  showCandidates();
  showSelection();
}

function showCandidates() {
  const step = history.step;
  const blind = Boolean(server?.blind);
  const shown = writing?.drafts ? writing : step;
  const pieces = writing?.drafts ?? step?.candidates ?? [];
  const counts = pieces.map((piece) => notesIn(piece, shown?.cells ?? []));
  const labels = counts.map((count, i) => step?.names?.[i] ?? plural(count, "note"));
  candidates.show(labels, writing?.drafts ? writing.shown : step?.chosen ?? 0);
  $("prefer").hidden = !blind || pieces.length < 2 || Boolean(writing) || Boolean(step?.names);
  $("tally").hidden = !blind || !server.tally.some(([, count]) => count);
  $("tally").textContent = blind
    ? `Preferred so far: ${server.tally.map(([name, count]) => `${name} ${count}`).join(", ")}.` : "";
}

function notesIn(piece, cells) {
  let count = 0;
  for (const [bar, index] of cells) {
    const part = piece.parts[index];
    if (part) count += part.firstFrom(piece.lines[bar + 1]) - part.firstFrom(piece.lines[bar]);
  }
  return count;
}

function describe(value) {
  const piece = roll.piece;
  const bars = value.from === value.to
    ? `Bar ${piece.barName(value.from)}` : `Bars ${piece.barName(value.from)} to ${piece.barName(value.to)}`;
  const names = [...value.parts].sort((a, b) => a - b).map((part) => piece.parts[part].name);
  const named = names.length === piece.parts.length && names.length > 1 ? "all parts"
    : names.length > 3 ? plural(names.length, "part") : names.join(", ");
  return `${bars} of ${named}`;
}

function selectionChanged(value) {
  showSelection();
  if (value) {
    goTo(value.from);
    say(describe(value));
  }
  updateLoop();
}

function showSelection() {
  const value = selection.value;
  const piece = roll.piece;
  $("selected").textContent = value ? describe(value) : "Nothing is selected.";
  roll.canvas.setAttribute("aria-label",
    piece ? `Piano roll of ${piece.title}: ${plural(piece.parts.length, "part")}, ${plural(piece.bars, "bar")}. `
      + (value ? `Selected: ${describe(value)}.` : "Nothing is selected.") : "Piano roll. No piece.");
  for (const [id, bar] of [["from-bar", value?.from], ["to-bar", value?.to]]) {
    const input = $(id);
    input.disabled = !piece;
    if (piece) Object.assign(input, { min: piece.firstBar, max: piece.firstBar + piece.bars - 1 });
    if (document.activeElement !== input || value) input.value = value ? bar + piece.firstBar : "";
  }
  $("fill").disabled = !value || Boolean(writing) || piece.parts.length > server.most.parts;
  $("continue").disabled = !piece || Boolean(writing) || piece.parts.length > server.most.parts;
  $("add").disabled = !piece || Boolean(writing) || piece.parts.length >= server.most.parts;
  parts.update(value);
}

function updateLoop() {
  const piece = roll.piece;
  const value = selection.value;
  player.loop = !looping || !piece ? null
    : value ? [piece.lines[value.from], piece.lines[value.to + 1]] : [0, piece.end];
  if (player.isPlaying && player.loop) {
    const { tick } = player;
    if (tick < player.loop[0] || tick >= player.loop[1]) player.seek(player.loop[0]);
  }
}

// ---- opening ----

// What is selected at first in the example and in the blank piece: the first bar, the last bar and the part.
const SELECTED = { example: [4, 7, 1], blank: [0, 7, 0] };

async function open(load, selected = null) {
  cancel();
  player.stop(0);
  try {
    const piece = new Piece(await load());
    history.reset(piece);
    parts.forget();
    selection.clear();
    $("scroller").scrollTo(0, 0);
    fitZoom(piece);
    show();
    if (selected) selection.select(selected[0], selected[1], [selected[2]]);
    goTo(0);
    const size = `${piece.title}: ${plural(piece.parts.length, "part")}, ${plural(piece.bars, "bar")}.`;
    const refusal = `Models write pieces of at most ${server.most.parts} parts: to write, open a file with fewer.`;
    say(piece.parts.length > server.most.parts ? `${size} ${refusal}` : size);
    player.prepare().catch(() => {}); // now, so that Play does not wait for it; Play tries again and reports errors
    roll.canvas.focus({ preventScroll: true });
  } catch (error) {
    say(error.message, true);
  }
}

function fitZoom(piece) {
  const quarters = piece.lines[Math.min(piece.bars, 16)] / piece.division;
  const width = $("scroller").clientWidth - $("parts").offsetWidth;
  roll.pixelsPerQuarter = Math.min(48, Math.max(14, (width - 24) / quarters));
}

function openFile(file) {
  if (server && file.size > server.most.upload) {
    say(`${file.name} is larger than ${server.most.upload >> 20} MB: choose a smaller file.`, true);
    return;
  }
  open(() => api.upload(file));
}

// ---- writing ----

function request(action) {
  const value = selection.value;
  const body = {
    piece: history.piece.id,
    action,
    temperature: Number($("temperature").value),
    candidates: server.blind ? 1 : Number($("count").value),
    seed: Math.floor(Math.random() * 2 ** 31),
  };
  if ($("density").value) body.density = $("density").value;
  if ($("register").value) body.register = $("register").value;
  if (action === "fill") Object.assign(body, { bars: [value.from, value.to], parts: [...value.parts] });
  if (action === "continue") body.new_bars = Number($("new-bars").value);
  if (action === "add") body.program = Number($("program").value);
  return body;
}

// The cells of a request, and the new part if there is one.
function requestedCells(body) {
  const piece = history.piece;
  const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
  const all = range(0, piece.parts.length);
  if (body.action === "fill") {
    return [range(body.bars[0], body.bars[1] + 1).flatMap((bar) => body.parts.map((part) => [bar, part])), null];
  }
  if (body.action === "continue") {
    return [range(piece.bars, piece.bars + body.new_bars).flatMap((bar) => all.map((part) => [bar, part])), null];
  }
  const instrument = $("program").selectedOptions[0].text;
  const part = { name: instrument, instrument, program: body.program, drums: body.program === server.drums };
  return [range(0, piece.bars).map((bar) => [bar, piece.parts.length]), part];
}

const LABELS = { fill: "Filled in", continue: "Continued", add: "Added a part" };

async function write(action) {
  if ($(action).disabled) return; // Enter on the roll also calls this
  const body = request(action);
  if (action === "continue" && !(body.new_bars >= 1 && body.new_bars <= server.most.new_bars)) {
    say(`Choose 1 to ${server.most.new_bars} bars to continue by.`, true);
    return;
  }
  const [cells, newPart] = requestedCells(body);
  const base = history.piece;
  const count = server.blind ? 2 : body.candidates;
  writing = { controller: new AbortController(), drafts: null, shown: 0, cells };
  const own = writing;
  let completed = 0; // cells
  let result = null;
  performance.clearMeasures("first note");
  const clicked = performance.now();
  setProgress(0, "Sent");
  show();
  try {
    await api.write(body, (event) => {
      if (own !== writing) return;
      if ("position" in event && !own.drafts) {
        setProgress(0, event.position ? `Number ${event.position + 1} in the queue` : "Reading the piece");
      } else if ("candidate" in event) {
        const isFirst = !own.drafts;
        if (isFirst) own.drafts = Array.from({ length: count }, () => base.emptied(cells, newPart));
        own.drafts[event.candidate].addNotes(event.part, event.notes);
        if (event.notes.length && !performance.getEntriesByName("first note").length) {
          performance.measure("first note", { start: clicked });
        }
        if (event.complete) completed++;
        setProgress(completed / (cells.length * count), `${completed} of ${cells.length * count}`);
        if (isFirst) {
          if (action === "continue") requestAnimationFrame(() => revealBars(base.bars, roll.piece.bars - 1));
          if (action === "add") roll.scroller.scrollTop = roll.scroller.scrollHeight;
        }
        show();
      } else if (event.done) result = event.done;
    }, own.controller.signal);
    if (own !== writing) return;
    const pieces = result.candidates.map((json) => new Piece(json, base));
    history.push({ label: LABELS[action], candidates: pieces, chosen: own.shown, cells });
    writing = null;
    finishProgress();
    show();
    const bars = [...new Set(cells.map(([bar]) => bar))];
    const written = new Set(cells.map(([, part]) => part).filter((part) => part < roll.piece.parts.length));
    if (action !== "fill" && written.size) selection.select(Math.min(...bars), Math.max(...bars), written);
    goTo(Math.min(...bars));
    say(`${LABELS[action]}: ${plural(bars.length, "bar")}, ${plural(pieces.length, "candidate")}.`);
    if (result.step !== null && server.models.length) {
      server.models[0].step = result.step;
      about();
    }
  } catch (error) {
    if (own !== writing) return;
    writing = null;
    finishProgress();
    show();
    if (error.name === "AbortError") say("Cancelled.");
    else say(error.message, true);
  }
}

// Show the bar `from`, and as many of the bars up to `to` as there is room for.
function revealBars(from, to) {
  roll.reveal(Math.min(to, roll.piece.bars - 1), 0);
  roll.reveal(Math.min(from, roll.piece.bars - 1), 0);
}

function setProgress(value, text) {
  $("progress").hidden = false;
  $("bar").value = value;
  $("progress-text").textContent = text;
}

function finishProgress() {
  const hadFocus = $("progress").contains(document.activeElement);
  $("progress").hidden = true;
  if (hadFocus) roll.canvas.focus({ preventScroll: true });
}

function cancel() {
  writing?.controller.abort();
}

function choose(index) {
  if (writing) {
    if (writing.drafts?.[index]) writing.shown = index;
  } else if (history.step?.candidates[index]) history.choose(index);
  else return;
  show();
  say(`Candidate ${index + 1}.`);
}

async function prefer() {
  const { step } = history;
  try {
    const answer = await api.choose(history.piece.id);
    step.names = step.candidates.map((piece) => answer.names[piece.id]);
    server.tally = answer.tally;
    say(`You prefer ${step.names[step.chosen]}.`);
    $("candidate-list").children[step.chosen].focus();
  } catch (error) {
    say(error.message, true);
  }
  show();
}

function travel(direction) {
  if (writing) return;
  if (direction < 0) {
    if (!history.canUndo) return;
    say(`Undone: ${history.step.label}.`);
    history.undo();
  } else {
    if (!history.canRedo) return;
    history.redo();
    say(`Redone: ${history.step.label}.`);
  }
  show();
}

// ---- playing ----

async function togglePlay() {
  if (!roll.piece) return;
  if (player.isPlaying) player.stop(selection.value ? roll.piece.lines[selection.value.from] : player.tick);
  else if (starting) return;
  else {
    starting = true;
    $("play").textContent = "Loading…";
    try {
      await player.start();
    } catch (error) {
      say(`The sound cannot start (${error.message}): check the audio device of this computer and press Play again.`, true);
    } finally {
      starting = false;
    }
  }
  if (player.isPlaying) requestAnimationFrame(animate);
  showPlaying();
}

function showPlaying() {
  $("play").textContent = player.isPlaying ? "Stop" : "Play";
  moveCursor();
}

function moveCursor() {
  const { piece } = roll;
  if (!piece) return;
  const tick = player.tick;
  if (tick !== roll.cursor) {
    roll.cursor = tick;
    roll.invalidate();
  }
  const seconds = Math.floor(piece.seconds(tick));
  const bar = piece.barName(Math.min(piece.bar(tick), piece.bars - 1));
  const text = `Bar ${bar} · ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  if ($("clock").textContent !== text) $("clock").textContent = text;
  $("clock").dataset.seconds = piece.seconds(tick).toFixed(3);
  $("level").value = player.level;
}

function animate() {
  moveCursor();
  if (!player.isPlaying) {
    showPlaying();
    return;
  }
  const x = roll.x(roll.cursor);
  if (x < 0 || x > roll.canvas.clientWidth - 8) roll.scroller.scrollLeft += x - 20;
  requestAnimationFrame(animate);
}

// Set the bar at which playback will begin. Does nothing during playback.
function goTo(bar) {
  if (player.isPlaying) return;
  player.stoppedAt = roll.piece.lines[bar];
  moveCursor();
}

function rewind() {
  player.seek(player.loop && player.isPlaying ? player.loop[0] : 0);
  roll.scroller.scrollLeft = 0;
  moveCursor();
}

function toggleLoop() {
  looping = !looping;
  $("loop").setAttribute("aria-pressed", String(looping));
  updateLoop();
}

player.onEnd = showPlaying;
player.onFontFailed = (error) => {
  say(`The SoundFont ${server.soundfont} cannot be used (${error.message}), so oscillators play.`, true);
  server.soundfont = null;
  about();
};

// ---- events ----

for (const id of ["open", "welcome-open"]) $(id).addEventListener("click", () => $("file").click());
for (const kind of ["example", "blank"]) {
  const start = () => open(() => api.start(kind), SELECTED[kind]);
  for (const id of [kind, `welcome-${kind}`]) $(id).addEventListener("click", start);
}
$("file").addEventListener("change", () => {
  if ($("file").files.length) openFile($("file").files[0]);
  $("file").value = "";
});
$("undo").addEventListener("click", () => travel(-1));
$("redo").addEventListener("click", () => travel(1));
$("play").addEventListener("click", togglePlay);
$("rewind").addEventListener("click", rewind);
$("loop").addEventListener("click", toggleLoop);
$("zoom-in").addEventListener("click", () => roll.zoom(1.4));
$("zoom-out").addEventListener("click", () => roll.zoom(1 / 1.4));
for (const action of ["fill", "continue", "add"]) $(action).addEventListener("click", () => write(action));
$("cancel").addEventListener("click", cancel);
$("prefer").addEventListener("click", prefer);
$("temperature").addEventListener("input", () => {
  $("temperature-value").textContent = Number($("temperature").value).toFixed(1);
});
$("selection").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["from-bar", "to-bar"]) {
  $(id).addEventListener("change", () => {
    const piece = roll.piece;
    const typed = (input) => (input.value === "" ? NaN : Number(input.value) - piece.firstBar);
    let [from, to] = [typed($("from-bar")), typed($("to-bar"))];
    if (Number.isNaN(from)) from = to;
    if (Number.isNaN(to)) to = from;
    if (Number.isNaN(from)) return;
    [from, to] = [from, to].map((bar) => Math.min(Math.max(Math.round(bar), 0), piece.bars - 1));
    if (from > to) [from, to] = id === "from-bar" ? [from, from] : [to, to];
    selection.setBars(from, to);
    roll.reveal(from, Math.min(...selection.value.parts));
  });
}

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  const types = target instanceof HTMLInputElement && target.type !== "checkbox" && target.type !== "range";
  if ((event.ctrlKey || event.metaKey) && ["z", "y"].includes(key.toLowerCase()) && !types) {
    event.preventDefault();
    travel(event.shiftKey || key.toLowerCase() === "y" ? 1 : -1);
  } else if (key === "Escape") {
    if (writing) cancel();
    else if (target === roll.canvas) selection.clear();
  } else if (types || event.ctrlKey || event.metaKey || event.altKey || target instanceof HTMLSelectElement) {
    return;
  } else if (key === " " && !(target instanceof HTMLButtonElement || target instanceof HTMLInputElement)) {
    event.preventDefault();
    togglePlay();
  } else if (key === "Enter" && target === roll.canvas) write("fill");
  else if (key.toLowerCase() === "l") toggleLoop();
  else if (key === "Home" && target === roll.canvas) rewind();
  else if (key === "+" || key === "=") roll.zoom(1.4);
  else if (key === "-") roll.zoom(1 / 1.4);
  else if (key >= "1" && key <= "3") choose(Number(key) - 1);
});

let dragDepth = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => { if (hasFiles(event)) $("drop").hidden = !++dragDepth; });
document.addEventListener("dragleave", (event) => {
  if (hasFiles(event) && --dragDepth <= 0) $("drop").hidden = true;
});
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragDepth = 0;
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});

// ---- the start ----

function about() {
  const models = server.blind ? "Two models write, in random order; their names appear after your choice."
    : server.models.map(({ name, step }) => `Model: ${name}${step === null ? "" : `, step ${step.toLocaleString("en")}`}.`)
      .join(" ");
  const sound = server.soundfont ? `the SoundFont ${server.soundfont}`
    : "plain oscillators. For recorded instruments, install Debian’s package timgm6mb-soundfont and restart the server";
  $("about").textContent = `${models} Sound: ${sound}.`;
}

async function begin() {
  try {
    server = await api.state();
  } catch (error) {
    say(error.message, true);
    return;
  }
  for (const [control, classes] of Object.entries(server.controls)) {
    $(control).append(...classes.map((name) => new Option(name.replace("-", " "), name)));
  }
  $("program").append(...server.instruments.map((name, i) => new Option(name, i)));
  $("program").value = "42";
  if (server.soundfont) player.fontUrl = "/soundfont";
  $("count-row").hidden = server.blind;
  about();
  show();
  document.documentElement.dataset.ready = "true";
}

begin();
