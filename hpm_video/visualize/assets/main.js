// The state of the page, and everything that changes it.
const by = (id) => document.getElementById(id);
const pictures = [by("picture"), ...document.querySelectorAll("[data-panel]")];
const state = {
  position: 0, // in data.timeline
  view: "clip",
  level: "token",
  colours: "rank",
  opacity: 0.6,
  by: data.scoredBy,
  hardRatio: data.hardRatio,
  maskRatio: data.masking.mask_ratio,
  outline: false,
  seed: 1,
  crop: Math.floor(data.places.length / 2),
  row: Math.floor(data.grid[1] / 2),
  column: Math.floor(data.grid[2] / 2),
  hardest: 0.15,
  slices: "hardest",
  speed: 1,
  playing: null,
};

// The window shown and the place in it of the frame shown.
function here(current) {
  const [shown, frame] = data.timeline[current.position];
  return [data.windows[shown], frame];
}

// Rows and columns of a frame, where the run masks blocks of it.
const blockFrame = data.masking.pattern === "blocks" ? data.grid.slice(1) : null;

// What there is to draw of a crop at the time shown; masks are kept until a setting changes.
const kept = new Map();
function moment(current, index) {
  const [shown, frame] = data.timeline[current.position];
  const crop = data.windows[shown].crops[index];
  const key = [shown, index, current.by, current.maskRatio, current.hardRatio, current.seed].join();
  if (!kept.has(key)) {
    if (kept.size > 300) kept.clear();
    const { units } = crop[current.by];
    const seed = current.seed * 1000 + shown * 10 + index;
    const tokens = (flags) => masks.toTokens(flags, data.grid, data.tubeLength);
    const mask = masks.hardMask(units, current.maskRatio, current.hardRatio, seed, blockFrame);
    kept.set(key, {
      mask: { masked: tokens(mask.masked), hardTokens: tokens(mask.hard), hard: mask.hard },
      random: tokens(masks.randomMask(units.length, current.maskRatio, seed + 7, blockFrame)),
    });
  }
  const step = Math.floor(frame / data.tubelet);
  return { ...kept.get(key), crop, step, first: step * data.grid[1] * data.grid[2] };
}

const SAID = {
  predicted: "predicted score",
  motion: "frame difference",
  codec: "codec motion",
  rollout: "attention rollout",
  relevance: "evidence for the class",
  measured: "measured loss",
};
const percent = (value) => `${(100 * value).toFixed(0)}%`;
// Rounded; what is rounded to zero has no sign.
const rounded = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1");
const fixed = (value) => (value === null ? "–" : rounded(value, 2));

function redraw() {
  const [shown, frame] = data.timeline[state.position];
  draw.view(by("picture"), state.view, state);
  for (const canvas of document.querySelectorAll("[data-panel]")) {
    draw.view(canvas, canvas.dataset.panel, state);
  }
  for (const canvas of pictures) draw.choice(canvas, state);
  for (const canvas of document.querySelectorAll("[data-view] canvas")) {
    draw.view(canvas, canvas.parentElement.dataset.view, state);
  }
  spaceTime.stack(by("stack"), state);
  spaceTime.slice(by("columns"), state, "columns");
  spaceTime.slice(by("rows"), state, "rows");
  spaceTime.chart(by("chart"), state);
  const [index, seconds] = data.times[state.position];
  const time = seconds === null ? "" : `, ${seconds.toFixed(2)} s`;
  by("when").textContent = `frame ${index + 1} of ${data.numFrames}${time}`;
  by("time").value = state.position;
  by("time").setAttribute("aria-valuetext", by("when").textContent);
  by("warning").hidden = state.view !== "flattering";
  by("tube").textContent = tubeText();
  numbers(shown);
  by("picture").dataset.frame = frame;
}

function tubeText() {
  const now = moment(state, state.crop);
  const [, rows, columns] = data.grid;
  const token = now.first + state.row * columns + state.column;
  const at = state.level;
  const parts = [`Tube in row ${state.row + 1} of ${rows}, column ${state.column + 1} of ${columns}`];
  for (const kind of data.kinds) {
    const { values, ranks: among } = now.crop[kind][at];
    parts.push(`${SAID[kind]} ${rounded(values[token], 3)}, above ${percent(among[token])} of the clip's ${at}s`);
  }
  parts.push(now.mask.hardTokens[token] ? "among the hard tubes" : "not among the hard tubes");
  return `${parts.join("; ")}.`;
}

// The table of numbers, of the window and crop shown.
function numbers(shown) {
  const crop = data.windows[shown].crops[state.crop];
  const { hard: chosen, hardTokens: hard } = moment(state, state.crop).mask;
  const { values } = crop.measured.token;
  let [covered, total, count] = [0, 0, 0];
  values.forEach((value, token) => {
    total += value;
    covered += hard[token] ? value : 0;
    count += hard[token];
  });
  const units = crop.measured.units;
  const counts = masks.counts(units.length, state.maskRatio, state.hardRatio);
  const best = masks.toTokens(masks.hardest(units, counts.hard), data.grid, data.tubeLength);
  const most = values.reduce((sum, value, token) => sum + (best[token] ? value : 0), 0);
  by("spearman").textContent = fixed(crop.spearman);
  for (const [kind, value] of Object.entries(crop.agreement)) {
    document.querySelector(`[data-agreement="${kind}"]`).textContent = `Spearman ${fixed(value)}`;
  }
  if (crop.seenAs) by("seen-as").textContent = `${crop.seenAs[0]}, score ${rounded(crop.seenAs[1], 3)}`;
  by("accuracy").textContent = fixed(crop.rankAccuracy);
  by("covered").textContent = percent(total > 0 ? covered / total : 0);
  by("covered-chance").textContent =
    `chance ${percent(count / values.length)}, best possible ${percent(total > 0 ? most / total : 0)}`;
  const numHard = chosen.reduce((sum, flag) => sum + flag); // blocks may hold fewer than wanted
  by("counts").textContent =
    `${counts.masked} of ${units.length} tubes masked, ${numHard} of them by score`;
}

function choose(row, column, crop = state.crop) {
  const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1);
  state.row = clamp(row, data.grid[1]);
  state.column = clamp(column, data.grid[2]);
  state.crop = crop;
  redraw();
  table();
}

// Says the chosen tube to screen readers once it stays chosen for a moment.
let saying = null;
function table() {
  clearTimeout(saying);
  saying = setTimeout(() => (by("said").textContent = tubeText()), 500);
  const [shown] = data.timeline[state.position];
  const crop = data.windows[shown].crops[state.crop];
  const [time, rows, columns] = data.grid;
  const lines = [["step", ...data.kinds]];
  for (let step = 0; step < time; step++) {
    const token = (step * rows + state.row) * columns + state.column;
    lines.push([step + 1, ...data.kinds.map((kind) => rounded(crop[kind].token.values[token], 4))]);
  }
  by("values").replaceChildren(
    ...lines.map((cells, index) => {
      const line = document.createElement("tr");
      for (const cell of cells) {
        const element = document.createElement(index ? "td" : "th");
        element.textContent = cell;
        line.append(element);
      }
      return line;
    }),
  );
}

// The tube under the pointer: [row, column, crop], or null outside of what the model sees.
function under(event) {
  const frame = event.currentTarget.getBoundingClientRect();
  const x = (event.clientX - frame.left) / frame.width;
  const y = (event.clientY - frame.top) / frame.height;
  const inside = ([top, left, height, width]) =>
    y >= top && y < top + height && x >= left && x < left + width;
  const crop = data.owned.findIndex(inside);
  if (crop < 0) return null;
  const [top, left, height, width] = data.places[crop];
  const row = Math.floor(((y - top) / height) * data.grid[1]);
  return [row, Math.floor(((x - left) / width) * data.grid[2]), crop];
}

function show(position) {
  const before = data.timeline[state.position][0];
  state.position = (position + data.timeline.length) % data.timeline.length;
  redraw();
  if (data.timeline[state.position][0] !== before) table();
}

function play(on) {
  clearInterval(state.playing);
  state.playing = on ? setInterval(() => show(state.position + 1), 1000 / (data.fps * state.speed)) : null;
  by("play").textContent = on ? "Pause" : "Play";
  by("play").setAttribute("aria-pressed", String(on));
}

function look(view) {
  state.view = view;
  by("view").value = view;
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  redraw();
}
