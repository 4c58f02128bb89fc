// The neuron browser: a list of neurons to filter and sort, and one of them in full. All numbers lie in the page.
const ROW = 26; // pixels a row of the list is high
const SPARE = 12; // rows drawn beyond the visible ones
const PATCH = 96; // pixels a patch, and its frame, are shown high at least
const BOX = "#ff00dc";
const ACTIVITY = [
  ["", "any", () => true],
  ["sparse", "below 1 %", (share) => share > 0 && share < 0.01],
  ["some", "1 to 10 %", (share) => share >= 0.01 && share < 0.1],
  ["dense", "10 % and more", (share) => share >= 0.1],
  ["never", "never active", (share) => share === 0],
];
const WORDS = {
  name: "layer.neuron",
  label: "the label with the highest selectivity",
  selectivity: "correlation of the activation with the label, -1 to 1; its square is the share of variance explained",
  active: "share of tokens with a positive activation",
  top: "largest activation",
  effect: "rise of the x0 error, over the variance, when the neuron is held at its mean: the largest of all levels",
};

const data = JSON.parse(document.getElementById("browser-data").textContent);
const { info, neurons } = data;
const count = neurons.layer.length;
const [nRows, nCols] = info.grid.slice(1);
const [height, width] = info.size;
const [cellHeight, cellWidth] = [Math.floor(height / nRows), Math.floor(width / nCols)];
const names = neurons.layer.map((layer, at) => `${layer}.${neurons.neuron[at]}`);
const hasLabels = info.labels.length > 0;
const effectOf = (at) => {
  const rows = data.effects[names[at]];
  return rows ? Math.max(...rows.map((row) => row[1])) : null;
};
const wish = { layer: "", label: "", activity: "", text: "", sort: hasLabels ? "selectivity" : "top", up: false };
let listed = [];
let selected = null;

// How a column is called, its text and the value it is sorted by; a larger value comes first.
const columns = [
  { key: "name", title: "neuron", text: (at) => names[at], value: (at) => -at },
  hasLabels && { key: "label", title: "fires for", text: (at) => info.labels[neurons.label[at]] ?? "–",
    value: (at) => (neurons.label[at] < 0 ? null : -neurons.label[at]) },
  hasLabels && { key: "selectivity", title: "selectivity", text: (at) => written(selectivity(at)), value: selectivity },
  { key: "active", title: "active", text: (at) => percent(neurons.active[at]), value: (at) => neurons.active[at] },
  { key: "top", title: "largest", text: (at) => written(neurons.top[at]), value: (at) => neurons.top[at] },
  Object.keys(data.effects).length > 0 &&
    { key: "effect", title: "effect", text: (at) => written(effectOf(at)), value: effectOf },
].filter(Boolean);

function selectivity(at) {
  const label = wish.label === "" ? neurons.label[at] : Number(wish.label);
  return label < 0 ? null : data.selectivity[at][label];
}

// The frame of the page

const root = document.getElementById("browser");
const left = add(root, "section", "left");
const detail = add(root, "section", "detail");
const controls = add(left, "div", "controls");
choose("Layer", "layer", [["", "all"], ...info.layers.map((layer) => [layer, layer])]);
if (hasLabels) {
  const options = info.labels.map((label, at) => [at, `${label} (${percent(info.shares[at])} of tokens)`]);
  choose("Selectivity for", "label", [["", "its best label"], ...options]);
}
choose("Active", "activity", ACTIVITY.map(([value, text]) => [value, text]));
const box = add(controls, "label");
add(box, "span").textContent = "Neuron";
const search = add(box, "input");
search.type = "search";
search.placeholder = "2.113";
search.size = 7;
search.addEventListener("input", () => {
  wish.text = search.value.trim();
  update();
});
const found = add(left, "p", "found");
found.setAttribute("role", "status");
const table = add(left, "div", "table");
table.style.setProperty("--columns", columns.map(({ key }) => (key === "active" || key === "top" ? "0.85fr" : "1fr")).join(" "));
const head = add(table, "div", "row head");
for (const column of columns) {
  const button = add(head, "button", column.key);
  button.textContent = column.title;
  button.title = WORDS[column.key];
  button.addEventListener("click", () => {
    wish.up = wish.sort === column.key && !wish.up;
    wish.sort = column.key;
    update();
  });
}
const list = add(table, "div", "list");
list.tabIndex = 0;
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", "Neurons");
const room = add(list, "div", "room");
list.addEventListener("scroll", drawList);
new ResizeObserver(drawList).observe(list);
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) select(Number(row.dataset.at));
});
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -count, End: count }[event.key];
  if (!step || !listed.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = listed.indexOf(selected);
  select(listed[Math.min(listed.length - 1, Math.max(0, place + step))]);
  event.preventDefault();
});
window.addEventListener("hashchange", fromAddress);

function choose(label, name, options) {
  const box = add(controls, "label");
  add(box, "span").textContent = label;
  const choice = add(box, "select", name);
  for (const [value, text] of options) choice.add(new Option(text, value));
  choice.addEventListener("change", () => {
    wish[name] = choice.value;
    if (name === "label") Object.assign(wish, { sort: "selectivity", up: false });
    update();
  });
}

// The list

function update() {
  const [, , fits] = ACTIVITY.find(([value]) => value === wish.activity);
  const { value } = columns.find(({ key }) => key === wish.sort);
  const values = names.map((_, at) => value(at));
  listed = names.map((_, at) => at).filter((at) =>
    (wish.layer === "" || neurons.layer[at] === Number(wish.layer)) && fits(neurons.active[at]) &&
    names[at].startsWith(wish.text));
  const sign = wish.up ? -1 : 1;
  listed.sort((one, other) => {
    if (values[one] === null || values[other] === null) return (values[one] === null) - (values[other] === null);
    return sign * (values[other] - values[one]) || one - other;
  });
  found.textContent = `${listed.length} of ${count} neurons`;
  for (const column of columns) {
    const button = head.querySelector(`.${column.key}`);
    const ascending = wish.up !== (column.key === "name" || column.key === "label");
    const order = ascending ? "ascending" : "descending";
    if (column.key === wish.sort) button.dataset.order = order;
    else delete button.dataset.order;
  }
  list.scrollTop = 0;
  if (listed.length && !listed.includes(selected)) select(listed[0], false);
  drawList();
}

function drawList() {
  room.style.height = `${listed.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  room.replaceChildren();
  for (let place = first; place < last; place++) {
    const at = listed[place];
    const row = add(room, "div", at === selected ? "row here" : "row");
    row.style.top = `${place * ROW}px`;
    row.dataset.at = at;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", at === selected);
    for (const column of columns) add(row, "span", column.key).textContent = column.text(at);
  }
}

function select(at, scroll = true) {
  selected = at;
  const place = listed.indexOf(at);
  if (scroll && place >= 0) {
    const low = (place + 1) * ROW - list.clientHeight;
    list.scrollTop = Math.min(place * ROW, Math.max(low, list.scrollTop));
  }
  history.replaceState(null, "", `#${names[at]}`);
  drawList();
  drawDetail(at);
}

function fromAddress() {
  const at = names.indexOf(location.hash.slice(1));
  if (at >= 0) select(at);
}

// One neuron

function drawDetail(at) {
  detail.replaceChildren();
  const title = add(detail, "h2");
  title.textContent = `Neuron ${names[at]}`;
  const facts = add(detail, "p", "facts");
  const label = hasLabels ? neurons.label[at] : -1;
  if (label >= 0) {
    facts.append("fires for ");
    add(facts, "b").textContent = info.labels[label];
    const control = data.control[at][label];
    const chance = control === null ? "" : `, with the labels of other clips ${written(control)}`;
    facts.append(` (selectivity ${written(data.selectivity[at][label])}${chance}) · `);
  }
  facts.append(
    `active at ${percent(neurons.active[at])} of tokens · mean ${written(neurons.mean[at])}, standard deviation ` +
    `${written(neurons.std[at])}, largest ${written(neurons.top[at])}`,
  );
  add(detail, "h3").textContent = "Most active patches";
  drawPatches(at);
  const columnsBelow = add(detail, "div", "below");
  const one = add(columnsBelow, "div");
  add(one, "h3").textContent = "Mean activation by noise level";
  bars(one, info.levels.map((name, index) => ({ name, value: data.by_level[at][index] })));
  drawWrites(one, at);
  drawEffect(one, at);
  if (hasLabels) drawLabels(add(columnsBelow, "div"), at);
}

function drawPatches(at) {
  const grid = add(detail, "div", "patches");
  const factor = PATCH / height >= 1 ? Math.ceil(PATCH / height) : PATCH / height;
  for (const [frame, cell, activation, level, label] of data.patches[at]) {
    const [row, col] = [Math.floor(cell / nCols), cell % nCols];
    const [clip, time] = data.frames[frame];
    const figure = add(grid, "figure");
    const pair = add(figure, "div", "pair");
    const side = Math.round(height * factor);
    const patch = canvas(pair, cellWidth, cellHeight, (side * cellWidth) / cellHeight, side);
    const whole = canvas(pair, width, height, Math.round(width * factor), side);
    whole.parentElement.classList.add("whole");
    const mark = add(whole.parentElement, "div", "mark");
    Object.assign(mark.style, {
      left: `${(100 * col) / nCols}%`, top: `${(100 * row) / nRows}%`, width: `${100 / nCols}%`,
      height: `${100 / nRows}%`, borderColor: BOX,
    });
    const caption = add(figure, "figcaption");
    add(caption, "b").textContent = written(activation);
    const level_ = info.levels[level] === "clean" ? "clean" : `noise level ${info.levels[level]}`;
    caption.append(` ${label >= 0 ? `${info.labels[label]}, ` : ""}${level_}`);
    add(caption, "span", "place").textContent = `clip ${clip}, frame ${time}, row ${row}, col ${col}`;
    sheetOf(frame).then(([picture, x, y]) => {
      draw(patch, picture, x + col * cellWidth, y + row * cellHeight, cellWidth, cellHeight);
      draw(whole, picture, x, y, width, height);
    });
  }
  const missing = info.n_patches - data.patches[at].length;
  if (missing) add(detail, "p", "hint").textContent =
    `${missing} more of ${info.n_patches} are not shown: their frames did not fit into this page.`;
}

function drawWrites(parent, at) {
  add(parent, "h3").textContent = "What its largest activation writes into its own patch";
  const row = add(parent, "div", "writes");
  const [tall, wide] = info.write.size;
  const levels = info.levels.filter((name) => name !== "clean");
  for (let index = 0; index < info.write.levels; index++) {
    const figure = add(row, "figure");
    const target = canvas(figure, wide, tall, (72 * wide) / tall, 72);
    const caption = add(figure, "figcaption");
    caption.textContent = `noise level ${levels[index]}`;
    add(caption, "span", "place").textContent = `up to ${written(data.write_sizes[at][index])}`;
    const place = at * info.write.levels + index;
    const [x, y] = [(place % info.write.sheet) * wide, Math.floor(place / info.write.sheet) * tall];
    writes().then((picture) => draw(target, picture, x, y, wide, tall));
  }
  add(parent, "p", "hint").textContent =
    "Change of the pixels (0 to 1) through the final layer alone, scaled to the largest; grey is none. Later layers may " +
    "undo or amplify it.";
}

function drawEffect(parent, at) {
  const rows = data.effects[names[at]];
  if (!Object.keys(data.effects).length) return;
  add(parent, "h3").textContent = "Without it";
  if (!rows) {
    add(parent, "p", "hint").textContent = "Not tried.";
    return;
  }
  const label = hasLabels && rows.some((row) => row[6] !== null) ? info.labels[neurons.label[at]] : null;
  const made = grid(parent, ["noise level", "target tokens", "rise of x0 error", "of others"], 2);
  for (const [level, effect, low, high, control, , own, ownLow, ownHigh, ownControl, clips] of rows) {
    made([level, "all", interval(effect, low, high), written(control)]);
    if (label) made(["", `${label} (${clips ?? 0} clips)`, interval(own, ownLow, ownHigh), written(ownControl)]);
  }
  add(parent, "p", "hint").textContent =
    "x0 error of the target frames, over their variance, with the neuron held at its mean minus without, and its 95 % " +
    "interval over clips. Others: the mean of random neurons of the same layer.";
}

function drawLabels(parent, at) {
  add(parent, "h3").textContent = "By label";
  const order = info.labels.map((_, index) => index).filter((index) => data.by_label[at][index] !== null);
  order.sort((one, other) => (data.selectivity[at][other] ?? -2) - (data.selectivity[at][one] ?? -2));
  bars(parent, order.map((index) => ({
    name: info.labels[index],
    value: data.by_label[at][index],
    more: [written(data.selectivity[at][index]), written(data.control[at][index])],
  })), ["label", "mean activation", "selectivity", "control"]);
  add(parent, "p", "hint").textContent =
    "Selectivity: correlation of the activation with the label, over all tokens, -1 to 1. Control: the same with the " +
    "labels of other clips, where only how often and where a label lies can count.";
}

function bars(parent, rows, titles = ["noise level", "mean activation"]) {
  const low = Math.min(0, ...rows.map(({ value }) => value));
  const high = Math.max(0, ...rows.map(({ value }) => value));
  const at = (value) => (100 * (value - low)) / (high - low || 1);
  const made = grid(parent, titles);
  for (const { name, value, more = [] } of rows) {
    const cell = document.createElement("div");
    cell.className = "bar";
    const track = add(cell, "div", "track");
    const fill = add(track, "div", value < 0 ? "fill below-zero" : "fill");
    const [start, end] = [at(Math.min(0, value)), at(Math.max(0, value))];
    Object.assign(fill.style, { left: `${start}%`, width: `${end - start}%` });
    add(track, "div", "zero").style.left = `${at(0)}%`;
    add(cell, "span").textContent = written(value);
    made([name, cell, ...more]);
  }
}

function grid(parent, titles, nWords = 1) {
  const made = add(parent, "table");
  const line = add(add(made, "thead"), "tr");
  titles.forEach((title, index) => (add(line, "th", index >= nWords ? "number" : "").textContent = title));
  const body = add(made, "tbody");
  return (cells) => {
    const row = add(body, "tr");
    cells.forEach((cell, index) => add(row, "td", index >= nWords ? "number" : "").append(cell));
  };
}

// Pictures

const sheets = new Map();

function pictureOf(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes]));
}

async function sheetOf(frame) {
  const sheet = Math.floor(frame / info.sheet ** 2);
  if (!sheets.has(sheet)) sheets.set(sheet, pictureOf(data.sheets[sheet]));
  const place = frame % info.sheet ** 2;
  return [await sheets.get(sheet), (place % info.sheet) * width, Math.floor(place / info.sheet) * height];
}

function writes() {
  if (!sheets.has("writes")) sheets.set("writes", pictureOf(data.writes));
  return sheets.get("writes");
}

function canvas(parent, wide, tall, shownWide, shownTall) {
  const holder = add(parent, "div", "picture");
  Object.assign(holder.style, { width: `${shownWide}px`, height: `${shownTall}px` });
  const made = add(holder, "canvas", shownTall >= tall ? "enlarged" : "");
  Object.assign(made, { width: wide, height: tall });
  return made;
}

function draw(target, picture, x, y, wide, tall) {
  const pen = target.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, x, y, wide, tall, 0, 0, wide, tall);
  target.dataset.drawn = "true"; // for whoever waits for the picture
}

function add(parent, tag, name = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  parent.append(element);
  return element;
}

function written(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function interval(value, low, high) {
  return value === null ? "–" : `${written(value)} [${written(low)}, ${written(high)}]`;
}

function percent(share) {
  if (share === 0) return "0 %";
  return share < 0.001 ? "< 0.1 %" : `${Number((100 * share).toPrecision(share < 0.1 ? 2 : 3))} %`;
}

const asked = names.indexOf(location.hash.slice(1));
if (asked >= 0) selected = asked;
update();
if (asked >= 0) select(asked);
