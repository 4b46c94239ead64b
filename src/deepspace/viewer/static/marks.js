// What is drawn over the points: scale bar, the point in question with its neighbours, an area.
const NICE = [1, 2, 5];
const RING = "#d0008f";

/** Largest length of 1, 2 or 5 times a power of ten that is at most `most`. */
export function niceLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...NICE.map((n) => n * power).filter((length) => length <= most));
}

export class Marks {
  constructor(panel) {
    this.panel = panel;
    this.canvas = panel.root.querySelector(".marks");
    this.stage = panel.root.querySelector(".stage");
    this.tip = panel.root.querySelector(".tip");
    this.clear();
    this.stage.addEventListener("mousemove", (event) => this.hover(event));
    this.stage.addEventListener("mouseleave", () => this.panel.app.hover(this.panel, -1));
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.extend(event));
    this.canvas.addEventListener("pointerup", () => this.finish());
    panel.viewer.addHandler("canvas-click", (event) => {
      if (event.quick) this.panel.app.keep(this.panel, this.under(event.position));
    });
  }

  clear() {
    this.about = null;
    this.index = -1;
    this.area = null;
    this.drawing = false;
    this.stage.classList.remove("drawing");
    this.tip.hidden = true;
  }

  /** Place on the slide, in its pixels, of a place on the stage. */
  toSlide({ x, y }) {
    const { corner, step } = this.panel.frame();
    return [(x - corner.x) / step, (y - corner.y) / step];
  }

  /** Number of the point at a place on the stage, or -1. */
  under(place) {
    if (!this.panel.index || !this.panel.frame()) return -1;
    return this.panel.index.nearest(...this.toSlide(place));
  }

  at(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  hover(event) {
    if (this.drawing) return;
    const place = this.at(event);
    const index = this.under(place);
    if (index !== this.index) this.panel.app.hover(this.panel, index);
    this.index = index;
    const value = this.panel.layerData?.values[index];
    this.tip.hidden = index < 0 || value === undefined;
    if (this.tip.hidden) return;
    const clusters = this.panel.layer === "cluster" && this.panel.set.clusters;
    const shown = clusters ? clusters[value] : Number.isNaN(value) ? "nothing here" : value.toFixed(2);
    this.tip.textContent = clusters ? `cluster ${shown}` : shown;
    this.tip.style.left = `${place.x + 14}px`;
    this.tip.style.top = `${place.y + 10}px`;
  }

  startDrawing() {
    this.clear();
    this.drawing = true;
    this.stage.classList.add("drawing");
    this.panel.draw();
  }

  stopDrawing() {
    this.drawing = false;
    this.corners = null;
    this.stage.classList.remove("drawing");
    this.panel.draw();
  }

  begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.corners = [this.toSlide(this.at(event))];
  }

  extend(event) {
    if (!this.corners) return;
    this.corners.push(this.toSlide(this.at(event)));
    this.panel.draw();
  }

  finish() {
    const corners = this.corners;
    this.stopDrawing();
    if (!corners || corners.length < 3) return;
    const every = Math.ceil(corners.length / 500);
    this.area = corners.filter((_, k) => k % every === 0);
    this.panel.draw();
    this.panel.app.describeArea(this.panel, this.area);
  }

  draw(frame) {
    const { canvas } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const on = ([x, y]) => [frame.corner.x + x * frame.step, frame.corner.y + y * frame.step];
    this.#area(pen, on);
    this.#neighbours(pen, on, frame.step);
    this.#scaleBar(pen, frame.step, height);
  }

  #area(pen, on) {
    const corners = this.corners ?? this.area;
    if (!corners) return;
    pen.beginPath();
    corners.map(on).forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (!this.corners) pen.closePath();
    pen.fillStyle = "#0072b222";
    pen.fill();
    for (const [colour, wide] of [["#fff", 4], ["#00568f", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = wide;
      pen.stroke();
    }
  }

  #neighbours(pen, on, step) {
    if (!this.about) return;
    const radius = Math.max(5, (this.panel.set.diameter_px / 2) * step);
    const centre = on([this.about.x, this.about.y]);
    for (const one of this.about.neighbours) {
      const place = on([one.x, one.y]);
      const own = one.section === this.panel.section.name;
      for (const [colour, wide] of [["#ffffffcc", 4], [own ? "#111" : "#7a4b00", 1.5]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = wide;
        pen.setLineDash(own ? [] : [4, 3]);
        pen.beginPath();
        pen.moveTo(...centre);
        pen.lineTo(...place);
        pen.stroke();
        pen.beginPath();
        pen.arc(...place, radius, 0, 2 * Math.PI);
        pen.stroke();
      }
    }
    pen.setLineDash([]);
    pen.strokeStyle = RING;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.arc(...centre, radius + 2, 0, 2 * Math.PI);
    pen.stroke();
  }

  #scaleBar(pen, step, height) {
    const { mpp } = this.panel.section;
    if (!mpp) return;
    const length = niceLength((160 / step) * mpp);
    const px = (length / mpp) * step;
    const [x, y] = [14, height - 18];
    const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    pen.fillStyle = "#ffffffe0";
    pen.fillRect(x - 7, y - 22, px + 14, 32);
    pen.fillStyle = "#111";
    pen.fillRect(x, y, px, 4);
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillText(text, x, y - 6);
  }
}
