// The candidates of the last request, as a group of radio buttons.

export class Candidates {
  constructor(card, list, onChoose) {
    Object.assign(this, { card, list, onChoose });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const buttons = [...list.children];
      const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
      buttons[next].click();
      list.children[next].focus();
    });
  }

  // `labels` has the second line of each candidate. One candidate alone is not shown.
  show(labels, chosen) {
    this.card.hidden = labels.length < 2;
    while (this.list.children.length > labels.length) this.list.lastChild.remove();
    labels.forEach((label, index) => {
      const button = this.list.children[index] ?? this.create(index);
      button.lastChild.textContent = label;
      button.setAttribute("aria-checked", String(index === chosen));
      button.tabIndex = index === chosen ? 0 : -1;
    });
  }

  create(index) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.setAttribute("role", "radio");
    button.append(Object.assign(document.createElement("span"), { textContent: `Candidate ${index + 1}` }));
    button.append(document.createElement("small"));
    button.addEventListener("click", () => this.onChoose(index));
    this.list.append(button);
    return button;
  }
}
