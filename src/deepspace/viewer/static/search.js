// Type-ahead search over genes, with what held-out data say of each.
const WAIT_MS = 120;

export class GeneSearch {
  constructor(root, find) {
    this.input = root.querySelector("input");
    this.list = root.querySelector("ul");
    this.list.id = `genes-${Math.random().toString(36).slice(2)}`;
    this.input.setAttribute("aria-controls", this.list.id);
    this.find = find;
    this.gene = null;
    this.found = [];
    this.chosen = 0;
    this.onchosen = () => {};
    this.input.addEventListener("focus", () => {
      this.input.select();
      this.look("");
    });
    this.input.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.look(this.input.value), WAIT_MS);
    });
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
    // before the input loses the focus
    this.list.addEventListener("mousedown", (event) => {
      event.preventDefault();
      const row = event.target.closest("li");
      if (row) this.take(Number(row.dataset.row));
    });
  }

  set(gene) {
    this.gene = gene ?? null;
    this.input.value = this.gene?.name ?? "";
    this.input.disabled = !gene;
  }

  async look(text) {
    const asked = (this.asked = Symbol("the newest request wins"));
    const found = await this.find(text);
    if (asked !== this.asked || document.activeElement !== this.input) return;
    this.found = found;
    this.chosen = 0;
    this.show();
  }

  show() {
    this.list.replaceChildren(...this.found.map((gene, row) => this.#row(gene, row)));
    if (!this.found.length) {
      const none = this.list.appendChild(document.createElement("li"));
      none.textContent = "no gene of that name is predicted here";
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
  }

  #row(gene, row) {
    const line = document.createElement("li");
    line.role = "option";
    line.dataset.row = row;
    line.setAttribute("aria-selected", String(row === this.chosen));
    line.append(gene.name);
    const right = line.appendChild(document.createElement("span"));
    if (gene.score != null) {
      right.appendChild(document.createElement("small")).textContent = `r ${gene.score.toFixed(2)} `;
    }
    if (gene.verdict) {
      const badge = right.appendChild(document.createElement("b"));
      badge.className = `badge ${gene.verdict}`;
      badge.textContent = gene.verdict;
    }
    return line;
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.found.length) {
      this.chosen = (this.chosen + step + this.found.length) % this.found.length;
      this.show();
      this.list.children[this.chosen].scrollIntoView({ block: "nearest" });
      event.preventDefault();
    } else if (event.key === "Enter") {
      // what was typed faster than the answer came is looked up first
      clearTimeout(this.timer);
      this.look(this.input.value).then(() => this.found.length && this.take(this.chosen));
      event.preventDefault();
    } else if (event.key === "Escape") {
      this.close();
      this.input.blur();
    }
    event.stopPropagation();
  }

  take(row) {
    const gene = this.found[row];
    if (!gene) return;
    this.close();
    this.input.blur();
    this.onchosen(gene);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.value = this.gene?.name ?? "";
  }
}
