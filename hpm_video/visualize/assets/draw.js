// One frame of one view, on a canvas of any size that has the video's shape.
const GREY = "rgb(128, 128, 128)";
const HARD = "#ffd400";

// What of the video is shown in place of it, and what is drawn on it.
const VIEWS = {
  clip: { name: "The video" },
  predicted: { name: "Predicted loss", heat: "predicted", needs: "predicted" },
  motion: { name: "Frame differences", heat: "motion", needs: "motion" },
  codec: { name: "Codec motion", heat: "codec", needs: "codec" },
  rollout: { name: "Attention rollout", heat: "rollout", needs: "rollout" },
  relevance: { name: "Evidence for the class", heat: "relevance", needs: "relevance" },
  measured: { name: "Measured loss", heat: "measured" },
  hard: { name: "Mask with hard tubes", hides: (now) => now.mask.masked },
  random: { name: "Random mask", hides: (now) => now.random },
  seen: { name: "What the model saw", hides: (now) => now.crop.seen },
  honest: { name: "Reconstruction, honest", pixels: "honest", needs: "honest" },
  flattering: { name: "True statistics: flattering", pixels: "flattering", needs: "flattering" },
};

const draw = {
  small: document.createElement("canvas"), // a pixel per token

  view(canvas, name, state) {
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    const [shown, frame] = here(state);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    if (VIEWS[name].heat) context.filter = "grayscale(1)"; // so that colours are of the heat alone
    context.drawImage(shown.frames[frame], 0, 0, width, height);
    context.filter = "none";
    data.places.forEach((place, index) => {
      const now = moment(state, index);
      const box = draw.box(place, width, height);
      context.save();
      context.beginPath();
      context.rect(...draw.box(data.owned[index], width, height));
      context.clip();
      draw.layer(context, VIEWS[name], box, now, state, frame);
      const isMask = name === "hard" || name === "random" || name === "seen";
      if (name === "hard" || (state.outline && !isMask)) {
        draw.outline(context, now.mask.hardTokens, now.step, box);
      }
      context.restore();
    });
    draw.surroundings(context, width, height, name);
  },

  layer(context, view, box, now, state, frame) {
    if (view.heat) {
      const { crop, first } = now;
      const value = (cell) => share(crop, view.heat, state.level, first + cell, state.colours);
      context.globalAlpha = state.opacity;
      draw.cells(context, box, (cell) => [...colour(value(cell)), 255]);
      context.globalAlpha = 1;
    } else if (view.hides) {
      const hidden = view.hides(now);
      draw.cells(context, box, (cell) => [128, 128, 128, hidden[now.first + cell] ? 255 : 0]);
    } else if (view.pixels) {
      const images = now.crop[view.pixels];
      if (images) context.drawImage(images[frame], ...box);
    }
  },

  // Tokens of a step in time, of colours [red, green, blue, alpha], 0 to 255.
  cells(context, box, colourOf) {
    const [, rows, columns] = data.grid;
    const { small } = draw;
    [small.width, small.height] = [columns, rows];
    const inner = small.getContext("2d");
    const pixels = inner.createImageData(columns, rows);
    for (let cell = 0; cell < rows * columns; cell++) pixels.data.set(colourOf(cell), 4 * cell);
    inner.putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, ...box);
    context.imageSmoothingEnabled = true;
  },

  // A line around the flagged tokens of a step in time.
  outline(context, flags, step, [left, top, width, height]) {
    const [, rows, columns] = data.grid;
    const flag = (row, column) =>
      row >= 0 && column >= 0 && row < rows && column < columns
        ? flags[(step * rows + row) * columns + column]
        : 0;
    const x = (column) => left + (column * width) / columns;
    const y = (row) => top + (row * height) / rows;
    context.beginPath();
    for (let row = 0; row <= rows; row++) {
      for (let column = 0; column <= columns; column++) {
        if (flag(row, column) !== flag(row, column - 1)) {
          context.moveTo(x(column), y(row));
          context.lineTo(x(column), y(row + 1));
        }
        if (flag(row, column) !== flag(row - 1, column)) {
          context.moveTo(x(column), y(row));
          context.lineTo(x(column + 1), y(row));
        }
      }
    }
    const thickness = Math.max(1.5, context.canvas.width / 320);
    context.lineCap = "square";
    for (const [style, wide] of [["rgba(0, 0, 0, .7)", 2], [HARD, 1]]) {
      context.strokeStyle = style;
      context.lineWidth = wide * thickness;
      context.stroke();
    }
  },

  // Darkens what the model does not see.
  surroundings(context, width, height, name) {
    if (name === "clip" || data.places.some((p) => p[2] > 0.999 && p[3] > 0.999)) return;
    context.beginPath();
    context.rect(0, 0, width, height);
    for (const place of data.owned) {
      const [left, top, wide, high] = draw.box(place, width, height);
      context.moveTo(left, top);
      context.lineTo(left, top + high);
      context.lineTo(left + wide, top + high);
      context.lineTo(left + wide, top);
      context.closePath();
    }
    context.fillStyle = "rgba(0, 0, 0, .5)";
    context.fill("nonzero");
  },

  // The chosen tube.
  choice(canvas, state) {
    const context = canvas.getContext("2d");
    const [, rows, columns] = data.grid;
    const [left, top, width, height] = draw.box(data.places[state.crop], canvas.width, canvas.height);
    const cell = [width / columns, height / rows];
    const corner = [left + state.column * cell[0], top + state.row * cell[1]];
    for (const [style, wide] of [["#000", 5], ["#fff", 2.5]]) {
      context.strokeStyle = style;
      context.lineWidth = wide * Math.max(1, canvas.width / 700);
      context.strokeRect(...corner, ...cell);
    }
  },

  box: ([top, left, height, width], wide, high) => [
    left * wide, top * high, width * wide, height * high,
  ],
};
