// The piano roll: one lane for each part. Only what is visible is drawn.

import { colors, onSchemeChange, partColor } from "/theme.js";

export const LANE = 84; // pixels, as in style.css
export const RULER = 26;
const LABEL = 44; // minimum distance between two bar numbers
const MARGIN = 8; // above and below the notes of a lane

export class Roll {
  constructor(canvas, scroller, extent, parts) {
    Object.assign(this, { canvas, scroller, extent, partColumn: parts });
    this.context = canvas.getContext("2d");
    this.piece = null;
    this.pixelsPerQuarter = 24;
    this.selection = null; // {from, to, parts: Set}
    this.written = new Set(); // "bar:part"
    this.peers = []; // the candidates of the shown piece
    this.cursor = 0; // tick
    this.isSilent = () => false; // of a part, by index
    this.colors = colors();
    scroller.addEventListener("scroll", () => this.invalidate(), { passive: true });
    new ResizeObserver(() => this.layout()).observe(scroller);
    onSchemeChange(() => {
      this.colors = colors();
      this.invalidate();
    });
  }

  get scale() { return this.pixelsPerQuarter / this.piece.division; } // pixels per tick
  x(tick) { return tick * this.scale - this.scroller.scrollLeft; }

  show(piece) {
    this.piece = piece;
    this.layout();
  }

  layout() {
    const left = this.partColumn.offsetWidth;
    if (this.piece) {
      this.extent.style.width = `${left + Math.ceil(this.piece.end * this.scale) + 24}px`;
    }
    const [width, height] = [Math.max(0, this.scroller.clientWidth - left), this.scroller.clientHeight];
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.invalidate();
  }

  invalidate() {
    this.requested ??= requestAnimationFrame(() => {
      this.requested = null;
      this.draw();
    });
  }

  // The bar and the part under a point of the canvas; the part is -1 on the ruler.
  at(x, y) {
    const tick = (x + this.scroller.scrollLeft) / this.scale;
    const lane = Math.floor((y - RULER + this.scroller.scrollTop) / LANE);
    const part = y < RULER ? -1 : Math.min(Math.max(lane, 0), this.piece.parts.length - 1);
    return { bar: Math.min(this.piece.bar(Math.max(0, tick)), this.piece.bars - 1), part };
  }

  get bottom() { return RULER + this.piece.parts.length * LANE - this.scroller.scrollTop; } // of the last lane

  reveal(bar, part) {
    const { lines } = this.piece;
    const [from, to] = [lines[bar] * this.scale, lines[bar + 1] * this.scale];
    const width = this.canvas.clientWidth;
    const s = this.scroller;
    if (from < s.scrollLeft) s.scrollLeft = from - 20;
    else if (to > s.scrollLeft + width) s.scrollLeft = Math.min(from - 20, to - width + 20);
    const [top, room] = [part * LANE, this.canvas.clientHeight - RULER];
    if (top < s.scrollTop) s.scrollTop = top;
    else if (top + LANE > s.scrollTop + room) s.scrollTop = top + LANE - room;
  }

  zoom(factor) {
    if (!this.piece) return;
    const middle = (this.scroller.scrollLeft + this.canvas.clientWidth / 2) / this.scale;
    this.pixelsPerQuarter = Math.min(160, Math.max(1.5, this.pixelsPerQuarter * factor));
    this.layout();
    this.scroller.scrollLeft = middle * this.scale - this.canvas.clientWidth / 2;
  }

  draw() {
    const { context: c, canvas, piece } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.width / ratio, canvas.height / ratio];
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = this.colors.lane;
    c.fillRect(0, 0, width, height);
    if (!piece) return;
    this.drawn = 0;
    const [fromTick, toTick] = [0, width].map((x) => (x + this.scroller.scrollLeft) / this.scale);
    const firstBar = piece.bar(fromTick);
    const lastBar = Math.min(piece.bar(toTick), piece.bars - 1);
    const firstPart = Math.max(0, Math.floor(this.scroller.scrollTop / LANE));
    const lastPart = Math.min(piece.parts.length, Math.ceil((this.scroller.scrollTop + height) / LANE));
    for (let part = firstPart; part < lastPart; part++) {
      this.drawLane(part, RULER + part * LANE - this.scroller.scrollTop, width, firstBar, lastBar, fromTick, toTick);
    }
    this.drawRuler(width, firstBar, lastBar);
    canvas.dataset.drawn = this.drawn; // the number of notes
    const x = Math.round(this.x(this.cursor));
    c.fillStyle = this.colors.accent;
    c.fillRect(x, 0, 2, Math.min(height, this.bottom));
  }

  drawLane(index, top, width, firstBar, lastBar, fromTick, toTick) {
    const { context: c, piece, colors: k } = this;
    const part = piece.parts[index];
    const color = partColor(index, part.drums);
    const right = Math.min(width, this.x(piece.end));
    c.fillStyle = index % 2 ? k["lane-even"] : k.lane;
    c.fillRect(0, top, right, LANE);
    // Bar lines, unless they are too dense to be seen.
    c.fillStyle = k.line;
    if ((piece.lines[lastBar + 1] - piece.lines[firstBar]) * this.scale > 5 * (lastBar + 1 - firstBar)) {
      for (let bar = firstBar; bar <= lastBar + 1; bar++) c.fillRect(Math.round(this.x(piece.lines[bar])), top, 1, LANE);
    }
    c.fillRect(0, top + LANE - 1, right, 1);
    const selected = this.selection?.parts.has(index) ? this.selection : null;
    for (let bar = firstBar; bar <= lastBar; bar++) {
      if (this.written.has(`${bar}:${index}`)) {
        c.globalAlpha = 0.13;
        c.fillStyle = color;
        c.fillRect(this.x(piece.lines[bar]), top, (piece.lines[bar + 1] - piece.lines[bar]) * this.scale, LANE - 1);
        c.globalAlpha = 1;
      }
    }
    if (selected) {
      const [a, b] = [this.x(piece.lines[selected.from]), this.x(piece.lines[selected.to + 1])];
      c.fillStyle = k.accent;
      c.globalAlpha = 0.14;
      c.fillRect(a, top, b - a, LANE - 1);
      c.globalAlpha = 1;
      c.strokeStyle = k.accent;
      c.lineWidth = 1.5;
      c.strokeRect(a + 0.75, top + 0.75, b - a - 1.5, LANE - 2.5);
    }
    // All candidates have one scale, so that they can be compared.
    const alike = this.peers.map((peer) => peer.parts[index]).filter(Boolean);
    const low = Math.min(part.low, ...alike.map((other) => other.low));
    const high = Math.max(part.high, ...alike.map((other) => other.high));
    const middle = (low + high) / 2;
    const span = Math.max(high - low, 11);
    const step = (LANE - 2 * MARGIN) / (span + 1);
    const thickness = Math.max(2, Math.min(8, step - 0.5));
    const silent = this.isSilent(index);
    c.fillStyle = color;
    c.strokeStyle = k.ink;
    c.lineWidth = 1;
    // Reading the scroll position from the document for each note would take longer than drawing the note.
    const [scale, left] = [this.scale, this.scroller.scrollLeft];
    let last = -1; // the pixel and the pitch of the last drawn note, to draw dense music fast
    let lastPitch = -1;
    for (let i = part.firstSounding(fromTick); i < part.count && part.start(i) < toTick; i++) {
      const [start, end, pitch] = [part.start(i), part.end(i), part.pitch(i)];
      if (end <= fromTick) continue;
      const x = start * scale - left;
      const endPixel = Math.floor(end * scale - left);
      if (pitch === lastPitch && endPixel === last) continue;
      last = endPixel;
      lastPitch = pitch;
      this.drawn++;
      const wide = Math.max(1.5, (end - start) * scale - 1);
      const y = top + LANE / 2 - (pitch - middle) * step - thickness / 2;
      const isNew = this.written.size > 0 && this.written.has(`${piece.bar(start)}:${index}`);
      c.globalAlpha = silent ? 0.25 : (this.written.size && !isNew ? 0.6 : 1) * (0.6 + 0.4 * (part.velocity(i) / 127));
      if (wide > 4 && c.roundRect) {
        c.beginPath();
        c.roundRect(x, y, wide, thickness, 2);
        c.fill();
        if (isNew && thickness > 3) c.stroke();
      } else c.fillRect(x, y, wide, thickness);
    }
    c.globalAlpha = 1;
  }

  drawRuler(width, firstBar, lastBar) {
    const { context: c, piece, colors: k } = this;
    c.fillStyle = k.ruler;
    c.fillRect(0, 0, width, RULER - 1);
    if (this.selection) {
      const [a, b] = [this.x(piece.lines[this.selection.from]), this.x(piece.lines[this.selection.to + 1])];
      c.fillStyle = k.accent;
      c.globalAlpha = 0.25;
      c.fillRect(a, 0, b - a, RULER - 1);
      c.globalAlpha = 1;
    }
    c.fillStyle = k.line;
    c.fillRect(0, RULER - 1, width, 1);
    c.font = "12px system-ui, sans-serif";
    c.textBaseline = "middle";
    const length = ((piece.lines[lastBar + 1] - piece.lines[firstBar]) * this.scale) / (lastBar + 1 - firstBar);
    const step = 2 ** Math.max(0, Math.ceil(Math.log2(LABEL / length)));
    const changes = new Map(piece.signatures.map(([bar, n, d]) => [bar, `${n}/${d}`]));
    let free = -1;
    for (let bar = firstBar; bar <= lastBar; bar++) {
      const number = bar + piece.firstBar;
      if (step > 1 && number % step !== (bar === 0 ? number % step : 0)) continue;
      const x = this.x(piece.lines[bar]);
      if (x < free) continue;
      c.fillStyle = k.line;
      c.fillRect(Math.round(x), 4, 1, RULER - 5);
      c.fillStyle = k.ink;
      c.fillText(number, x + 5, RULER / 2);
      free = x + 10 + c.measureText(number).width;
      if (changes.has(bar) && step === 1) {
        c.fillStyle = k.soft;
        c.fillText(changes.get(bar), free, RULER / 2);
        free += c.measureText(changes.get(bar)).width + 5;
      }
    }
  }
}
