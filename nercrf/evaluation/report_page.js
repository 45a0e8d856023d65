"use strict";
/* Draws the report from the JSON in #data. Whatever comes from the data goes into the page as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const CAUSES = ["type", "split", "merged", "boundary", "both", "missed", "spurious"];
const MEANINGS = {
  type: "right borders, wrong type", split: "one entity found as several", merged: "several entities found as one",
  boundary: "right type, wrong borders", both: "wrong type and borders", missed: "nothing found",
  spurious: "found where nothing is annotated",
};
const PROPERTIES = {
  length: "Words in the entity", sentence: "Words in the sentence", position: "Place in the sentence", letters: "Capitals",
  digits: "Digits", training: "Seen in training", frequency: "Times in training", window: "Distance to a window's edge",
};
const TRAINING = {
  new: "new in training", seen: "seen in training", another: "seen with another type", both: "seen with several types",
};
const PAGE = 25; // errors that are shown at once
const ENOUGH_DOCUMENTS = 10; // as in evaluation_config.py

/* Elements and texts */

const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const visible = (text) => String(text).replace(ACTING, (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));

function add(parent, name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value ?? "";
    else if (key === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : visible(value));
  }
  for (const child of children) element.append(child instanceof Node ? child : visible(child));
  parent.append(element);
  return element;
}
const make = (name, properties, ...children) => add(document.createDocumentFragment(), name, properties, ...children);
const isolated = (text) => make("bdi", {}, text);

function draw(parent, name, properties, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = visible(text);
  parent.append(element);
  return element;
}

const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const ratio = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)}%` : "–");
const ends = (interval, digits = 4) => (interval ? `${ratio(interval[0], digits)} to ${ratio(interval[1], digits)}` : "");

function section(id, title, text) {
  const element = add(main, "section", { id, "aria-labelledby": `${id}-title` });
  const head = add(element, "div", { class: "head" });
  add(head, "h2", { id: `${id}-title` }, title);
  if (text) add(element, "p", { class: "quiet" }, text);
  add(add(document.getElementById("contents"), "li"), "a", { href: `#${id}` }, title);
  return element;
}

/* Tables, and what of them is saved as CSV */

function table(parent, { caption, heads, rows, file, total = 0, wide = true }) {
  if (file) saving(parent, file, heads, rows);
  const holder = add(parent, "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption });
  const element = add(holder, "table", { class: wide ? "wide" : "" });
  add(element, "caption", {}, caption);
  const head = add(add(element, "thead"), "tr");
  const told = (cell) => typeof cell === "string" && !/^([–·\d]|$)/.test(cell);
  const texts = heads.map((_, column) => column > 0 && rows.some((row) => told(row[column])));
  heads.forEach((each, column) => add(head, "th", { scope: "col", class: texts[column] ? "text" : null }, each));
  const body = add(element, "tbody");
  rows.forEach((cells, place) => {
    const row = add(body, "tr", { class: rows.length - place <= total ? "total" : "" });
    cells.forEach((cell, column) => {
      const shown = cell !== null && typeof cell === "object" && !(cell instanceof Node) ? cell.shown : cell;
      const content = shown instanceof Node ? shown : isolated(typeof shown === "number" ? number(shown) : shown);
      add(row, column ? "td" : "th", column ? { class: texts[column] ? "text" : null } : { scope: "row" }, content);
    });
  });
  return element;
}

function saving(parent, file, heads, rows) {
  const head = parent.querySelector(":scope > .head") || parent;
  const plain = (cell) => {
    const value = cell !== null && typeof cell === "object" && !(cell instanceof Node) ? cell.value : cell;
    return value instanceof Node ? value.textContent : value === null || value === undefined ? "" : String(value);
  };
  // a cell that a spreadsheet would take for a formula begins with an apostrophe
  const quoted = (text) => `"${(/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text).replaceAll('"', '""')}"`;
  const save = () => {
    const lines = [heads, ...(typeof rows === "function" ? rows() : rows)].map((row) => row.map((cell) => quoted(plain(cell))).join(","));
    const address = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    const link = make("a", { href: address, download: `${file}.csv` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  add(head, "button", { type: "button", class: "csv", "aria-label": `Download ${file} as CSV`, on: { click: save } }, "CSV");
}

function bar(value, interval) {
  const element = make("span", { class: "bar", "aria-hidden": "true" });
  add(element, "i").style.inlineSize = `${100 * value}%`;
  if (interval) {
    const whisker = add(element, "b");
    whisker.style.insetInlineStart = `${100 * interval[0]}%`;
    whisker.style.inlineSize = `${100 * (interval[1] - interval[0])}%`;
  }
  return element;
}

/* Charts */

function chart(parent, { title, curves, across, low, high, marks = [], left = null, right = null }) {
  const points = curves.flatMap((curve) => curve.points);
  const figure = add(parent, "figure");
  const [width, height, x0, y0] = [320, 200, 44, 26];
  const xs = points.map((point) => point[0]);
  const [first, last] = [left ?? Math.min(...xs), right ?? Math.max(...xs)];
  const x = (value) => x0 + ((value - first) / (last - first || 1)) * (width - x0 - 10);
  const y = (value) => height - y0 - ((value - low) / (high - low || 1)) * (height - y0 - 8);
  const svg = draw(figure, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  draw(svg, "title", {}, title);
  for (let step = 0; step <= 4; step += 1) {
    const value = low + ((high - low) * step) / 4;
    draw(svg, "line", { class: "axis", x1: x0, x2: width - 10, y1: y(value), y2: y(value) });
    draw(svg, "text", { x: x0 - 5, y: y(value) + 4, "text-anchor": "end" }, short(value, high - low));
  }
  for (const value of [first, (first + last) / 2, last]) {
    const anchor = value === first ? "start" : value === last ? "end" : "middle";
    draw(svg, "text", { x: x(value), y: height - y0 + 15, "text-anchor": anchor }, short(value, last - first));
    if (first === last) break;
  }
  for (const [from, to] of marks) draw(svg, "line", { class: "axis", "stroke-dasharray": "4 3", x1: x(from[0]), y1: y(from[1]), x2: x(to[0]), y2: y(to[1]) });
  curves.forEach((curve, place) => {
    const kind = `c${curve.kind ?? place}`;
    const path = curve.points.map((point, at) => `${at ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    draw(svg, "path", { class: `line ${kind}`, d: path });
    if (curve.points.length <= 60) {
      for (const point of curve.points) {
        const dot = draw(svg, "circle", { class: `dot ${kind}`, cx: x(point[0]), cy: y(point[1]), r: point[2] ?? 2.5 });
        draw(dot, "title", {}, point[3] ?? `${short(point[0])}: ${short(point[1])}`);
      }
    }
  });
  add(figure, "figcaption", {}, `${title}, by ${across}`);
  const legend = add(figure, "ul", { class: "legend" });
  if (curves.length > 1) curves.forEach((curve, place) => add(legend, "li", { class: `c${curve.kind ?? place}` }, curve.name));
  return svg;
}

function short(value, range = Math.abs(value)) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(0);
  const digits = range >= 20 ? 0 : range >= 2 ? 1 : range >= 0.02 ? 2 : 4;
  return Number.isInteger(value) ? number(value) : value.toFixed(digits);
}

/* Sections */

function headline(split) {
  const over = split.intervals_over || { unit: "sentences", documents: null };
  const drawn = over.unit === "documents" ? `${number(over.count)} documents` : "sentences";
  const part = section("headline", "Results", `Micro averages over exact matches of borders and type; below each figure its 95 % interval, by bootstrap over the ${drawn}.`);
  const list = add(part, "dl", { class: "stats" });
  const stat = (name, value, below, kind = "") => {
    const box = add(list, "div", { class: `stat ${kind}` });
    add(box, "dt", {}, name);
    add(add(box, "dd"), "span", { class: "value" }, value);
    if (below) add(box, "dd", { class: "ends" }, below);
  };
  const spread = split.intervals || {};
  stat("F1", ratio(split.f1), ends(spread.f1), "first");
  stat("Precision", ratio(split.precision), ends(spread.precision));
  stat("Recall", ratio(split.recall), ends(spread.recall));
  stat("Macro F1 (mean of types)", ratio(split.macro.f1), ends((split.macro.intervals || {}).f1));
  if ("unseen_gold" in split) stat("F1 on unseen names", ratio(split.unseen_f1), `${number(split.unseen_gold)} of ${number(split.gold)} entities`);
  stat("Sentences", number(split.sentences), `${number(split.gold)} annotated, ${number(split.predicted)} predicted entities`);
  stat("Loss", ratio(split.loss, 3), "nats a sentence; lower is better");
  const notes = [];
  if (split.gold < 100) notes.push(`Only ${number(split.gold)} annotated entities: the intervals are wide, and differences of some points mean nothing.`);
  if (over.documents && over.documents < ENOUGH_DOCUMENTS) {
    notes.push(over.unit === "documents"
      ? `The intervals are drawn over only ${number(over.documents)} documents: they may be too short.`
      : `Only ${number(over.documents)} documents are too few to draw, so the intervals are drawn over sentences, as if those of one document were independent: they may be too short.`);
  }
  if (split.unannotated) notes.push(`${number(split.unannotated)} sentences are not annotated and left out.`);
  if (split.unlearnable) notes.push(`${number(split.unlearnable)} annotated entities share words with others, so that one tag a word cannot hold them.`);
  for (const note of notes) add(part, "p", { class: "note" }, note);
  const ways = add(part, "details");
  add(ways, "summary", {}, "Other ways to count");
  const rows = Object.entries(split.semeval).map(([way, each]) => [way, ...["f1", "precision", "recall"].map((name) => ratio(each[name])), each.correct, each.incorrect, each.partial, each.missed, each.spurious]);
  table(ways, { caption: "SemEval-2013: strict, exact borders, partial borders, type", file: "semeval", rows, heads: ["Way", "F1", "Precision", "Recall", "Correct", "Incorrect", "Partial", "Missed", "Spurious"] });
}

function types(split) {
  const part = section("types", "Types");
  const names = Object.entries(split.types).sort(([a, x], [b, y]) => y.gold - x.gold || (a < b ? -1 : 1));
  if (!names.length) {
    add(part, "p", { class: "note" }, "No entity is annotated, and none was found.");
    return;
  }
  const line = (name, each) => [
    name, { shown: bar(each.f1, (each.intervals || {}).f1), value: "" },
    { shown: ratio(each.f1), value: each.f1 }, { shown: ends((each.intervals || {}).f1, 3), value: ends((each.intervals || {}).f1, 6) },
    { shown: ratio(each.precision), value: each.precision }, { shown: ratio(each.recall), value: each.recall }, each.gold ?? "", each.predicted ?? "", each.correct ?? "",
  ];
  const rows = names.map(([name, each]) => line(name, each));
  rows.push(line("micro average", split), line("macro average", split.macro), line("weighted average", split.weighted));
  table(part, {
    caption: "Figures of each type, most frequent first; the thin line is the 95 % interval of F1", file: "types", rows, total: 3,
    heads: ["Type", "", "F1", "95 % interval", "Precision", "Recall", "Annotated", "Predicted", "Correct"],
  });
}

function learning() {
  const part = section("learning", "Learning curve");
  const history = data.training ? data.training.history : [];
  if (!history.length) {
    add(part, "p", { class: "note" }, "The log of the training is not known: it stands in history.jsonl of the folder of a run.");
    return;
  }
  const charts = add(part, "div", { class: "charts" });
  const curve = (name, key, kind) => ({ name, kind, points: history.filter((row) => typeof row[key] === "number").map((row) => [row.step, row[key]]) });
  const some = (curves) => curves.filter((each) => each.points.length);
  const losses = some([curve("training", "loss", 0), curve("dev", "dev_loss", 1)]);
  const scores = some([curve("F1", "dev_f1", 0), curve("precision", "dev_precision", 1), curve("recall", "dev_recall", 2)]);
  const top = (curves) => Math.max(...curves.flatMap((each) => each.points.map((point) => point[1])), 1e-9);
  if (losses.length) chart(charts, { title: "Loss in nats a sentence", curves: losses, across: "update", low: 0, high: top(losses) });
  if (scores.length) chart(charts, { title: "Scores on dev", curves: scores, across: "update", low: 0, high: 1 });
  const rates = some([curve("encoder", "learning_rate", 0), curve("head", "crf_learning_rate", 1)]);
  if (rates.length) chart(charts, { title: "Learning rate", curves: rates, across: "update", low: 0, high: top(rates) });
  const keys = [...new Set(history.flatMap(Object.keys))];
  saving(part, "learning_curve", keys, history.map((row) => keys.map((key) => row[key])));
}

function heat(parent, { caption, corner, columns, rows, file, strongest, cell }) {
  const shown = rows.map(([name, values]) => [name, ...values]);
  saving(parent, file, [corner, ...columns], shown);
  const holder = add(parent, "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption });
  const element = add(holder, "table");
  add(element, "caption", {}, caption);
  const head = add(add(element, "thead"), "tr");
  add(head, "th", { scope: "col" }, corner);
  columns.forEach((name) => add(add(head, "th", { scope: "col" }), "div", { class: columns.length > 6 || columns.some((each) => each.length > 14) ? "slant" : "", title: name }, isolated(name)));
  const body = add(element, "tbody");
  rows.forEach(([name, values], place) => {
    const row = add(body, "tr");
    add(row, "th", { scope: "row" }, isolated(name));
    values.forEach((value, column) => {
      const { text, strength, kind = "", title = null } = cell(value, place, column);
      const box = add(row, "td", { class: `heat ${kind}`, title }, text);
      const hue = kind === "minus" ? "--cold" : "--heat";
      if (strength) box.style.backgroundColor = `rgb(var(${hue}) / ${(0.08 + 0.5 * Math.min(1, strength / (strongest || 1))).toFixed(2)})`;
    });
  });
}

function confusion(split) {
  const part = section("confusion", "Confusion", "Rows are annotated types, columns predicted ones; entities are paired where they share words.");
  const { types: names, counts } = split.confusion;
  if (!names.length) {
    add(part, "p", { class: "note" }, "There is no entity to confuse.");
    return;
  }
  const off = counts.flatMap((row, at) => row.filter((_, column) => column !== at));
  heat(part, {
    caption: "Pairs of entities; the diagonal has the right type", corner: "Annotated", file: "confusion", strongest: Math.max(...off, 1),
    columns: [...names, "(missed)"], rows: counts.map((row, at) => [names[at] ?? "(spurious)", row]),
    cell: (value, row, column) => {
      if (row === names.length && column === names.length) return { text: "" };
      return { text: value ? number(value) : "·", strength: row === column ? 0 : value, kind: row === column ? "right" : "" };
    },
  });
  const rows = split.commonest.map((each) => [`${each.gold || "nothing"} → ${each.found || "nothing"}`, each.cause, each.count, links(each.sentences)]);
  add(part, "h3", {}, "The commonest errors");
  if (rows.length) table(part, { caption: "Annotated → predicted; the first sentences, to be looked at below", rows, heads: ["Types", "Cause", "Errors", "Sentences"], wide: false });
  else add(part, "p", { class: "note" }, "No error at all.");
}

function links(sentences) {
  const list = make("span");
  sentences.forEach((each, at) => {
    if (at) list.append(", ");
    add(list, "button", { type: "button", class: "link", "aria-label": `Errors of sentence ${each}`, on: { click: () => find(`#${each}`) } }, number(each));
  });
  return list;
}

function causes(split) {
  const part = section("causes", "Causes", "Every error has one cause. An error may hold several entities, as where one is found in two parts.");
  const total = split.errors_in_all;
  const rows = CAUSES.map((name) => {
    const each = split.causes[name];
    return [name, { shown: bar(total ? each.errors / total : 0), value: "" }, each.errors, percent(each.errors, total), each.gold, each.predicted, MEANINGS[name]];
  });
  table(part, { caption: `${number(total)} errors by cause`, file: "causes", rows, heads: ["Cause", "", "Errors", "Share", "Annotated", "Predicted", "Meaning"] });
  add(part, "h3", {}, "Where errors pile up");
  add(part, "p", { class: "quiet" }, "The figures of entities by what they and their sentences are like.");
  for (const [name, groups] of Object.entries(split.properties)) {
    const inside = add(part, "details");
    add(inside, "summary", {}, PROPERTIES[name] ?? name);
    const lines = Object.entries(groups).map(([group, each]) => [
      group, { shown: bar(each.f1), value: "" }, ...["f1", "precision", "recall"].map((key) => ({ shown: ratio(each[key], 3), value: each[key] })), each.gold, each.found, ...CAUSES.map((cause) => each[cause] || "·"),
    ]);
    table(inside, { caption: `${PROPERTIES[name] ?? name}: figures, and wrong entities by cause`, file: `by_${name}`, rows: lines, heads: ["Group", "", "F1", "Precision", "Recall", "Annotated", "Predicted", ...CAUSES] });
  }
}

function keptCounts(split, chosen, place) {
  let [kept, right, gold] = [0, 0, 0];
  for (const [name, each] of Object.entries(split.types)) {
    if (chosen && name !== chosen) continue;
    gold += each.gold;
    const counts = split.calibration.types[name];
    if (counts) [kept, right] = [kept + counts.kept[place], right + counts.right[place]];
  }
  return { kept, right, gold, precision: kept ? right / kept : null, recall: gold ? right / gold : null, f1: kept + gold ? (2 * right) / (kept + gold) : null };
}

function calibration(split) {
  const part = section("calibration", "Probabilities", "Each predicted entity has its exact probability under the model. Points on the diagonal mean what they say: of entities with probability 0.8, eight in ten are right.");
  const known = split.calibration;
  if (!known) {
    add(part, "p", { class: "note" }, "No entity was predicted, so there is no probability to judge.");
    return;
  }
  const charts = add(part, "div", { class: "charts" });
  const most = Math.max(...known.curve.map((bin) => bin.count));
  chart(charts, {
    title: "Share of right entities", across: "probability (bins of about as many entities)", low: 0, high: 1, left: 0, right: 1, marks: [[[0, 0], [1, 1]]],
    curves: [{ name: "model", points: known.curve.map((bin) => [bin.confidence, bin.accuracy, 2.5 + 2 * Math.sqrt(bin.count / most), `${ratio(bin.confidence, 3)}: ${ratio(bin.accuracy, 3)} of ${number(bin.count)}`]) }],
  });
  const inside = add(charts, "div");
  const names = { accuracy: "Share right", confidence: "Mean probability", error: "Calibration error", error_by_width: "… by equal width", brier: "Brier score", log_loss: "Log loss (nats)", sharpness: "Sharpness" };
  const says = {
    accuracy: "of the predicted entities", confidence: "equal to the share right where probabilities mean what they say",
    error: "mean distance from the diagonal; 0 is best", error_by_width: "the same with bins of equal width",
    brier: "mean squared distance from what came out; 0 is best", log_loss: "dear where the model was sure and wrong; 0 is best",
    sharpness: "variance of the probabilities: how decided the model is",
  };
  const rows = Object.entries(names).map(([key, name]) => [name, { shown: ratio(known.figures[key]), value: known.figures[key] }, ends(known.intervals[key])]);
  table(inside, { caption: `${number(known.figures.entities)} predicted entities, ${known.temperature === null ? "vector scaling" : `temperature ${short(known.temperature)}`}`, file: "calibration", rows, heads: ["Figure", "Value", "95 % interval"] });
  const told = add(add(inside, "details"), "dl", { class: "facts-list" });
  told.before(make("summary", {}, "What the figures mean"));
  for (const [key, name] of Object.entries(names)) {
    add(told, "dt", {}, name);
    add(told, "dd", {}, says[key]);
  }

  add(part, "h3", {}, "Keep only what is probable");
  add(part, "p", { class: "quiet" }, "Precision and recall as they would be if less probable entities were dropped.");
  const controls = add(part, "div", { class: "controls" });
  const slider = make("input", { type: "range", id: "threshold", min: 0, max: known.thresholds.length - 1, step: 1, value: 0 });
  add(controls, "label", { class: "wide" }, "Threshold", slider);
  const choice = make("select", { id: "threshold-type" });
  add(choice, "option", { value: "" }, "all types");
  Object.keys(split.types).sort().forEach((name, place) => add(choice, "option", { value: String(place) }, name));
  add(controls, "label", {}, "Type", choice);
  const list = add(part, "dl", { class: "stats", id: "kept", "aria-live": "polite" });
  const update = () => {
    const place = Number(slider.value);
    const chosen = choice.value === "" ? null : Object.keys(split.types).sort()[Number(choice.value)];
    const found = keptCounts(split, chosen, place);
    slider.setAttribute("aria-valuetext", `probability ${known.thresholds[place]}`);
    list.replaceChildren();
    const shown = { Threshold: `≥ ${known.thresholds[place]}`, Precision: ratio(found.precision), Recall: ratio(found.recall), F1: ratio(found.f1), Kept: number(found.kept), Right: number(found.right) };
    for (const [name, value] of Object.entries(shown)) {
      const box = add(list, "div", { class: "stat", "data-name": name });
      add(box, "dt", {}, name);
      add(add(box, "dd"), "span", { class: "value" }, value);
    }
  };
  slider.addEventListener("input", update);
  choice.addEventListener("change", update);
  update();
  saving(controls, "thresholds", ["threshold", "kept", "right", "gold", "precision", "recall", "f1"], () =>
    known.thresholds.map((value, place) => {
      const found = keptCounts(split, null, place);
      return [value, found.kept, found.right, found.gold, found.precision, found.recall, found.f1];
    }));
}

function transitions() {
  const known = data.transitions;
  if (!known) return;
  const part = section("transitions", "Transitions", "Scores that the CRF adds for a tag (row) followed by another (column): positive ones (blue) favour the pair, negative ones (red) speak against it. Hatched: forbidden.");
  const all = [known.start, known.end, ...known.transitions].flat().filter((value) => value !== null);
  const inside = known.labels.length > 24 ? add(part, "details") : part;
  if (inside !== part) add(inside, "summary", {}, `Show the table of ${known.labels.length} tags`);
  heat(inside, {
    caption: "Scores of transitions", corner: "From", file: "transitions", strongest: Math.max(...all.map(Math.abs)),
    columns: [...known.labels, "(end)"],
    rows: [["(start)", [...known.start, null]], ...known.transitions.map((row, at) => [known.labels[at], [...row, known.end[at]]])],
    cell: (value, row, column) => {
      if (row === 0 && column === known.labels.length) return { text: "" };
      if (value === null) return { text: "", kind: "never", title: "forbidden" };
      return { text: value.toFixed(1).replace(/^-(0\.0)$/, "$1"), strength: Math.abs(value), kind: value < 0 ? "minus" : "plus" };
    },
  });
}

/* The browser of errors */

const WIDE = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]|[\ud840-\ud8bf][\udc00-\udfff]/;
const NEAR = 12; // words around an error that are shown of a long sentence

function blank(left, right, joined) {
  if (joined !== null && joined !== " ") return joined;
  const touching = WIDE.test(left.slice(-1)) || WIDE.test(left.slice(-2)) ? WIDE.test(right.slice(0, 2)) : false;
  return touching ? "" : " ";
}

function join(words, joined, from = 0, to = words.length) {
  let text = "";
  for (let at = from; at < to; at += 1) text += (at > from ? blank(words[at - 1], words[at], joined) : "") + words[at];
  return text;
}

function sentenceRow(parent, split, sentence, side, wrong, first, last) {
  const row = add(parent, "div", { class: "row" });
  add(row, "span", { class: "side" }, side === "gold" ? "annotated" : "predicted");
  const text = add(row, "div", { class: "text sentence", dir: "auto" });
  const entities = sentence[side].map((each, place) => ({ type: each[0], start: each[1], end: each[2], chance: each[3], wrong: wrong.includes(place) }));
  // of entities that share words the wrong ones are marked, then the longer ones
  const order = [...entities].sort((a, b) => b.wrong - a.wrong || b.end - b.start - (a.end - a.start));
  const marked = [];
  for (const each of order) if (marked.every((other) => other.end <= each.start || each.end <= other.start)) marked.push(each);
  const hidden = entities.filter((each) => !marked.includes(each));
  marked.sort((a, b) => a.start - b.start);
  const words = sentence.words;
  const shown = (from, to) => join(words, split.joined_by, from, to);
  const gap = (at) => (at > first && at < words.length ? blank(words[at - 1], words[at], split.joined_by) : "");
  if (first > 0) text.append("… ");
  let done = first;
  for (const each of marked) {
    if (each.end <= first || each.start >= last) continue;
    const [from, to] = [Math.max(each.start, first), Math.min(each.end, last)];
    if (done < from) text.append(visible(gap(done) + shown(done, from)));
    text.append(gap(from));
    const mark = add(text, "mark", { class: `${side}${each.wrong ? " wrong" : ""}` });
    mark.append(isolated(shown(from, to)));
    if (each.wrong) {
      const label = split.type_names[each.type] + (each.chance === null ? "" : ` ${each.chance.toFixed(3)}`);
      add(mark, "small", {}, isolated(label));
    } else mark.title = visible(split.type_names[each.type]);
    done = to;
  }
  if (done < last) text.append(visible(gap(done) + shown(done, last)));
  if (last < words.length) text.append(" …");
  for (const each of hidden.filter((other) => other.wrong)) {
    const label = `${split.type_names[each.type]}${each.chance === null ? "" : ` ${each.chance.toFixed(3)}`}: `;
    add(add(row, "div", { class: "small quiet" }), "span", {}, label, isolated(shown(each.start, each.end)));
  }
}

function describe(split, error) {
  const sentence = split.error_sentences[error.sentence];
  const names = (side) => [...new Set(error[side].map((place) => split.type_names[sentence[side][place][0]]))].sort();
  return { sentence, gold: names("gold"), predicted: names("predicted") };
}

function fillCard(card, split, error, whole) {
  const { sentence, gold, predicted } = describe(split, error);
  card.replaceChildren();
  const facts = add(card, "p", { class: "facts" });
  add(facts, "span", { class: "tag", title: MEANINGS[error.cause] }, error.cause);
  const types = add(facts, "span");
  types.append(isolated(gold.join("+") || "nothing"), " → ", isolated(predicted.join("+") || "nothing"));
  if (error.confidence !== null) add(facts, "span", {}, `confidence ${error.confidence.toFixed(3)}`);
  if (error.training) add(facts, "span", {}, TRAINING[error.training]);
  add(facts, "span", {}, `sentence ${number(sentence.number)}`);
  if (sentence.where) add(facts, "span", { class: "where" }, isolated(sentence.where));
  if (sentence.id) add(facts, "span", { class: "id" }, "id ", isolated(sentence.id));
  const places = [...error.gold.map((each) => sentence.gold[each]), ...error.predicted.map((each) => sentence.predicted[each])];
  const long = sentence.words.length > 3 * NEAR && !whole;
  const first = long ? Math.max(0, Math.min(...places.map((each) => each[1])) - NEAR) : 0;
  const last = long ? Math.min(sentence.words.length, Math.max(...places.map((each) => each[2])) + NEAR) : sentence.words.length;
  sentenceRow(card, split, sentence, "gold", error.gold, first, last);
  sentenceRow(card, split, sentence, "predicted", error.predicted, first, last);
  if (first > 0 || last < sentence.words.length) {
    add(card, "button", { type: "button", class: "csv", on: { click: () => { fillCard(card, split, error, true); card.focus(); } } }, `All ${number(sentence.words.length)} words`);
  }
}

function errorBrowser(split) {
  const part = section("errors", "Errors", "The errors that the model is surest of come first: there the annotation is often wrong. The confidence of an error is the probability of what was predicted, or, where nothing was, that nothing is there.");
  const errors = split.errors.map((error) => ({ error, ...describe(split, error) }));
  if (!errors.length) {
    add(part, "p", { class: "note" }, "No error: every annotated entity was found, and nothing else.");
    return;
  }
  const controls = add(part, "div", { class: "controls" });
  const filter = (id, name, options) => {
    const select = make("select", { id });
    for (const [value, text] of options) add(select, "option", { value }, text);
    add(controls, "label", {}, name, select);
    select.addEventListener("change", () => update());
    return select;
  };
  const count = (test) => errors.filter(test).length;
  const cause = filter("filter-cause", "Cause", [["", "all causes"], ...CAUSES.map((name) => [name, `${name} (${number(count((each) => each.error.cause === name))})`])]);
  const names = split.type_names;
  const has = (each, name) => each.gold.includes(name) || each.predicted.includes(name);
  const type = filter("filter-type", "Type", [["", "all types"], ...names.map((name, place) => [String(place), `${name} (${number(count((each) => has(each, name)))})`])]);
  const trained = errors.some((each) => each.error.training);
  const training = trained ? filter("filter-training", "Training data", [["", "seen and unseen"], ...Object.keys(TRAINING).map((name) => [name, `${TRAINING[name]} (${number(count((each) => each.error.training === name))})`])]) : null;
  const order = filter("order", "Order", [["confidence", "surest first"], ["doubt", "least sure first"], ["text", "order of the text"]]);
  const search = make("input", { id: "search", type: "search", autocomplete: "off", spellcheck: "false", placeholder: "words, file:line, id, #number" });
  add(controls, "label", { class: "search" }, "Search", search);
  search.addEventListener("input", () => update());
  const texts = new Map(); // what is searched of each sentence
  const searched = (sentence) => {
    if (!texts.has(sentence)) {
      const all = [join(sentence.words, split.joined_by), sentence.words.join(" "), sentence.where, sentence.id];
      texts.set(sentence, all.filter(Boolean).join("\n").toLowerCase());
    }
    return texts.get(sentence);
  };
  const status = add(part, "p", { id: "error-count", role: "status" });
  add(part, "p", { class: "quiet small" }, make("kbd", {}, "j"), " next, ", make("kbd", {}, "k"), " previous error; arrow keys do the same on an error");
  const list = add(part, "ol", { class: "errors" });
  const more = add(part, "button", { type: "button", id: "more" }, "Show more");
  let chosen = [];
  const extend = () => {
    const from = list.children.length;
    for (const each of chosen.slice(from, from + PAGE)) fillCard(add(list, "li", { class: "error", tabindex: -1 }), split, each.error, false);
    if (list.firstElementChild && !list.querySelector("[tabindex='0']")) list.firstElementChild.tabIndex = 0;
    more.hidden = list.children.length >= chosen.length;
  };
  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    chosen = errors.filter((each) =>
      (!wanted || `#${each.sentence.number}` === wanted || searched(each.sentence).includes(wanted)) && (!cause.value || each.error.cause === cause.value) && (type.value === "" || has(each, names[Number(type.value)])) && (!training || !training.value || each.error.training === training.value));
    if (order.value === "doubt") chosen.reverse();
    if (order.value === "text") chosen.sort((a, b) => a.sentence.number - b.sentence.number);
    const left = split.errors_in_all - errors.length;
    status.textContent = `${number(chosen.length)} of ${number(errors.length)} errors` + (left ? `; ${number(left)} less sure ones are left out of this page` : "");
    list.replaceChildren();
    extend();
  };
  more.addEventListener("click", () => { const from = list.children.length; extend(); go(from); });
  const go = (place) => {
    if (place >= list.children.length) extend();
    const card = list.children[Math.max(0, Math.min(place, list.children.length - 1))];
    if (!card) return;
    for (const each of list.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    card.tabIndex = 0;
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  };
  keys = (event) => {
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = [...list.children].indexOf(document.activeElement && document.activeElement.closest(".error"));
    const step = { j: 1, k: -1, ...(here >= 0 ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
    if (!step) return;
    event.preventDefault();
    go(here < 0 ? 0 : here + step);
  };
  find = (text) => {
    for (const each of [cause, type, training]) if (each) each.value = "";
    search.value = text;
    update();
    part.scrollIntoView();
    go(0);
  };
  saving(part, "errors", ["number", "file and line", "id", "cause", "annotated", "predicted", "confidence", "training", "annotated text", "predicted text", "sentence"], () =>
    chosen.map(({ error, sentence, gold, predicted }) => {
      const text = (side) => error[side].map((place) => sentence.words.slice(sentence[side][place][1], sentence[side][place][2]).join(" ")).join(" | ");
      return [sentence.number, sentence.where, sentence.id, error.cause, gold.join("+"), predicted.join("+"), error.confidence, error.training, text("gold"), text("predicted"), sentence.words.join(" ")];
    }));
  update();
}

function about() {
  const part = section("about", "About");
  const list = add(part, "dl", { class: "facts-list" });
  const fact = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    add(list, "dt", {}, name);
    add(list, "dd", {}, isolated(value));
  };
  const known = data.data || {};
  fact("Evaluated", data.date);
  for (const [name, place] of Object.entries(data.models || {})) fact(name, place);
  fact("Data", known.path);
  fact("Fingerprint", known.fingerprint);
  for (const [split, path] of Object.entries(known.files || {})) fact(split, path);
  for (const [name, value] of Object.entries(data.settings || {})) fact(name, typeof value === "object" ? JSON.stringify(value) : value);
  fact("Versions", Object.entries(data.versions || {}).map((each) => each.join(" ")).join(", "));
}

/* The page */

let keys = null;
let find = () => {}; // shows errors that hold a text
document.addEventListener("keydown", (event) => keys && keys(event));

const last = (path) => String(path || "").split(/[\\/]/).filter(Boolean).pop() || "";

function show(name) {
  const split = data.splits[name];
  [keys, find] = [null, () => {}];
  main.replaceChildren();
  document.getElementById("contents").replaceChildren();
  headline(split);
  types(split);
  causes(split);
  confusion(split);
  calibration(split);
  learning();
  transitions();
  errorBrowser(split);
  about();
  for (const button of document.querySelectorAll("#splits button")) button.setAttribute("aria-pressed", String(button.value === name));
}

const names = Object.keys(data.splits);
document.title = visible(data.title || "Evaluation");
document.getElementById("title").replaceChildren(isolated(data.title || "Evaluation"));
document.getElementById("about").append("evaluated on ", isolated(last((data.data || {}).path) || "data"), ", ", String(data.date || "").slice(0, 10));
if (names.length > 1) {
  names.forEach((name) => add(document.getElementById("splits"), "button", { type: "button", value: name, on: { click: () => show(name) } }, name));
}
document.getElementById("footer").append(`schema_version ${data.schema_version}; written by nercrf ${(data.versions || {}).nercrf ?? ""}`);
show(names.includes("test") ? "test" : names[0]);
