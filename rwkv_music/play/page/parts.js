// The column of parts: names, instruments, selection, mute and solo.

import { onSchemeChange, partColor } from "/theme.js";

export class PartList {
  constructor(element, onToggle, onChange) {
    Object.assign(this, { element, onToggle, onChange });
    this.muted = new Set();
    this.solo = new Set();
    onSchemeChange(() => this.piece && this.show(this.piece));
  }

  isSilent(index) {
    return this.muted.has(index) || (this.solo.size > 0 && !this.solo.has(index));
  }

  forget() {
    this.muted.clear();
    this.solo.clear();
  }

  show(piece) {
    this.piece = piece;
    const key = piece.parts.map((part) => `${part.name}\n${part.instrument}`).join("\n\n");
    if (key !== this.key) {
      this.key = key;
      this.element.replaceChildren(...piece.parts.map((part, index) => this.row(part, index)));
    }
    piece.parts.forEach((part, index) => {
      this.element.children[index].style.setProperty("--color", partColor(index, part.drums));
    });
    this.update();
  }

  row(part, index) {
    const row = document.createElement("div");
    row.className = "part";
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox" });
    box.addEventListener("change", () => this.onToggle(index));
    const name = Object.assign(document.createElement("span"), { textContent: part.name, title: part.name });
    label.append(box, name);
    const instrument = Object.assign(document.createElement("div"), { className: "instrument" });
    instrument.textContent = part.instrument === part.name ? `Part ${index + 1}` : part.instrument;
    const buttons = Object.assign(document.createElement("div"), { className: "buttons" });
    buttons.append(this.button("Mute", part, this.muted, index), this.button("Solo", part, this.solo, index));
    row.append(label, instrument, buttons);
    return row;
  }

  button(text, part, set, index) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.setAttribute("aria-label", `${text} ${part.name}`);
    button.dataset.set = text;
    button.addEventListener("click", () => {
      if (!set.delete(index)) set.add(index);
      this.update();
      this.onChange();
    });
    return button;
  }

  update(selection = this.selection) {
    this.selection = selection;
    [...this.element.children].forEach((row, index) => {
      row.classList.toggle("silent", this.isSilent(index));
      row.querySelector("input").checked = Boolean(selection?.parts.has(index));
      for (const button of row.querySelectorAll("button")) {
        const set = button.dataset.set === "Mute" ? this.muted : this.solo;
        button.setAttribute("aria-pressed", String(set.has(index)));
      }
    });
  }
}
