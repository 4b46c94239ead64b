// Details of a point and of an area, in words and tables.
const number = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));

function element(tag, text, classes = "") {
  const made = document.createElement(tag);
  if (text != null) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

/** Table of rows of cells; cells that are numbers stand to the right. */
function tableOf(head, rows) {
  const made = element("table");
  const top = made.createTHead().insertRow();
  for (const [k, text] of head.entries()) top.append(element("th", text, k ? "n" : ""));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const cell of row) line.append(cell instanceof Node ? cell : element("td", cell, /^[-–\d]/.test(cell) ? "n" : ""));
  }
  return made;
}

export function describePoint(root, about, panel) {
  const heading = element("h2", `Point ${about.name}`);
  const parts = [heading];
  const gene = panel.gene?.name;
  if (about.predicted != null && panel.set.kind === "expression") {
    parts.push(element("p", `${gene}: ${number(about.predicted)}`, "big"));
    if (about.low != null) {
      parts.push(element("p", `predicted; nine in ten measurements here would lie between ${number(about.low)} and ${number(about.high)}`));
    }
  } else if (about.predicted != null) {
    parts.push(element("p", `${gene}: ${number(about.predicted)}`, "big"), element("p", "probability"));
  }
  if (about.measured != null) {
    const outside = about.low != null && (about.measured < about.low || about.measured > about.high);
    parts.push(element("p", `measured: ${number(about.measured)}${outside ? " (outside that interval)" : ""}`));
  }
  if (about.cluster) parts.push(element("p", `cluster ${about.cluster}`));
  if (about.failed) parts.push(element("p", `The measurement failed: ${about.failed}.`, "odd"));
  if (about.ood) {
    const why = about.ood_reason ? ` (${about.ood_reason})` : "";
    parts.push(element("p", `The image here is unlike the training images${why}: believe the prediction less.`, "odd"));
  }
  if (!about.in_tissue) parts.push(element("p", "This point lies off the tissue."));
  if (about.neighbours.length) {
    parts.push(element("p", "Nearest measurements:"));
    parts.push(tableOf(["section", "µm away", gene], about.neighbours.map(
      (one) => [one.section, number(one.distance_um, 0), number(one.measured)])));
  }
  root.replaceChildren(...parts);
}

export function describeArea(root, about, save) {
  const parts = [element("h2", "Area")];
  const size = about.area_mm2 == null ? "" : `, ${about.area_mm2.toPrecision(2)} mm²`;
  parts.push(element("p", `${about.points} points inside${size}; compared with all others of the section over ${about.compared} genes.`));
  const files = element("p", null, "files");
  for (const [text, kind] of [["Table (CSV)", "csv"], ["Outline (GeoJSON)", "geojson"]]) {
    const button = files.appendChild(element("button", text));
    button.onclick = () => save(kind);
  }
  parts.push(files);
  if (about.modules.length) {
    parts.push(element("p", "Gene sets (mean score, sd units):"));
    parts.push(tableOf(["set", "inside", "outside"], about.modules.map(
      (one) => [`${one.name} (${one.genes})`, number(one.inside), number(one.outside)])));
  }
  parts.push(element("p", "Genes that differ most (sd units):"));
  parts.push(tableOf(["gene", "inside", "outside", "apart"], about.genes.map((one) => {
    const cell = element("td", one.name);
    if (one.verdict === "weak") cell.append(" ", element("b", "weak", "badge weak"));
    return [cell, number(one.mean_inside), number(one.mean_outside), number(one.difference)];
  })));
  root.replaceChildren(...parts);
}
