// One view: a slide, points over it, and what they show.
import * as api from "./api.js";
import { MAPS, PALETTE, gradient, palette, table } from "./colours.js";
import { GeneSearch } from "./search.js";
import { Marks } from "./marks.js";
import { PointIndex, PointLayer } from "./points.js";

export const LAYERS = {
  predicted: "predicted",
  measured: "measured",
  both: "measured, else predicted",
  sd: "uncertainty (sd)",
  ood: "unlike training",
  cluster: "clusters",
};
const NEEDS_GENE = new Set(["predicted", "measured", "both", "sd"]);
const WARNINGS = {
  no: "Held-out sections do not tell this gene from chance: do not read its prediction.",
  weak: "Held-out sections show this gene only weakly: a pattern here may be wrong.",
};
const USUAL = { opacity: 0.75, size: 1, map: "viridis" };

export class Panel {
  constructor(app, wanted = {}) {
    this.app = app;
    this.wanted = { ...wanted };
    this.root = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.part = (role) => this.root.querySelector(`[data-role="${role}"]`);
    this.layerData = null;
    this.hidden = false;
    this.points = new PointLayer(this.root.querySelector(".points"));
    this.search = new GeneSearch(this.root.querySelector(".gene"), (text) => this.findGenes(text));
    this.search.onchosen = (gene) => this.showGene(gene);
    for (const name of MAPS) this.part("map").add(new Option(name, name));
    for (const [role, value] of Object.entries(USUAL)) this.part(role).value = wanted[role] ?? value;
    this.listen();
  }

  /** Called once the panel is in the page: the slide viewer needs its size. */
  open() {
    this.viewer = OpenSeadragon({
      element: this.root.querySelector(".osd"),
      prefixUrl: "/",
      showNavigationControl: false,
      drawer: "canvas",
      crossOriginPolicy: false,
      maxZoomPixelRatio: 4,
      animationTime: 0.4,
      gestureSettingsMouse: { clickToZoom: false },
      imageLoaderLimit: 6,
    });
    this.marks = new Marks(this);
    const moved = () => {
      this.draw();
      this.app.moved(this);
    };
    for (const event of ["update-viewport", "animation", "resize", "open"]) this.viewer.addHandler(event, moved);
    this.viewer.addHandler("tile-load-failed", (event) => this.app.say(`A tile could not be read: ${event.message}`));
  }

  listen() {
    this.part("image").onchange = () => this.showImage();
    this.part("set").onchange = () => this.showSet();
    this.part("layer").onchange = () => this.showLayer();
    this.part("auto").onclick = () => this.setRange(this.layerData?.low, this.layerData?.high);
    for (const role of ["map", "opacity", "size", "low", "high"]) {
      this.part(role).oninput = () => this.restyle();
    }
    this.root.addEventListener("pointerenter", () => this.app.activate(this));
    this.root.addEventListener("focusin", () => this.app.activate(this));
  }

  get set() {
    return this.section?.sets.find((one) => one.id === this.part("set").value) ?? null;
  }

  get layer() {
    return this.part("layer").value;
  }

  get gene() {
    return this.search.gene;
  }

  /** Show a section, with the same kind of points, layer and gene as before where it has them. */
  async showSection(section) {
    const before = this.section && this.state();
    this.section = section;
    const choice = { ...(before ?? {}), ...this.wanted };
    const images = [["H&E", section.image], ...section.ihc.map((one) => [one.name, one.id])];
    this.fill("image", images.map(([name, id]) => [name, id]), choice.image);
    this.fill("set", section.sets.map((one) => [`${one.name} (${one.points})`, one.id, one.name]), choice.set);
    this.wanted = {};
    await this.showImage();
    await this.showSet(choice);
  }

  /** Options [text, value, key]; the one whose key or text was chosen before stays chosen. */
  fill(role, options, chosen) {
    const select = this.part(role);
    select.replaceChildren(...options.map(([text, value, key]) => {
      const option = new Option(text, value);
      option.dataset.key = key ?? text;
      return option;
    }));
    const again = [...select.options].find((option) => option.dataset.key === chosen);
    if (again) select.value = again.value;
    select.disabled = !options.length;
  }

  async showImage() {
    const id = this.part("image").value;
    if (this.shownImage === id) return;
    const view = this.viewer.isOpen() ? this.viewer.viewport.getBounds(true) : null;
    const about = await api.image(id);
    this.shownImage = id;
    this.about = about;
    const source = {
      width: about.width,
      height: about.height,
      tileSize: about.tile_size,
      tileOverlap: 0,
      minLevel: 0,
      maxLevel: about.max_level,
      getTileUrl: (level, x, y) => `/api/images/${id}/${level}/${x}_${y}.jpg`,
    };
    await new Promise((done, failed) => {
      this.viewer.addOnceHandler("open", done);
      this.viewer.addOnceHandler("open-failed", (event) => failed(new Error(event.message)));
      this.viewer.open(source);
    });
    const wanted = this.app.takeView(this);
    if (wanted ?? view) this.viewer.viewport.fitBounds(wanted ?? view, true);
    this.app.remember();
  }

  async showSet(choice = this.state()) {
    const one = this.set;
    const options = (one?.layers ?? []).map((name) => [LAYERS[name], name, name]);
    this.fill("layer", options, choice.layer);
    this.places = one ? await api.points(one.id) : new Float32Array();
    const odd = one?.layers.includes("ood") ? (await api.values(one.id, "ood")).values : null;
    this.points.setPlaces(this.places, odd && odd.map((v) => (v > 1 ? 1 : 0)));
    this.index = new PointIndex(this.places, one ? one.diameter_px * 0.75 : 1);
    this.marks.clear();
    const gene = choice.gene ?? this.gene?.name;
    const found = one && (await this.findGenes(gene ?? "")).find((g) => !gene || g.name === gene);
    this.search.set(found ?? (one ? (await this.findGenes(""))[0] : null));
    await this.showLayer(choice);
  }

  async findGenes(text) {
    return this.set ? (await api.genes(this.set.id, text)).genes : [];
  }

  async showGene(gene) {
    this.search.set(gene);
    if (!NEEDS_GENE.has(this.layer)) {
      const first = [...this.part("layer").options].find((option) => NEEDS_GENE.has(option.value));
      if (first) this.part("layer").value = first.value;
    }
    await this.showLayer();
  }

  async showLayer(choice = {}) {
    const { set, layer, gene } = this;
    if (!set || !layer) {
      this.layerData = null;
      this.restyle();
      return;
    }
    const asked = (this.asked = Symbol("the newest request wins"));
    const found = await api.values(set.id, layer, NEEDS_GENE.has(layer) ? gene?.name : undefined);
    if (asked !== this.asked) return;
    this.layerData = found;
    this.points.setValues(found.values);
    this.setRange(choice.low ?? found.low, choice.high ?? found.high);
    this.warn();
  }

  warn() {
    const verdict = NEEDS_GENE.has(this.layer) ? this.gene?.verdict : null;
    const text = this.layer === "measured" ? undefined : WARNINGS[verdict];
    const warning = this.root.querySelector(".warning");
    warning.hidden = !text;
    warning.className = `warning ${verdict ?? ""}`;
    warning.textContent = text ?? "";
    const badge = this.root.querySelector(".panel > .bar > .badge");
    badge.hidden = !verdict;
    badge.className = `badge ${verdict ?? ""}`;
    const score = this.gene?.score;
    badge.textContent = verdict ? `${verdict}${score == null ? "" : `, held-out r ${score.toFixed(2)}`}` : "";
    badge.title = this.gene?.ceiling == null ? "" : `the noise of the counts allows r ${this.gene.ceiling.toFixed(2)}`;
  }

  setRange(low, high) {
    if (low === undefined) return;
    const digits = (v) => Number(Number(v).toPrecision(3));
    this.part("low").value = digits(low);
    this.part("high").value = digits(high);
    this.restyle();
  }

  /** Range of colours; clusters have one colour each. */
  get range() {
    if (this.layer === "cluster") return [0, 255];
    return [Number(this.part("low").value), Number(this.part("high").value)];
  }

  restyle() {
    const clusters = this.layer === "cluster";
    this.points.setColours(clusters ? palette() : table(this.part("map").value));
    for (const role of ["map", "low", "high", "auto"]) this.part(role).disabled = clusters;
    this.drawLegend();
    this.draw();
    this.app.remember();
  }

  drawLegend() {
    const legend = this.root.querySelector(".legend");
    legend.replaceChildren();
    legend.hidden = !this.layerData;
    if (!this.layerData) return;
    const line = (text, parent = legend) => parent.appendChild(Object.assign(document.createElement("div"), { textContent: text }));
    if (this.layer === "cluster") {
      (this.set.clusters ?? []).forEach((name, k) => {
        const row = line("");
        row.appendChild(document.createElement("i")).style.background = PALETTE[k % PALETTE.length];
        row.append(name);
      });
      return;
    }
    line(this.title());
    const ramp = legend.appendChild(document.createElement("div"));
    ramp.className = "ramp";
    ramp.style.background = gradient(this.part("map").value);
    const ends = legend.appendChild(document.createElement("div"));
    ends.className = "ends";
    for (const value of this.range) ends.appendChild(document.createElement("span")).textContent = value;
    line(this.layerData.unit === "log1p CP10k" ? "log of counts per 10,000" : this.layerData.unit);
  }

  title() {
    return NEEDS_GENE.has(this.layer) ? `${this.gene?.name ?? ""}: ${LAYERS[this.layer]}` : LAYERS[this.layer];
  }

  /** Where slide pixel 0, 0 lies on the stage and how large a pixel is. */
  frame() {
    const item = this.viewer?.world.getItemAt(0);
    if (!item) return null;
    const at = (x) => item.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0));
    const corner = at(0);
    // points lie on the H&E slide; another image is shown over the same width
    const step = ((at(this.about.width).x - corner.x) / this.about.width) * (this.about.width / this.section.width);
    return { corner, step };
  }

  draw() {
    const frame = this.frame();
    if (!frame) return;
    const [low, high] = this.range;
    const opacity = this.hidden ? 0 : Number(this.part("opacity").value);
    const diameter = (this.set?.diameter_px ?? 1) * Number(this.part("size").value);
    this.points.draw({ ...frame, low, high, opacity, diameter });
    this.marks.draw(frame);
  }

  /** What a shared address keeps; names, since identifiers are of one run. */
  state() {
    const key = (role) => this.part(role).selectedOptions[0]?.dataset.key;
    const number = (role) => Number(this.part(role).value);
    const auto = this.layerData && ["low", "high"].every(
      (end) => Number(this.layerData[end].toPrecision(3)) === number(end));
    return {
      image: key("image"),
      set: key("set"),
      layer: key("layer"),
      gene: this.gene?.name,
      map: this.part("map").value,
      opacity: number("opacity"),
      size: number("size"),
      ...(auto || !this.layerData ? {} : { low: number("low"), high: number("high") }),
    };
  }
}
