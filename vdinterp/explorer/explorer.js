// The attention explorer's front end, for a notebook (`render`) and for a page of its own (`openPage`). Both hand `mount`
// a source (sources.js, which stands before this file).
const KEPT_ROWS = 2000;
const GAP = 6; // pixels between two frames
const MOVES = {
  ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1],
  PageUp: [-1, 0, 0], "[": [-1, 0, 0], PageDown: [1, 0, 0], "]": [1, 0, 0],
};
const DIRECTIONS = [
  ["from", "from this patch: where it looks"],
  ["to", "to this patch: what looks at it"],
  ["frame", "from this whole frame: mean over its patches"],
];
const ADDRESS = ["pass", "layer", "head", "direction"]; // parts of the choice that a link holds as they are

// `address`, where there is one, holds the choice: read() -> parts by name, write(parts).
async function mount(el, source, address = null) {
  const { info, image } = await source.start();
  const [nFrames, nRows, nCols] = info.grid;
  const picture = await createImageBitmap(new Blob([image]));
  const [height, width] = info.size;
  const palette = colorTable(info.colors);
  const rows = new Map();
  const wish = { pass: 0, layer: info.start.layer, head: info.start.head, direction: "from", token: info.start.token };
  let pinned = info.start.pinned;
  readAddress();
  let hovered = null;
  let shown = null; // {wish, values, half} of what is drawn
  let asking = false;

  const root = add(el, "div", "vdinterp-explorer");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys would move to another cell
  const controls = add(root, "div", "controls");
  const panes = add(root, "div", "panes");
  const strip = add(add(panes, "div", "stage"), "div", "strip");
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

  const selects = {};
  const choose = (label, name, options) => {
    const box = add(controls, "label");
    add(box, "span").textContent = label;
    const select = add(box, "select", name);
    for (const [value, text] of options) select.add(new Option(text, value));
    select.value = wish[name];
    selects[name] = select;
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
    return { canvas, caption, pen, pale: paled(pen.getImageData(0, 0, width, height)) };
  });
  // Pixels are enlarged by whole numbers, so that patches stay equally large; a patch is never too small to hit.
  const wanted = Math.max(6 * Math.max(nRows, nCols), Math.min(320, Math.max(200, 1700 / nFrames)));
  root.style.setProperty("--gap", `${GAP}px`);
  // Rows of equal length; what is observed does not change its own size by it.
  new ResizeObserver(() => {
    const space = strip.parentElement.clientWidth - 4;
    const ratio = Math.min(wanted, space) / Math.max(width, height);
    const factor = ratio >= 1 ? Math.max(1, width * Math.round(ratio) <= space ? Math.round(ratio) : Math.floor(ratio)) : ratio;
    root.style.setProperty("--frame-width", `${width * factor}px`);
    root.style.setProperty("--frame-height", `${height * factor}px`);
    strip.classList.toggle("enlarged", factor >= 1);
    const room = Math.max(1, Math.floor((space + GAP) / (width * factor + GAP)));
    const perRow = Math.ceil(nFrames / Math.ceil(nFrames / room));
    strip.style.gridTemplateColumns = `repeat(${perRow}, max-content)`;
  }).observe(strip.parentElement);
  const wall = info.wall ? makeWall() : null;
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

  // A small map of every head for the same patch, layers down and heads across; a click shows that head.
  function makeWall() {
    const perRow = Math.ceil(Math.sqrt(nFrames));
    const [mapWidth, mapHeight] = [perRow * (nCols + 1) - 1, Math.ceil(nFrames / perRow) * (nRows + 1) - 1];
    const side = add(panes, "div", "side");
    add(side, "div", "name").textContent = "Every head: layers down, heads across, each to its own largest";
    const board = add(side, "div", "wall");
    board.style.gridTemplateColumns = `max-content repeat(${info.heads.length}, minmax(40px, 1fr))`;
    const maps = info.layers.flatMap(([layer], row) => {
      add(board, "div", "row").textContent = layer;
      return info.heads.map((head) => {
        const button = add(board, "button", "map");
        button.type = "button";
        const canvas = Object.assign(add(button, "canvas"), { width: mapWidth, height: mapHeight });
        button.addEventListener("click", () => {
          selects.layer.value = wish.layer = layer;
          selects.head.value = wish.head = head;
          update();
        });
        return { layer, head, button, pen: canvas.getContext("2d"), pixels: new ImageData(mapWidth, mapHeight) };
      });
    });
    let [drawn, asking] = [null, false];
    const paint = (found) =>
      maps.forEach(({ button, layer, head, pen, pixels }, index) => {
        const { top, values, most } = found[index];
        const name = `layer ${layer}, head ${head}: largest ${written(top)}`;
        button.title = name;
        button.setAttribute("aria-label", name);
        for (let token = 0; token < values.length; token++) {
          const [frame, row, col] = coordinates(token);
          const [left, up] = [(frame % perRow) * (nCols + 1), Math.floor(frame / perRow) * (nRows + 1)];
          const level = most > 0 ? Math.round((255 * values[token]) / most) : 0;
          const at = 4 * ((up + row) * mapWidth + left + col);
          pixels.data.set([palette[4 * level], palette[4 * level + 1], palette[4 * level + 2], 255], at);
        }
        pen.putImageData(pixels, 0, 0);
      });
    const mark = () =>
      maps.forEach(({ button, layer, head }) =>
        button.setAttribute("aria-pressed", String(layer === wish.layer && head === wish.head)));
    // As `update`: one question at a time, and only what is wanted last.
    return async () => {
      mark();
      if (asking) return;
      asking = true;
      try {
        for (;;) {
          const asked = { pass: wish.pass, direction: wish.direction, token: wish.token };
          if (asked.direction === "frame") asked.token -= asked.token % (nRows * nCols);
          if (drawn && same(drawn, asked)) break;
          const found = await source.wall(asked);
          paint(found);
          drawn = asked;
        }
      } catch (error) {
        status.textContent = error.message;
      } finally {
        asking = false;
      }
    };
  }

  function readAddress() {
    const held = address ? address.read() : {};
    const choices = {
      pass: info.passes.map((_, index) => index), layer: info.layers.map(([layer]) => layer), head: info.heads,
      direction: DIRECTIONS.map(([name]) => name),
    };
    for (const name of ADDRESS) {
      const found = choices[name].find((choice) => String(choice) === held[name]);
      if (found !== undefined) wish[name] = found;
    }
    const [frame, row, col] = (held.patch ?? "").split(".").map(Number);
    if (!(frame < nFrames && row < nRows && col < nCols)) return;
    wish.token = (frame * nRows + row) * nCols + col;
    pinned = true;
  }

  function writeAddress() {
    if (!address || !pinned) return;
    const parts = ADDRESS.map((name) => [name, wish[name]]);
    address.write(Object.fromEntries([...parts, ["patch", coordinates(wish.token).join(".")]]));
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
      const { pen, pale } = frames[frame];
      pen.putImageData(pale, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(overlay, 0, 0, width, height);
    }
    limit.textContent = written(most);
    topText.textContent = most > 0 ? `${written(most)} at ${place(top)}` : "0: nothing looks here";
  }

  function describe() {
    const whole = wish.direction === "frame";
    patchName.textContent = whole ? "Queries" : wish.direction === "from" ? "Query" : "Key";
    const here = whole ? `all patches of frame ${coordinates(wish.token)[0]}` : place(wish.token);
    patchText.textContent = here + (pinned ? ", pinned" : "");
    patchMark(whole ? null : wish.token);
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
      writeAddress();
      if (wall) wall();
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

// 256 colours between the stops, as RGBA. Where there is no attention the frame shows as it is; the root keeps weak
// attention visible.
function colorTable(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(1024);
  for (let level = 0; level < 256; level++) {
    const at = (level / 255) * (parts.length - 1);
    const low = Math.min(Math.floor(at), parts.length - 2);
    const mixed = parts[low].map((value, channel) => value + (at - low) * (parts[low + 1][channel] - value));
    table.set([...mixed, 255 * 0.92 * Math.sqrt(level / 255)], 4 * level);
  }
  return table;
}

// The picture, lighter and with half of its colour, so that it can be told from what is laid over it.
function paled(image) {
  const { data } = image;
  for (let at = 0; at < data.length; at += 4) {
    const grey = (data[at] + data[at + 1] + data[at + 2]) / 3;
    for (let channel = at; channel < at + 3; channel++) data[channel] = 60 + (0.76 * (data[channel] + grey)) / 2;
  }
  return image;
}

function openPage() {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  // Inside another page's frame there is no address of its own.
  const own = location.protocol !== "about:";
  const address = {
    read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
    write: (parts) => history.replaceState(null, "", `#${new URLSearchParams(parts)}`),
  };
  return mount(document.getElementById("explorer"), pageSource(data), own ? address : null);
}

async function render({ model, el }) {
  const source = kernelSource(model);
  const start = source.start();
  add(el, "style").textContent = (await start).css;
  await mount(el, { ...source, start: () => start });
  return source.close;
}

export default { render };
