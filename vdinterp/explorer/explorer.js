// The attention explorer's front end, for a notebook (`render`, with Python behind it) and for a page of its own
// (`openPage`, with the numbers inside the page). Both hand `mount` a source:
//   start() -> {info, image}: what there is to choose, and the frames as the bytes of one picture
//   row({pass, layer, head, direction, token}) -> {values, half}: a probability for every token, and a function that
//   gives half the step to which a value was rounded
const PATIENCE = 15000; // milliseconds until a row that does not come is given up
const KEPT_ROWS = 2000;
const GAP = 6; // pixels between two frames
const MOVES = {
  ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1],
  PageUp: [-1, 0, 0], "[": [-1, 0, 0], PageDown: [1, 0, 0], "]": [1, 0, 0],
};
const DIRECTIONS = [["from", "from this patch: where it looks"], ["to", "to this patch: what looks at it"]];

function kernelSource(model) {
  const view = Math.random().toString(36).slice(2);
  const waiting = new Map();
  let asked = 0;
  const hear = (answer, buffers) => {
    const question = waiting.get(answer.id);
    if (!question) return;
    waiting.delete(answer.id);
    clearTimeout(question.timer);
    if (answer.error) question.reject(new Error(answer.error));
    else question.resolve({ ...answer, bytes: buffers.length ? bytesOf(buffers[0]) : null });
  };
  const ask = (question) => new Promise((resolve, reject) => {
    const id = `${view}.${asked++}`;
    const giveUp = () => {
      waiting.delete(id);
      reject(new Error("No answer from Python: busy, so try again later, or stopped, so run the cell again."));
    };
    const timer = question.kind === "row" && setTimeout(giveUp, PATIENCE);
    waiting.set(id, { resolve, reject, timer });
    model.send({ ...question, id });
  });
  model.on("msg:custom", hear);
  return {
    start: async () => {
      const { info, css, bytes } = await ask({ kind: "start" });
      return { info, css, image: bytes };
    },
    row: async (wish) => {
      const { top, levels, bytes } = await ask({ kind: "row", ...wish });
      return { values: Float32Array.from(bytes, (level) => (level * top) / levels), half: () => top / levels / 2 };
    },
    close: () => model.off("msg:custom", hear),
  };
}

function pageSource({ info, image, blocks }) {
  const heads = new Map();
  const size = info.grid[0] * info.grid[1] * info.grid[2];
  const head = async (wish) => {
    const layer = info.layers.findIndex(([index]) => index === wish.layer);
    const place = (wish.pass * info.layers.length + layer) * info.heads.length + info.heads.indexOf(wish.head);
    if (!heads.has(place)) heads.set(place, await inflate(fromBase64(blocks[place])));
    const block = heads.get(place);
    return { maxima: new Float32Array(block, 0, size), levels: new Uint8Array(block, 4 * size) };
  };
  return {
    start: async () => ({ info, image: fromBase64(image) }),
    row: async (wish) => {
      const { maxima, levels } = await head(wish);
      const rows = wish.direction === "from";
      const query = (other) => (rows ? wish.token : other);
      const level = (other) => levels[rows ? wish.token * size + other : other * size + wish.token];
      const values = new Float32Array(size);
      for (let other = 0; other < size; other++) values[other] = (level(other) * maxima[query(other)]) / info.levels;
      return { values, half: (other) => maxima[query(other)] / info.levels / 2 };
    },
  };
}

async function mount(el, source) {
  const { info, image } = await source.start();
  const [nFrames, nRows, nCols] = info.grid;
  const picture = await createImageBitmap(new Blob([image]));
  const [height, width] = info.size;
  const palette = colorTable(info.colors);
  const rows = new Map();
  const wish = { pass: 0, layer: info.start.layer, head: info.start.head, direction: "from", token: info.start.token };
  let pinned = info.start.pinned;
  let hovered = null;
  let shown = null; // {wish, values, half} of what is drawn
  let asking = false;

  const root = add(el, "div", "vdinterp-explorer");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys would move to another cell
  const controls = add(root, "div", "controls");
  const strip = add(root, "div", "strip");
  strip.tabIndex = 0;
  strip.setAttribute("role", "application");
  strip.setAttribute("aria-label", "Frames of the clip. Arrow keys move the patch, Page Up and Page Down the frame.");
  const foot = add(root, "div", "foot");
  const readout = add(foot, "div", "readout");
  readout.setAttribute("aria-live", "polite");
  const [patchName, patchText] = term(readout, "patch");
  const [, topText] = term(readout, "top", "Largest probability");
  const [, pointerText] = term(readout, "pointer", "Under the pointer");
  const scale = add(foot, "div", "scale");
  add(scale, "div", "name").textContent = "attention probability";
  add(scale, "div", "bar").style.background = `linear-gradient(to right, ${info.colors.join(", ")})`;
  const limits = add(scale, "div", "limits");
  add(limits, "span").textContent = "0";
  const limit = add(limits, "span", "limit");
  const status = add(root, "p", "status");
  status.setAttribute("role", "status");
  add(root, "p", "hint").textContent =
    "Hover over a patch to preview it, click to pin it: then the pointer reads off probabilities. Arrow keys move " +
    `the patch, Page Up and Page Down (or [ and ]) the frame, Escape unpins. ${info.rounding}`;

  const choose = (label, name, options) => {
    const box = add(controls, "label");
    add(box, "span").textContent = label;
    const select = add(box, "select", name);
    for (const [value, text] of options) select.add(new Option(text, value));
    select.value = wish[name];
    select.addEventListener("change", () => {
      wish[name] = name === "direction" ? select.value : Number(select.value);
      update();
    });
  };
  choose("Pass", "pass", info.passes.map((label, index) => [index, label]));
  choose("Layer", "layer", info.layers);
  choose("Head", "head", info.heads.map((head) => [head, head]));
  choose("Attention", "direction", DIRECTIONS);

  const frames = Array.from({ length: nFrames }, (_, frame) => {
    const box = add(strip, "div", "frame");
    const canvas = add(add(box, "div", "picture"), "canvas");
    Object.assign(canvas, { width, height });
    canvas.dataset.frame = frame;
    const caption = add(box, "div", "caption");
    caption.textContent = `frame ${frame}`;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const [left, top] = [(frame % info.sheet) * width, Math.floor(frame / info.sheet) * height];
    pen.drawImage(picture, left, top, width, height, 0, 0, width, height);
    return { canvas, caption, pen, grey: greyed(pen.getImageData(0, 0, width, height)) };
  });
  // Pixels are enlarged by whole numbers, so that patches stay equally large; a patch is never too small to hit.
  const wanted = Math.max(6 * Math.max(nRows, nCols), Math.min(240, Math.max(120, 1120 / nFrames)));
  const ratio = wanted / Math.max(width, height);
  const factor = ratio >= 1 ? Math.round(ratio) : ratio;
  root.style.setProperty("--frame-width", `${width * factor}px`);
  root.style.setProperty("--frame-height", `${height * factor}px`);
  root.style.setProperty("--gap", `${GAP}px`);
  strip.classList.toggle("enlarged", ratio >= 1);
  // Rows of equal length; what is observed does not change its own size by it.
  new ResizeObserver(() => {
    const room = Math.max(1, Math.floor((controls.clientWidth + GAP) / (width * factor + GAP)));
    const perRow = Math.ceil(nFrames / Math.ceil(nFrames / room));
    strip.style.gridTemplateColumns = `repeat(${perRow}, max-content)`;
  }).observe(controls);
  const overlay = Object.assign(document.createElement("canvas"), { width: nCols, height: nRows });
  const overlayPen = overlay.getContext("2d");
  const cells = overlayPen.createImageData(nCols, nRows);
  const patchMark = mark("query");
  const pointerMark = mark("pointer");

  function mark(name) {
    const box = document.createElement("div");
    box.className = `mark ${name}`;
    box.style.width = `${100 / nCols}%`;
    box.style.height = `${100 / nRows}%`;
    return (token) => {
      if (token === null) return box.remove();
      const [frame, row, col] = coordinates(token);
      box.style.left = `${(100 * col) / nCols}%`;
      box.style.top = `${(100 * row) / nRows}%`;
      frames[frame].canvas.parentElement.append(box);
    };
  }

  function coordinates(token) {
    const cell = token % (nRows * nCols);
    return [Math.floor(token / (nRows * nCols)), Math.floor(cell / nCols), cell % nCols];
  }

  function place(token) {
    const [frame, row, col] = coordinates(token);
    return `frame ${frame}, row ${row}, col ${col}`;
  }

  function draw() {
    const { values } = shown;
    let top = 0;
    for (let token = 1; token < values.length; token++) if (values[token] > values[top]) top = token;
    const most = values[top];
    for (let frame = 0; frame < nFrames; frame++) {
      for (let cell = 0; cell < nRows * nCols; cell++) {
        const level = most > 0 ? Math.round((255 * values[frame * nRows * nCols + cell]) / most) : 0;
        cells.data.set(palette.subarray(4 * level, 4 * level + 4), 4 * cell);
      }
      overlayPen.putImageData(cells, 0, 0);
      const { pen, grey } = frames[frame];
      pen.putImageData(grey, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(overlay, 0, 0, width, height);
    }
    limit.textContent = written(most);
    topText.textContent = most > 0 ? `${written(most)} at ${place(top)}` : "0: nothing looks here";
  }

  function describe() {
    patchName.textContent = wish.direction === "from" ? "Query" : "Key";
    patchText.textContent = place(wish.token) + (pinned ? ", pinned" : "");
    patchMark(wish.token);
    pointerMark(hovered === wish.token ? null : hovered);
    const frame = coordinates(wish.token)[0];
    frames.forEach(({ caption }, index) => caption.classList.toggle("here", index === frame));
    let text = "–";
    if (hovered !== null && shown && same(shown.wish, wish)) {
      const half = shown.half(hovered);
      const value = shown.values[hovered];
      text = `${value > 0 || half === 0 ? written(value) : `below ${written(half)}`} at ${place(hovered)}`;
    }
    pointerText.textContent = text;
  }

  // One question at a time: what was passed over by the pointer while an answer was due is never asked for.
  async function update() {
    describe();
    if (asking) return;
    asking = true;
    root.ariaBusy = "true"; // for readers of the screen, and whoever waits for the picture
    const slow = setTimeout(() => (status.textContent = "Waiting for Python ..."), 800);
    try {
      while (!shown || !same(shown.wish, wish)) {
        const asked = { ...wish };
        const name = Object.values(asked).join(" ");
        if (!rows.has(name)) rows.set(name, await source.row(asked));
        if (rows.size > KEPT_ROWS) rows.delete(rows.keys().next().value);
        shown = { wish: asked, ...rows.get(name) };
        draw();
        describe();
      }
      status.textContent = "";
    } catch (error) {
      status.textContent = error.message;
    } finally {
      clearTimeout(slow);
      asking = false;
      root.ariaBusy = "false";
    }
  }

  function tokenAt(event) {
    if (event.target.tagName !== "CANVAS") return null;
    const box = event.target.getBoundingClientRect();
    const inside = (at, start, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor(((at - start) / length) * count)));
    const row = inside(event.clientY, box.top, box.height, nRows);
    const col = inside(event.clientX, box.left, box.width, nCols);
    return (Number(event.target.dataset.frame) * nRows + row) * nCols + col;
  }

  function select(token, pin) {
    wish.token = token;
    pinned = pin;
    update();
  }

  strip.addEventListener("pointermove", (event) => {
    const token = tokenAt(event);
    if (token === hovered) return;
    hovered = token;
    if (token !== null && !pinned) select(token, false);
    else describe();
  });
  strip.addEventListener("pointerleave", () => {
    hovered = null;
    describe();
  });
  strip.addEventListener("click", (event) => {
    const token = tokenAt(event);
    if (token !== null) select(token, !(pinned && token === wish.token));
  });
  strip.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") select(wish.token, false);
    else if (MOVES[event.key]) {
      const [frame, row, col] = coordinates(wish.token).map((at, axis) => at + MOVES[event.key][axis]);
      const onward = frame + Math.floor(col / nCols); // past the left or right border lies the next frame
      if (row >= 0 && row < nRows && onward >= 0 && onward < nFrames)
        select((onward * nRows + row) * nCols + ((col + nCols) % nCols), true);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  await update();
}

function add(parent, tag, name = "") {
  const element = document.createElement(tag);
  element.className = name;
  parent.append(element);
  return element;
}

function term(list, name, label = "") {
  const box = add(list, "div", name);
  const heading = add(box, "div", "name");
  heading.textContent = label;
  return [heading, add(box, "div", "value")];
}

function same(one, other) {
  return Object.keys(one).every((name) => one[name] === other[name]);
}

function written(value) {
  if (value === 0) return "0";
  return value >= 1e-4 ? value.toPrecision(3) : value.toExponential(1);
}

// 256 colours between the stops, as RGBA. The root keeps weak attention visible; at 0 the frame still shows through.
function colorTable(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(1024);
  for (let level = 0; level < 256; level++) {
    const at = (level / 255) * (parts.length - 1);
    const low = Math.min(Math.floor(at), parts.length - 2);
    const mixed = parts[low].map((value, channel) => value + (at - low) * (parts[low + 1][channel] - value));
    table.set([...mixed, 255 * (0.35 + 0.6 * Math.sqrt(level / 255))], 4 * level);
  }
  return table;
}

function greyed(image) {
  const { data } = image;
  for (let at = 0; at < data.length; at += 4) data.fill((data[at] + data[at + 1] + data[at + 2]) / 3, at, at + 3);
  return image;
}

function bytesOf(buffer) {
  return new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function inflate(bytes) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

function openPage() {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  return mount(document.getElementById("explorer"), pageSource(data));
}

async function render({ model, el }) {
  const source = kernelSource(model);
  const start = source.start();
  add(el, "style").textContent = (await start).css;
  await mount(el, { ...source, start: () => start });
  return source.close;
}

export default { render };
