// The controls: sliders, choices, pointer and keys.
const KEYS = {
  ArrowLeft: () => choose(state.row, state.column - 1),
  ArrowRight: () => choose(state.row, state.column + 1),
  ArrowUp: () => choose(state.row - 1, state.column),
  ArrowDown: () => choose(state.row + 1, state.column),
  " ": () => play(state.playing === null),
  ",": () => show(state.position - 1),
  ".": () => show(state.position + 1),
  h: () => by("outline").click(),
};

function slider(id, name, label) {
  const input = by(id);
  const say = () => {
    by(`${id}-value`).textContent = label(state[name]);
    input.setAttribute("aria-valuetext", label(state[name]));
  };
  input.value = state[name];
  say();
  input.addEventListener("input", () => {
    state[name] = Number(input.value);
    say();
    redraw();
  });
}

function choice(id, name) {
  by(id).value = state[name];
  by(id).addEventListener("change", () => {
    state[name] = by(id).value;
    redraw();
  });
}

// A canvas with the shape of the video.
function size(canvas, longSide) {
  const [height, width] = data.shown;
  const scale = longSide / Math.max(height, width);
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
}

function thumbnails() {
  for (const [name, view] of Object.entries(VIEWS)) {
    if (view.needs && !data.windows[0].crops[0][view.needs]) continue;
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const text = document.createElement("span");
    button.type = "button";
    button.dataset.view = name;
    text.textContent = view.name;
    canvas.setAttribute("aria-hidden", "true");
    size(canvas, 260);
    button.append(canvas, text);
    if (name in data.windows[0].crops[0].agreement) {
      const value = document.createElement("small");
      value.dataset.agreement = name;
      button.append(value);
    }
    button.addEventListener("click", () => {
      look(name);
      by("picture").scrollIntoView({ block: "nearest" });
    });
    by("view").append(new Option(view.name, name));
    by(view.heat ? "sources" : "views").append(button);
  }
}

function pointer() {
  for (const picture of pictures) {
    for (const kind of ["pointermove", "pointerdown"]) {
      picture.addEventListener(kind, (event) => {
        const found = under(event);
        if (found) choose(...found);
      });
    }
  }
  for (const along of ["columns", "rows"]) {
    by(along).addEventListener("pointerdown", (event) => {
      const frame = by(along).getBoundingClientRect();
      const across = (event.clientX - frame.left) / frame.width;
      const down = (event.clientY - frame.top) / frame.height;
      const step = Math.floor(down * data.windows.length * data.grid[0]);
      const [shown, frameOf] = [Math.floor(step / data.grid[0]), (step % data.grid[0]) * data.tubelet];
      const position = data.timeline.findIndex(([w, f]) => w === shown && f >= frameOf);
      if (position >= 0) show(position);
      if (along === "columns") choose(state.row, Math.floor(across * data.grid[2]));
      else choose(Math.floor(across * data.grid[1]), state.column);
    });
  }
}

function keys() {
  by("picture").addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
}

async function start() {
  for (const canvas of pictures) size(canvas, 720);
  thumbnails();
  slider("opacity", "opacity", percent);
  slider("hard-ratio", "hardRatio", (value) => value.toFixed(2));
  slider("mask-ratio", "maskRatio", (value) => value.toFixed(2));
  slider("hardest", "hardest", percent);
  choice("level", "level");
  choice("colours", "colours");
  choice("scores", "by");
  choice("slices", "slices");
  by("outline").addEventListener("change", () => {
    state.outline = by("outline").checked;
    redraw();
  });
  by("time").max = data.timeline.length - 1;
  by("time").addEventListener("input", () => show(Number(by("time").value)));
  by("speed").addEventListener("change", () => {
    state.speed = Number(by("speed").value);
    if (state.playing !== null) play(true);
  });
  by("play").addEventListener("click", () => play(state.playing === null));
  by("again").addEventListener("click", () => {
    state.seed += 1;
    redraw();
  });
  by("view").addEventListener("change", () => look(by("view").value));
  by("theme").addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  pointer();
  keys();
  const images = (shown) => [
    ...shown.frames,
    ...shown.crops.flatMap((crop) => [...(crop.honest || []), ...(crop.flattering || [])]),
  ];
  await Promise.all(images(data.windows[0]).map((picture) => picture.decode()));
  look(state.view);
  table();
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  document.documentElement.dataset.ready = "true";
}

start();
