// The page: sections, one or two panels, keyboard, pictures, shared addresses.
import * as api from "./api.js";
import { Panel } from "./panel.js";
import { describeArea, describePoint } from "./side.js";

const HOVER_MS = 80;
const $ = (id) => document.getElementById(id);

class App {
  constructor(project) {
    this.project = project;
    this.panels = [];
    this.wanted = readAddress();
    $("title").textContent = project.title;
    document.title = `deepspace: ${project.title}`;
    $("section").max = project.sections.length - 1;
    $("sections").hidden = project.sections.length < 2;
    $("section").oninput = () => this.run(() => this.showSection());
    for (const id of ["two", "lasso", "picture", "share", "help"]) {
      $(id).onclick = () => this.run(() => this[id]());
    }
    $("close").onclick = () => $("helping").close();
    document.addEventListener("keydown", (event) => this.run(() => this.key(event)));
  }

  /** Run something; what goes wrong is told on the page. */
  async run(work) {
    try {
      await work();
    } catch (error) {
      this.say(error.message);
    }
  }

  say(text) {
    $("message").textContent = text;
    $("message").hidden = !text;
  }

  async start() {
    const first = this.project.sections.findIndex((s) => s.name === this.wanted.section);
    $("section").value = Math.max(0, first);
    const panels = this.wanted.panels?.slice(0, 2) ?? [];
    for (const wanted of panels.length ? panels : [{}]) this.addPanel(wanted);
    $("two").setAttribute("aria-pressed", String(this.panels.length === 2));
    await this.showSection();
    document.body.dataset.ready = "yes";
  }

  addPanel(wanted) {
    const panel = new Panel(this, wanted);
    $("panels").append(panel.root);
    panel.open();
    this.panels.push(panel);
    this.active ??= panel;
    return panel;
  }

  get section() {
    return this.project.sections[Number($("section").value)];
  }

  async showSection() {
    const { section } = this;
    const depth = section.z_um == null ? "" : ` (${section.z_um} µm deep)`;
    $("section-name").textContent = `${section.name}${depth}`;
    this.forgetPoint();
    await Promise.all(this.panels.map((panel) => panel.showSection(section)));
    this.say("");
    this.remember();
  }

  activate(panel) {
    this.active = panel;
  }

  async two() {
    if (this.panels.length === 2) {
      this.removePanel(this.panels[1]);
    } else {
      const panel = this.addPanel(this.otherState());
      await panel.showSection(this.section);
    }
    $("two").setAttribute("aria-pressed", String(this.panels.length === 2));
    for (const panel of this.panels) panel.draw();
    this.remember();
  }

  /** The second view begins with what is most often compared: measured beside predicted. */
  otherState() {
    const state = this.panels[0].state();
    const has = this.panels[0].set?.layers ?? [];
    const layer = state.layer !== "measured" && has.includes("measured") ? "measured" : state.layer;
    return { ...state, layer };
  }

  /** Both views show the same place; the one under the mouse leads, or they would hold each other. */
  moved(panel) {
    if (panel !== this.active || !panel.viewer.isOpen()) return;
    for (const other of this.panels) {
      if (other !== panel && other.viewer?.isOpen()) {
        const { viewport } = other.viewer;
        viewport.panTo(panel.viewer.viewport.getCenter(true), true);
        viewport.zoomTo(panel.viewer.viewport.getZoom(true), undefined, true);
        other.draw();
      }
    }
    this.remember();
  }

  /** View of a shared address, once; a second panel takes the first one's. */
  takeView(panel) {
    const other = this.panels.find((one) => one !== panel && one.viewer.isOpen());
    if (other) return other.viewer.viewport.getBounds(true);
    const view = this.wanted.view;
    this.wanted.view = null;
    return view ? new OpenSeadragon.Rect(...view) : null;
  }

  hover(panel, index) {
    clearTimeout(this.timer);
    if (this.kept) return;
    if (index < 0) {
      this.forgetPoint();
      return;
    }
    this.timer = setTimeout(() => this.run(() => this.showPoint(panel, index)), HOVER_MS);
  }

  async keep(panel, index) {
    await this.run(async () => {
      this.kept = index >= 0;
      if (this.kept) await this.showPoint(panel, index);
      else this.forgetPoint();
    });
  }

  async showPoint(panel, index) {
    const about = await api.point(panel.set.id, index, panel.gene?.name);
    for (const one of this.panels) {
      one.marks.about = about;
      one.draw();
    }
    describePoint($("point"), about, panel);
  }

  forgetPoint() {
    this.kept = false;
    for (const panel of this.panels) {
      if (panel.marks?.about) {
        panel.marks.about = null;
        panel.draw();
      }
    }
  }

  lasso() {
    const { marks } = this.active;
    const on = !marks.drawing;
    if (on) marks.startDrawing();
    else marks.stopDrawing();
    $("lasso").setAttribute("aria-pressed", String(on));
    this.say(on ? "Draw around an area with the mouse button held down." : "");
  }

  async describeArea(panel, polygon) {
    $("lasso").setAttribute("aria-pressed", "false");
    await this.run(async () => {
      this.say("Comparing the genes of the area ...");
      const body = { polygon, name: "area" };
      const about = await api.region(panel.set.id, body);
      this.say("");
      describeArea($("region"), about, (kind) => this.run(async () => {
        save(await api.regionFile(panel.set.id, kind, body), `${this.section.name}-area.${kind}`);
      }));
      $("region").scrollIntoView({ block: "nearest" });
    });
  }

  /** Save what is shown, with legends, as one PNG. */
  async picture() {
    const dense = window.devicePixelRatio || 1;
    const boxes = this.panels.map((panel) => panel.root.querySelector(".stage").getBoundingClientRect());
    const canvas = document.createElement("canvas");
    canvas.width = boxes.reduce((sum, box) => sum + box.width, 0) * dense;
    canvas.height = (boxes[0].height + 26) * dense;
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    let left = 0;
    for (const [k, panel] of this.panels.entries()) {
      const { width, height } = boxes[k];
      for (const layer of [panel.viewer.drawer.canvas, panel.points.canvas, panel.marks.canvas]) {
        pen.drawImage(layer, left, 26, width, height);
      }
      const verdict = panel.gene?.verdict && panel.layer !== "measured" ? ` [${panel.gene.verdict}]` : "";
      pen.fillStyle = "#111";
      pen.font = "14px system-ui, 'DejaVu Sans', sans-serif";
      const range = panel.layer === "cluster" ? "" : `, ${panel.range.join(" to ")}`;
      pen.fillText(`${this.section.name}  ${panel.title()}${verdict}${range}`, left + 8, 18);
      left += width;
    }
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    save(blob, `${this.section.name}-${this.active.gene?.name ?? this.active.layer}.png`);
  }

  async share() {
    this.remember(true);
    await navigator.clipboard.writeText(location.href);
    this.say("The address of this view is copied. It opens in this browser while deepspace view runs.");
  }

  help() {
    $("helping").showModal();
  }

  /** Keep what is shown in the address, a moment later. */
  remember(now = false) {
    clearTimeout(this.noting);
    if (!document.body.dataset.ready) return;
    const note = () => {
      const bounds = this.panels[0].viewer.viewport?.getBounds();
      const view = bounds && [bounds.x, bounds.y, bounds.width, bounds.height].map((v) => Number(v.toFixed(5)));
      const state = { section: this.section.name, view, panels: this.panels.map((panel) => panel.state()) };
      history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
    };
    if (now) note();
    else this.noting = setTimeout(note, 300);
  }

  async key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("helping").open) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range") return;
    const act = {
      "/": () => this.active.search.input.focus(),
      "?": () => this.help(),
      "[": () => this.step(-1),
      "]": () => this.step(1),
      h: () => this.hide(),
      l: () => this.lasso(),
      s: () => this.picture(),
      c: () => this.share(),
      Escape: () => (this.active.marks.drawing ? this.lasso() : this.forgetPoint()),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (event.shiftKey && event.code === "Digit2") await this.two();
    else if (/^[1-6]$/.test(event.key)) await this.pickLayer(Number(event.key) - 1);
    else if (act) await act();
    else return;
    event.preventDefault();
  }

  async step(by) {
    const next = Number($("section").value) + by;
    if (next < 0 || next >= this.project.sections.length) return;
    $("section").value = next;
    await this.showSection();
  }

  hide() {
    for (const panel of this.panels) {
      panel.hidden = !panel.hidden;
      panel.draw();
    }
  }

  async pickLayer(k) {
    const select = this.active.part("layer");
    if (!select.options[k]) return;
    select.selectedIndex = k;
    await this.active.showLayer();
  }

  removePanel(panel) {
    panel.viewer.destroy();
    panel.root.remove();
    this.panels = this.panels.filter((one) => one !== panel);
    this.active = this.panels[0];
  }
}

function readAddress() {
  try {
    return JSON.parse(decodeURIComponent(location.hash.slice(1))) ?? {};
  } catch {
    return {};
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

try {
  const app = new App(await api.project());
  window.deepspace = app;
  await app.run(() => app.start());
} catch (error) {
  $("message").textContent = error.message;
  $("message").hidden = false;
}
