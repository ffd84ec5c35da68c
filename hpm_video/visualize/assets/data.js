// What the page was given, unpacked: clips are windows of the video, each in one or more crops.
const data = JSON.parse(document.getElementById("data").textContent);

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

// The share of the others below each value, in [0, 1]; equal values share their mean.
function ranks(values) {
  const order = Array.from(values, (_, i) => i).sort((a, b) => values[a] - values[b]);
  const result = new Float32Array(values.length);
  for (let first = 0; first < order.length; ) {
    let last = first;
    while (last + 1 < order.length && values[order[last + 1]] === values[order[first]]) last++;
    for (let i = first; i <= last; i++) {
      result[order[i]] = (first + last) / 2 / Math.max(1, order.length - 1);
    }
    first = last + 1;
  }
  return result;
}

// Losses of tokens (N) and of tubes (U), and what both are among the others of their clip.
function losses(packed) {
  if (!packed) return null;
  const token = floats(packed.tokens);
  const units = floats(packed.tubes);
  const spread = (values) => masks.toTokens(values, data.grid, data.tubeLength);
  return {
    units,
    token: { values: token, ranks: ranks(token) },
    tube: { values: spread(units), ranks: spread(ranks(units)) },
  };
}

function image(source) {
  const result = new Image();
  result.src = source;
  return result;
}

for (const shown of data.windows) {
  shown.frames = shown.frames.map(image);
  for (const crop of shown.crops) {
    for (const name of data.kinds) crop[name] = losses(crop[name]);
    crop.seen = bytes(crop.seen);
    for (const name of ["honest", "flattering"]) crop[name] = crop[name] && crop[name].map(image);
  }
}
data.palette = bytes(data.palette); // 256 colours, 3 bytes each

// The lowest and highest loss of all clips, by kind and level: the ends of colours by value.
data.range = {};
for (const kind of data.kinds) {
  data.range[kind] = {};
  for (const level of ["token", "tube"]) {
    let [low, high] = [Infinity, -Infinity];
    for (const crop of data.windows.flatMap((shown) => shown.crops)) {
      for (const value of crop[kind] ? crop[kind][level].values : []) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    data.range[kind][level] = [low, high];
  }
}

// A colour's place in the palette for a loss, in [0, 1].
function share(crop, kind, level, token, colours) {
  if (colours === "rank") return crop[kind][level].ranks[token];
  const [low, high] = data.range[kind][level];
  return high > low ? (crop[kind][level].values[token] - low) / (high - low) : 0.5;
}

const colour = (value) => {
  const entry = 3 * Math.max(0, Math.min(255, Math.round(value * 255)));
  return data.palette.subarray(entry, entry + 3);
};
