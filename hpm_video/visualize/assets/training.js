"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [times, rows, columns] = data.grid;
const tokens = times * rows * columns;
const tubes = rows * columns;
const inputs = {};
for (const name of ["play", "frame", "moment", "step", "train", "layer", "scale", "opacity"]) {
  inputs[name] = document.getElementById(name);
}
const state = { frame: 0, moment: data.steps.length - 1, playing: true, training: false };

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const all = new Float32Array(bytes.buffer);
  return data.steps.map((_, moment) => all.subarray(moment * tokens, (moment + 1) * tokens));
}

// The share of the others below each value, equals counting half.
function rankShares(values) {
  const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
  const shares = new Float32Array(values.length);
  for (let start = 0; start < order.length;) {
    let end = start;
    while (end < order.length && values[order[end]] === values[order[start]]) end++;
    for (let k = start; k < end; k++) {
      shares[order[k]] = (start + end - 1) / 2 / Math.max(1, order.length - 1);
    }
    start = end;
  }
  return shares;
}

// Values of all moments onto [0, 1], by one scale. An untrained model's would leave the others no
// room: beside checkpoints it does not count, and what lies beyond has the colour of an end.
function scaled(moments) {
  let low = Infinity, high = -Infinity;
  for (const [moment, values] of moments.entries()) {
    if (data.remade[moment] && moments.length > 1) continue;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return moments.map((values) => values.map((value) => (value - low) / ((high - low) || 1)));
}

// Mean over time of each tube.
function tubeMeans(values) {
  const means = new Float32Array(tubes);
  for (let token = 0; token < tokens; token++) means[token % tubes] += values[token] / times;
  return means;
}

class Clip {
  constructor(given, place) {
    this.given = given;
    this.section = document.getElementById(`clip${place}`);
    this.canvas = this.section.querySelector("canvas");
    this.chosen = null; // [row, column]
    const measured = floats(given.measured);
    this.values = { measured, left: measured.map((values) => values.map(
      (value, token) => value / (measured[0][token] || 1))) };
    if (given.predicted !== null) this.values.predicted = floats(given.predicted);
    this.tubes = {};
    this.shades = {};
    for (const [layer, moments] of Object.entries(this.values)) {
      this.tubes[layer] = moments.map(tubeMeans);
      this.shades[layer] = { rank: moments.map(rankShares), value: scaled(moments) };
    }
    this.images = given.frames.map((source) => {
      const image = new Image();
      image.src = source;
      return image;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
      this.choose(at((event.clientY - box.top) / box.height, rows),
        at((event.clientX - box.left) / box.width, columns));
    });
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in move)) return;
      event.preventDefault();
      const [row, column] = this.chosen ?? [0, -1];
      this.choose(Math.min(rows - 1, Math.max(0, row + move[event.key][0])),
        Math.min(columns - 1, Math.max(0, column + move[event.key][1])));
    });
  }

  choose(row, column) {
    if (this.chosen !== null && this.chosen[0] === row && this.chosen[1] === column) return;
    this.chosen = [row, column];
    this.draw();
    this.tell();
  }

  draw() {
    const image = this.images[state.frame];
    if (!image.naturalWidth) return;
    const side = Math.max(1, Math.ceil(320 / image.naturalWidth));
    this.canvas.width = image.naturalWidth * side;
    this.canvas.height = image.naturalHeight * side;
    const { width, height } = this.canvas;
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, width, height);
    const across = width / columns, down = height / rows;
    const shades = this.shades[inputs.layer.value]?.[inputs.scale.value][state.moment];
    if (shades !== undefined) {
      const first = Math.floor(state.frame / data.tubelet) * tubes;
      pen.globalAlpha = Number(inputs.opacity.value) / 100;
      for (let tube = 0; tube < tubes; tube++) {
        const shade = Math.round(Math.min(1, Math.max(0, shades[first + tube])) * 255);
        pen.fillStyle = `rgb(${data.colours[shade].join(" ")})`;
        pen.fillRect((tube % columns) * across, Math.floor(tube / columns) * down, across, down);
      }
      pen.globalAlpha = 1;
    }
    if (this.chosen !== null) {
      pen.lineWidth = 3;
      pen.strokeStyle = "#fff";
      pen.strokeRect(this.chosen[1] * across + 1.5, this.chosen[0] * down + 1.5, across - 3, down - 3);
      pen.lineWidth = 1;
      pen.strokeStyle = "#000";
      pen.strokeRect(this.chosen[1] * across + 3, this.chosen[0] * down + 3, across - 6, down - 6);
    }
  }

  // What changes with the step: numbers, and which tubes became easy and which did not.
  list() {
    const { moment } = state;
    const parts = [`measured loss ${mean(this.values.measured[moment]).toPrecision(3)}`];
    if (this.given.spearman[moment] !== null) {
      parts.push(`Spearman ${fixed(this.given.spearman[moment])}`);
      parts.push(`rank accuracy ${fixed(this.given.rank_accuracy[moment])}`);
    }
    this.section.querySelector(".numbers").textContent =
      `step ${data.steps[moment]}: ${parts.join(", ")}`;
    const first = this.tubes.measured[0], now = this.tubes.measured[moment];
    const left = Array.from(now, (value, tube) => value / (first[tube] || 1));
    const order = [...left.keys()].sort((a, b) => left[a] - left[b]);
    this.fill(".easy", order.slice(0, 5), left);
    this.fill(".hard", order.slice(-5).reverse(), left);
    this.tell();
  }

  fill(where, chosen, left) {
    this.section.querySelector(where).replaceChildren(...chosen.map((tube) => {
      const [row, column] = [Math.floor(tube / columns), tube % columns];
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "link";
      const percent = 100 * left[tube];
      const share = percent < 10 ? percent.toPrecision(2) : percent.toFixed(0);
      button.textContent = `${placed(row, column)}: ${share}%`;
      button.addEventListener("click", () => this.choose(row, column));
      item.append(button);
      return item;
    }));
  }

  // The losses of the chosen tube, now and over the training.
  tell() {
    if (this.chosen === null) return;
    const [row, column] = this.chosen;
    const tube = row * columns + column, { moment } = state;
    const now = this.tubes.measured[moment][tube], first = this.tubes.measured[0][tube];
    const rank = (layer) => Math.round(100 * rankShares(this.tubes[layer][moment])[tube]);
    const words = [`Tube in ${placed(row, column)}, mean over time:`,
      `measured ${now.toPrecision(3)} (harder than ${rank("measured")}% of the others);`];
    if (this.tubes.predicted) {
      words.push(`predicted ${this.tubes.predicted[moment][tube].toPrecision(3)} ` +
        `(harder than ${rank("predicted")}%);`);
    }
    words.push(`${first.toPrecision(3)} at step ${data.steps[0]}.`);
    this.section.querySelector(".told").textContent = words.join(" ");
    this.curve(tube);
  }

  // The ranks of a tube over the training, in the manner of the page's other curves.
  curve(tube) {
    const names = ["measured", "predicted"].filter((layer) => this.tubes[layer]);
    const [left, right, top, base] = [46, 324, 8, 102];
    const x = (moment) => left + (right - left) * (data.steps[moment] - data.steps[0]) /
      ((data.steps.at(-1) - data.steps[0]) || 1);
    const lines = names.map((layer, number) => {
      const points = this.tubes[layer].map((values, moment) =>
        `${x(moment)},${base - (base - top) * rankShares(values)[tube]}`);
      return drawn("polyline", { class: `line${number}`, points: points.join(" ") });
    });
    const keys = names.map((name, number) => element("span", { class: `key${number}` }, name));
    const end = { "text-anchor": "end" };
    const curve = drawn("svg", { class: "curve", role: "img", viewBox: "0 0 330 120",
      "aria-label": "rank of the chosen tube by step", "data-first": data.steps[0],
      "data-last": data.steps.at(-1), "data-left": left, "data-right": right },
    drawn("path", { class: "axis", d: `M${left} ${top}V${base}H${right}` }),
    drawn("text", { x: 38, y: 16, ...end }, "1"), drawn("text", { x: 38, y: 102, ...end }, "0"),
    drawn("text", { x: right, y: 116, ...end }, `step ${data.steps.at(-1)}`), ...lines,
    drawn("path", { class: "cursor", d: `M0 ${top}V${base}` }));
    const words = element("figcaption", {}, "Rank of the tube:");
    for (const key of keys) words.append(" ", key);
    this.section.querySelector(".of-tube").replaceChildren(element("figure", {}, words, curve));
    mark(this.section.querySelector(".of-tube"));
  }
}

// Elements of the page, or of its drawings, with attributes and what is inside: never markup.
const element = (name, attributes, ...inside) =>
  filled(document.createElement(name), attributes, inside);
const drawn = (name, attributes, ...inside) =>
  filled(document.createElementNS(document.querySelector("svg").namespaceURI, name),
    attributes, inside);
function filled(made, attributes, inside) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

function mean(values) {
  let total = 0;
  for (const value of values) total += value;
  return total / values.length;
}

// Where a tube is, counted from 1 as on all pages.
const placed = (row, column) => `row ${row + 1}, column ${column + 1}`;

// Two digits; what is rounded to zero has no sign.
const fixed = (value) => value.toFixed(2).replace(/^-(0\.0*)$/, "$1");

// Every curve over steps gets a line at the chosen one.
function mark(within) {
  for (const svg of within.querySelectorAll("svg.curve")) {
    const [first, last, left, right] = ["first", "last", "left", "right"].map(
      (name) => Number(svg.dataset[name]));
    const step = data.steps[state.moment], line = svg.querySelector(".cursor");
    const x = left + (right - left) * (step - first) / ((last - first) || 1);
    line.setAttribute("transform", `translate(${Math.max(left, Math.min(right, x))} 0)`);
    line.setAttribute("visibility", "visible");
  }
}

const clips = data.clips.map((given, place) => new Clip(given, place));
const numFrames = data.clips[0].frames.length;

function draw() {
  for (const clip of clips) clip.draw();
}
function showFrame(frame) {
  state.frame = frame;
  inputs.frame.value = frame;
  inputs.frame.setAttribute("aria-valuetext", `frame ${frame + 1} of ${numFrames}`);
  draw();
}
function showMoment(moment) {
  state.moment = moment;
  inputs.moment.value = moment;
  const step = data.steps[moment];
  inputs.step.textContent = data.remade[moment] ? `${step} (untrained)` : `${step}`;
  inputs.moment.setAttribute("aria-valuetext", `step ${step}`);
  for (const clip of clips) { clip.draw(); clip.list(); }
  mark(document);
}
function press(name, key, words) {
  state[key] = !state[key];
  inputs[name].textContent = words[state[key] ? 1 : 0];
  inputs[name].setAttribute("aria-pressed", state[key]);
}

inputs.frame.max = numFrames - 1;
inputs.play.addEventListener("click", () => press("play", "playing", ["Play", "Pause"]));
inputs.train.addEventListener("click",
  () => press("train", "training", ["Play training", "Stop training"]));
inputs.frame.addEventListener("input", () => {
  if (state.playing) press("play", "playing", ["Play", "Pause"]);
  showFrame(Number(inputs.frame.value));
});
inputs.moment.addEventListener("input", () => showMoment(Number(inputs.moment.value)));
for (const name of ["layer", "scale", "opacity"]) inputs[name].addEventListener("input", draw);
if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  press("play", "playing", ["Play", "Pause"]);
}
setInterval(() => { if (state.playing) showFrame((state.frame + 1) % numFrames); }, 160);
setInterval(() => {
  if (state.training) showMoment((state.moment + 1) % data.steps.length);
}, 900);
showMoment(state.moment);
showFrame(0);
Promise.all(clips.flatMap((clip) => clip.images.map((image) => image.decode()))).then(() => {
  draw();
  document.documentElement.dataset.ready = "true";
});
