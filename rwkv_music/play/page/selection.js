// The selection of bars and parts, by mouse and keyboard. `onChange` is called after every change.

export class Selection {
  constructor(roll, onChange) {
    this.roll = roll;
    this.onChange = onChange;
    this.value = null; // {from, to, parts: Set}
    this.anchor = this.focus = null; // {bar, part}
    const { canvas } = roll;
    canvas.addEventListener("pointerdown", (event) => this.pointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.pointerMove(event));
    canvas.addEventListener("pointerup", () => { this.dragging = false; });
    canvas.addEventListener("pointercancel", () => { this.dragging = false; });
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
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
    if (this.value.from >= piece.bars || !parts.size) this.clear();
    else this.set({ from: this.value.from, to: Math.min(this.value.to, piece.bars - 1), parts });
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
    const point = this.roll.at(event.offsetX, event.offsetY);
    if (event.offsetY >= this.roll.bottom) {
      this.clear();
      return;
    }
    if (!(event.shiftKey && this.anchor)) this.anchor = point;
    this.focus = point;
    this.dragging = event.pointerType !== "touch";
    if (this.dragging) this.roll.canvas.setPointerCapture(event.pointerId);
    this.span();
  }

  pointerMove(event) {
    if (!this.dragging) return;
    const point = this.roll.at(event.offsetX, event.offsetY);
    if (this.anchor.part >= 0 && point.part < 0) point.part = 0;
    if (point.bar === this.focus.bar && point.part === this.focus.part) return;
    this.focus = point;
    this.span();
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
