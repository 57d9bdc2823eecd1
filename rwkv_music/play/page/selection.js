// The selection of bars and parts, by mouse, finger and keyboard. `onChange` is called after every change by the user.

import { RULER } from "/roll.js";

const HOLD_MS = 350; // after this time a finger selects; if it moves earlier, it scrolls
const TAP = 10; // pixels that a finger may move in a tap
const SPEED = 0.15; // pixels to scroll in a frame, for each pixel from the edge to the pointer

export class Selection {
  constructor(roll, onChange) {
    this.roll = roll;
    this.onChange = onChange;
    this.value = null; // {from, to, parts: Set}
    this.anchor = this.focus = null; // {bar, part}
    const { canvas } = roll;
    canvas.addEventListener("pointerdown", (event) => this.pointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.pointerMove(event));
    canvas.addEventListener("pointerup", () => this.pointerUp());
    canvas.addEventListener("pointercancel", () => this.end()); // the browser scrolls
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
    // A finger that selects does not scroll, and holding it does not open a menu.
    canvas.addEventListener("touchmove", (event) => this.dragging && event.preventDefault(), { passive: false });
    canvas.addEventListener("contextmenu", (event) => this.dragging && event.preventDefault());
  }

  set(value) {
    this.value = value;
    this.roll.selection = value;
    this.roll.invalidate();
    this.onChange(value);
  }

  clear() {
    this.anchor = this.focus = null;
    this.set(null);
  }

  all() {
    const { piece } = this.roll;
    this.anchor = { bar: 0, part: 0 };
    this.focus = { bar: piece.bars - 1, part: piece.parts.length - 1 };
    this.span();
  }

  // Select the bars `from` to `to` of the selected parts, or of all parts.
  setBars(from, to) { this.select(from, to, this.value?.parts ?? this.roll.piece.parts.keys()); }

  select(from, to, parts) {
    const order = [...parts].sort((a, b) => a - b);
    this.anchor = { bar: from, part: order[0] };
    this.focus = { bar: to, part: order.at(-1) };
    this.set({ from, to, parts: new Set(order) });
  }

  togglePart(part) {
    const { piece } = this.roll;
    const parts = new Set(this.value?.parts);
    if (!parts.delete(part)) parts.add(part);
    const [from, to] = this.value ? [this.value.from, this.value.to] : [0, piece.bars - 1];
    this.anchor = { bar: from, part };
    this.focus = { bar: to, part };
    this.set(parts.size ? { from, to, parts } : null);
  }

  // After a change of the piece, keep what is still in it.
  fit() {
    const { piece } = this.roll;
    if (!this.value) return;
    const parts = new Set([...this.value.parts].filter((part) => part < piece.parts.length));
    const isGone = this.value.from >= piece.bars || !parts.size;
    this.value = isGone ? null : { from: this.value.from, to: Math.min(this.value.to, piece.bars - 1), parts };
    this.roll.selection = this.value;
    if (isGone) this.anchor = this.focus = null;
    for (const point of [this.anchor, this.focus]) {
      if (!point) continue;
      point.bar = Math.min(point.bar, piece.bars - 1);
      point.part = Math.min(point.part, piece.parts.length - 1);
    }
  }

  span() {
    const [a, b] = [this.anchor, this.focus];
    const all = a.part < 0 || b.part < 0;
    const [low, high] = all ? [0, this.roll.piece.parts.length - 1] : [Math.min(a.part, b.part), Math.max(a.part, b.part)];
    const parts = new Set(Array.from({ length: high - low + 1 }, (_, i) => low + i));
    this.set({ from: Math.min(a.bar, b.bar), to: Math.max(a.bar, b.bar), parts });
  }

  pointerDown(event) {
    if (!this.roll.piece || event.button) return;
    this.end();
    [this.x, this.y] = [event.offsetX, event.offsetY];
    if (event.pointerType === "touch") {
      this.holding = setTimeout(() => this.begin(false), HOLD_MS);
      return;
    }
    this.roll.canvas.setPointerCapture(event.pointerId);
    this.begin(event.shiftKey);
  }

  pointerMove(event) {
    const [x, y] = [event.offsetX, event.offsetY];
    if (this.holding && Math.hypot(x - this.x, y - this.y) > TAP) this.end();
    if (!this.dragging) return;
    [this.x, this.y] = [x, y];
    this.extend();
    this.scrolling ??= requestAnimationFrame(() => this.scroll());
  }

  pointerUp() {
    if (this.holding) this.begin(false);
    this.end();
  }

  // Begin to select at the pointer.
  begin(keepsAnchor) {
    clearTimeout(this.holding);
    this.holding = null;
    if (this.y >= this.roll.bottom) {
      this.clear();
      return;
    }
    this.focus = this.roll.at(this.x, this.y);
    if (!keepsAnchor || !this.anchor) this.anchor = this.focus;
    this.dragging = true;
    this.span();
  }

  // Extend the selection to the pointer.
  extend() {
    const { canvas } = this.roll;
    const y = this.anchor.part < 0 ? this.y : Math.max(this.y, RULER);
    const point = this.roll.at(Math.min(Math.max(this.x, 0), canvas.clientWidth - 1), Math.min(y, canvas.clientHeight - 1));
    if (point.bar === this.focus.bar && point.part === this.focus.part) return;
    this.focus = point;
    this.span();
  }

  // Scroll in each frame while the pointer is dragged beyond the edges.
  scroll() {
    this.scrolling = null;
    const { canvas, scroller } = this.roll;
    const beyond = (at, low, high) => Math.min(at - low, 0) + Math.max(at - high, 0);
    const x = beyond(this.x, 0, canvas.clientWidth);
    const y = this.anchor?.part < 0 ? 0 : beyond(this.y, RULER, canvas.clientHeight);
    if (!this.dragging || !(x || y)) return;
    scroller.scrollBy(SPEED * x, SPEED * y);
    this.extend();
    this.scrolling = requestAnimationFrame(() => this.scroll());
  }

  end() {
    clearTimeout(this.holding);
    this.holding = null;
    this.dragging = false;
  }

  keyDown(event) {
    const { piece } = this.roll;
    if (!piece) return;
    if (event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.all();
      return;
    }
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!steps[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!this.focus) {
      this.anchor = this.focus = { bar: 0, part: 0 };
    } else {
      const [bars, parts] = steps[event.key];
      const clamp = (value, most) => Math.min(Math.max(value, 0), most);
      this.focus = {
        bar: clamp(this.focus.bar + bars, piece.bars - 1),
        part: clamp(this.focus.part + parts, piece.parts.length - 1),
      };
      if (!event.shiftKey) this.anchor = this.focus;
    }
    this.span();
    this.roll.reveal(this.focus.bar, this.focus.part);
  }
}
