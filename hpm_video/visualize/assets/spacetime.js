// Tubes in space and time: frames behind one another, and rows and columns over time.
const spaceTime = {
  // A colour of the page, in words that a canvas knows.
  ink(name) {
    by("stack").style.color = `var(${name})`;
    return getComputedStyle(by("stack")).color;
  },

  // Slices of the clip side by side in time, on which only its hardest tokens are coloured.
  stack(canvas, state) {
    const context = canvas.getContext("2d");
    const [time, rows, columns] = data.grid;
    const [shown] = here(state);
    const now = moment(state, state.crop);
    const [top, left, high, wide] = data.places[state.crop];
    const shape = (wide * data.shown[1]) / (high * data.shown[0]);
    const lift = canvas.height * 0.2; // how much higher the far side of a slice is
    const tall = canvas.height - lift - 20;
    const slice = Math.min(tall * shape * 0.6, canvas.width / 3); // its width, seen from the side
    const apart = time > 1 ? Math.min((canvas.width - slice - 20) / (time - 1), slice * 1.1) : 0;
    const start = (canvas.width - slice - apart * (time - 1)) / 2;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (let step = 0; step < time; step++) {
      const transform = [
        slice, -lift, 0, tall,
        start + step * apart, 10 + lift,
      ];
      context.setTransform(...transform);
      const frame = shown.frames[step * data.tubelet];
      const [w, h] = [frame.naturalWidth, frame.naturalHeight];
      context.globalAlpha = 0.3;
      context.drawImage(frame, left * w, top * h, wide * w, high * h, 0, 0, 1, 1);
      context.globalAlpha = 1;
      const values = now.crop[state.by].token.ranks;
      for (let cell = 0; cell < rows * columns; cell++) {
        const value = values[step * rows * columns + cell];
        if (value <= 1 - state.hardest) continue;
        // The colours of the hardest alone: from the middle of the palette on
        const [red, green, blue] = colour(0.45 + (0.55 * (value - 1 + state.hardest)) / state.hardest);
        context.fillStyle = `rgba(${red}, ${green}, ${blue}, .92)`;
        context.fillRect((cell % columns) / columns, Math.floor(cell / columns) / rows, 1 / columns, 1 / rows);
      }
      context.beginPath();
      context.rect(0, 0, 1, 1);
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.lineWidth = step === now.step ? 3 : 1;
      context.strokeStyle = spaceTime.ink(step === now.step ? "--accent" : "--line");
      context.stroke();
    }
  },

  // The hardest token of every column (or row) at every step in time: rows of a picture are steps.
  slice(canvas, state, along) {
    const context = canvas.getContext("2d");
    const [time, rows, columns] = data.grid;
    const across = along === "columns" ? columns : rows;
    const steps = data.windows.length * time;
    const { small } = draw;
    [small.width, small.height] = [across, steps];
    const inner = small.getContext("2d");
    const pixels = inner.createImageData(across, steps);
    data.windows.forEach((shown, index) => {
      const values = shown.crops[state.crop][state.by].token.ranks;
      for (let step = 0; step < time; step++) {
        for (let place = 0; place < across; place++) {
          const value = spaceTime.reduced(values, step, place, along, state);
          const at = 4 * ((index * time + step) * across + place);
          pixels.data.set([...colour(value), 255], at);
        }
      }
    });
    inner.putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    const [w, frame] = data.timeline[state.position];
    const y = ((w * time + (frame + 0.5) / data.tubelet) / steps) * canvas.height;
    const x = (((along === "columns" ? state.column : state.row) + 0.5) / across) * canvas.width;
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.setLineDash([6, 4]);
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(canvas.width, y);
    context.moveTo(x, 0);
    context.lineTo(x, canvas.height);
    context.stroke();
    context.setLineDash([]);
  },

  reduced(values, step, place, along, state) {
    const [, rows, columns] = data.grid;
    const token = (row, column) => values[(step * rows + row) * columns + column];
    if (state.slices === "chosen") {
      return along === "columns" ? token(state.row, place) : token(place, state.column);
    }
    let most = 0;
    for (let i = 0; i < (along === "columns" ? rows : columns); i++) {
      most = Math.max(most, along === "columns" ? token(i, place) : token(place, i));
    }
    return most;
  },

  // A tube over time: how many of the clip's tokens are easier, predicted and measured.
  chart(canvas, state) {
    const context = canvas.getContext("2d");
    const [time, rows, columns] = data.grid;
    const { width, height } = canvas;
    const [left, right, low, top] = [80, width - 10, height - 34, 12];
    const steps = data.windows.length * time;
    const x = (step) => left + ((step + 0.5) / steps) * (right - left);
    const y = (value) => low - value * (low - top);
    context.clearRect(0, 0, width, height);
    context.font = "20px system-ui, sans-serif";
    context.fillStyle = spaceTime.ink("--muted");
    context.strokeStyle = spaceTime.ink("--line");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of [0, 0.5, 1]) {
      context.fillText(`${100 * value}%`, left - 8, y(value));
      context.beginPath();
      context.moveTo(left, y(value));
      context.lineTo(right, y(value));
      context.stroke();
    }
    context.textAlign = "center";
    context.fillText("time →", (left + right) / 2, height - 12);
    const [w, frame] = data.timeline[state.position];
    const cursor = x(w * time + (frame + 0.5) / data.tubelet - 0.5);
    context.strokeStyle = spaceTime.ink("--accent");
    context.beginPath();
    context.moveTo(cursor, top);
    context.lineTo(cursor, low);
    context.stroke();
    for (const kind of ["predicted", "measured"]) {
      if (!data.windows[0].crops[0][kind]) continue;
      context.strokeStyle = spaceTime.ink(`--${kind}`);
      context.fillStyle = context.strokeStyle;
      context.lineWidth = 3;
      context.setLineDash(kind === "measured" ? [8, 5] : []);
      context.beginPath();
      for (let step = 0; step < steps; step++) {
        const crop = data.windows[Math.floor(step / time)].crops[state.crop];
        const token = ((step % time) * rows + state.row) * columns + state.column;
        const value = y(crop[kind].token.ranks[token]);
        if (step % time === 0) context.moveTo(x(step), value);
        else context.lineTo(x(step), value);
        if (steps <= 32) context.fillRect(x(step) - 4, value - 4, 8, 8);
      }
      context.stroke();
      context.setLineDash([]);
    }
  },
};
