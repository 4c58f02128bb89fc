// Where the attention explorer's numbers come from: Python behind a notebook, or the page itself. A source has
//   start() -> {info, image}: what there is to choose, and the frames as the bytes of one picture
//   row({pass, layer, head, direction, token}) -> {values, half}: a probability for every token, and a function that
//   gives half the step to which a value was rounded
//   wall({pass, direction, token}) -> [{top, values, most}]: of every layer and head the largest probability, and
//   numbers for every token of which `most` stands for it
const PATIENCE = 15000; // milliseconds until a row that does not come is given up

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
    const timer = question.kind !== "start" && setTimeout(giveUp, PATIENCE);
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
    wall: async (wish) => {
      const { tops, levels, bytes } = await ask({ kind: "wall", ...wish });
      const size = bytes.length / tops.length;
      return tops.map((top, at) => ({ top, values: bytes.subarray(at * size, (at + 1) * size), most: levels }));
    },
    close: () => model.off("msg:custom", hear),
  };
}

function pageSource({ info, image, blocks }) {
  const heads = new Map();
  const inFrame = info.grid[1] * info.grid[2];
  const size = info.grid[0] * inFrame;
  const head = async (wish) => {
    const layer = info.layers.findIndex(([index]) => index === wish.layer);
    const place = (wish.pass * info.layers.length + layer) * info.heads.length + info.heads.indexOf(wish.head);
    if (!heads.has(place)) heads.set(place, await inflate(fromBase64(blocks[place])));
    const block = heads.get(place);
    return { maxima: new Float32Array(block, 0, size), levels: new Uint8Array(block, 4 * size) };
  };
  const rowOf = ({ maxima, levels }, { direction, token }) => {
    const values = new Float32Array(size);
    if (direction === "frame") {
      const [first, n] = [Math.floor(token / inFrame) * inFrame, inFrame];
      let half = 0;
      for (let query = first; query < first + n; query++) {
        const unit = maxima[query] / info.levels / n;
        half += unit / 2;
        for (let key = 0; key < size; key++) values[key] += levels[query * size + key] * unit;
      }
      return { values, half: () => half };
    }
    const query = (other) => (direction === "from" ? token : other);
    const level = (other) => levels[direction === "from" ? token * size + other : other * size + token];
    for (let other = 0; other < size; other++) values[other] = (level(other) * maxima[query(other)]) / info.levels;
    return { values, half: (other) => maxima[query(other)] / info.levels / 2 };
  };
  return {
    start: async () => ({ info, image: fromBase64(image) }),
    row: async (wish) => rowOf(await head(wish), wish),
    wall: async (wish) => {
      const found = [];
      for (const [layer] of info.layers)
        for (const one of info.heads) {
          const { values } = rowOf(await head({ ...wish, layer, head: one }), wish);
          const top = values.reduce((most, value) => Math.max(most, value), 0);
          found.push({ top, values, most: top });
        }
      return found;
    },
  };
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

