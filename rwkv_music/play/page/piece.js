// A piece as the page shows and plays it. Times are ticks unless a name says otherwise.

const FIELDS = 4; // start, end, pitch, velocity

class Part {
  constructor(info, notes) {
    Object.assign(this, { name: info.name, instrument: info.instrument, program: info.program, drums: info.drums });
    this.notes = Int32Array.from(notes); // flat, sorted by start
    this.count = this.notes.length / FIELDS;
    this.latestEnd = new Int32Array(this.count); // the latest end of a note and of all notes before it
    this.low = 127;
    this.high = 0;
    let latest = 0;
    for (let i = 0; i < this.count; i++) {
      latest = Math.max(latest, this.notes[FIELDS * i + 1]);
      this.latestEnd[i] = latest;
      this.low = Math.min(this.low, this.notes[FIELDS * i + 2]);
      this.high = Math.max(this.high, this.notes[FIELDS * i + 2]);
    }
    if (!this.count) [this.low, this.high] = [60, 72];
  }

  start(i) { return this.notes[FIELDS * i]; }
  end(i) { return this.notes[FIELDS * i + 1]; }
  pitch(i) { return this.notes[FIELDS * i + 2]; }
  velocity(i) { return this.notes[FIELDS * i + 3]; }

  // The first note that starts at or after a tick.
  firstFrom(tick) { return firstIndex(this.count, (i) => this.start(i) >= tick); }

  // The first note that may still sound at a tick.
  firstSounding(tick) { return firstIndex(this.count, (i) => this.latestEnd[i] > tick); }

  // The notes as flat lists, without those that start in one of the ranges [[from, to], ...].
  without(ranges) {
    const kept = [];
    for (let i = 0; i < this.count; i++) {
      const start = this.start(i);
      if (!ranges.some(([from, to]) => start >= from && start < to)) {
        kept.push(...this.notes.subarray(FIELDS * i, FIELDS * (i + 1)));
      }
    }
    return kept;
  }
}

function firstIndex(count, isReached) {
  let [low, high] = [0, count];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isReached(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

export class Piece {
  // `json` is the server's description. Parts without notes in it are taken from `base`.
  constructor(json, base = null) {
    this.id = json.id ?? null;
    this.title = json.title;
    this.division = json.division;
    this.firstBar = json.first_bar;
    this.lines = json.bars;
    this.signatures = json.signatures;
    this.tempos = json.tempos;
    this.parts = json.parts.map((part, i) => (part.notes ? new Part(part, part.notes) : base.parts[i]));
    this.tempoSeconds = [0];
    for (let i = 1; i < this.tempos.length; i++) {
      const [from, tempo] = this.tempos[i - 1];
      this.tempoSeconds.push(this.tempoSeconds[i - 1] + ((this.tempos[i][0] - from) * tempo) / 1e6 / this.division);
    }
  }

  get bars() { return this.lines.length - 1; }
  get end() { return this.lines[this.bars]; }

  bar(tick) { return Math.max(0, firstIndex(this.bars, (i) => this.lines[i + 1] > tick)); }
  barName(bar) { return String(bar + this.firstBar); }

  seconds(tick) {
    const i = Math.max(0, firstIndex(this.tempos.length, (k) => this.tempos[k][0] > tick) - 1);
    return this.tempoSeconds[i] + ((tick - this.tempos[i][0]) * this.tempos[i][1]) / 1e6 / this.division;
  }

  tick(seconds) {
    const i = Math.max(0, firstIndex(this.tempos.length, (k) => this.tempoSeconds[k] > seconds) - 1);
    return this.tempos[i][0] + ((seconds - this.tempoSeconds[i]) * 1e6 * this.division) / this.tempos[i][1];
  }

  // A copy in which the cells [[bar, part], ...] are empty. It may have more bars, and a new part as its last one.
  emptied(cells, newPart = null) {
    const copy = Object.assign(Object.create(Piece.prototype), this, { id: null });
    copy.lines = [...this.lines];
    const length = this.lines[this.bars] - this.lines[this.bars - 1];
    const bars = 1 + Math.max(...cells.map(([bar]) => bar));
    while (copy.bars < bars) copy.lines.push(copy.end + length);
    const ranges = new Map();
    for (const [bar, part] of cells) {
      ranges.set(part, [...(ranges.get(part) ?? []), [copy.lines[bar], copy.lines[bar + 1]]]);
    }
    copy.parts = this.parts.map((part, i) => (ranges.has(i) ? new Part(part, part.without(ranges.get(i))) : part));
    if (newPart) copy.parts.push(new Part(newPart, []));
    return copy;
  }

  // Adds the notes of a cell, a flat list, to a piece that `emptied` made.
  addNotes(index, flat) {
    const part = this.parts[index];
    const rows = [];
    for (let i = 0; i < part.count; i++) rows.push(part.notes.subarray(FIELDS * i, FIELDS * (i + 1)));
    for (let i = 0; i < flat.length; i += FIELDS) rows.push(flat.slice(i, i + FIELDS));
    rows.sort((a, b) => a[0] - b[0] || a[2] - b[2]);
    this.parts[index] = new Part(part, rows.flatMap((row) => [...row]));
  }
}
