// The versions of a piece. A step has one candidate or several, of which one is chosen.

export class History {
  constructor() { this.reset(null); }

  reset(piece) {
    this.steps = piece ? [{ label: "open", candidates: [piece], chosen: 0, cells: [] }] : [];
    this.place = this.steps.length - 1;
  }

  get step() { return this.steps[this.place] ?? null; }
  get piece() { return this.step?.candidates[this.step.chosen] ?? null; }
  get canUndo() { return this.place > 0; }
  get canRedo() { return this.place < this.steps.length - 1; }

  push(step) {
    this.steps = [...this.steps.slice(0, this.place + 1), step];
    this.place++;
  }

  undo() { if (this.canUndo) this.place--; }
  redo() { if (this.canRedo) this.place++; }

  // Choosing another candidate drops later steps, which were made from the one chosen before.
  choose(candidate) {
    if (candidate === this.step.chosen) return;
    this.step.chosen = candidate;
    this.steps.length = this.place + 1;
  }
}
