// Which tubes a mask hides: the rule of hpm_video.method.masking.make_mask, of scores per tube.
const masks = {
  // The small term keeps 0.29 * 100 = 28.999... at 29.
  floorShare: (ratio, count) => Math.floor(ratio * count + 1e-9),

  // How many tubes are masked, leaving at least one of each, and how many of them by score.
  counts(units, maskRatio, hardRatio) {
    const masked = Math.min(Math.max(masks.floorShare(maskRatio, units), 1), units - 1);
    return { masked, hard: masks.floorShare(hardRatio, masked) };
  },

  // Flags (U) of the `count` highest scores (U); of equal ones, the first.
  hardest(scores, count) {
    const order = Array.from(scores, (_, unit) => unit);
    order.sort((a, b) => scores[b] - scores[a] || a - b);
    const flags = new Uint8Array(scores.length);
    for (const unit of order.slice(0, count)) flags[unit] = 1;
    return flags;
  },

  // Flags (U) of those in `taken`, and random others up to `count`.
  fill(taken, count, seed) {
    const flags = Uint8Array.from(taken);
    const random = masks.generator(seed);
    const free = [];
    flags.forEach((flag, unit) => flag || free.push([random(), unit]));
    free.sort((a, b) => a[0] - b[0]);
    const missing = count - (flags.length - free.length);
    for (const [, unit] of free.slice(0, Math.max(0, missing))) flags[unit] = 1;
    return flags;
  },

  // A mask with hard tubes: {hard, masked}, flags (U).
  hardMask(scores, maskRatio, hardRatio, seed) {
    const counts = masks.counts(scores.length, maskRatio, hardRatio);
    const hard = masks.hardest(scores, counts.hard);
    return { hard, masked: masks.fill(hard, counts.masked, seed) };
  },

  randomMask(units, maskRatio, seed) {
    const counts = masks.counts(units, maskRatio, 0);
    return masks.fill(new Uint8Array(units), counts.masked, seed);
  },

  // Values of tubes (U), by (place in time, row, column), for every token (N).
  toTokens(values, grid, tubeLength) {
    const [time, rows, columns] = grid;
    const tokens = new values.constructor(time * rows * columns);
    for (let token = 0; token < tokens.length; token++) {
      const step = Math.floor(token / (rows * columns));
      const tube = Math.floor(step / tubeLength) * rows * columns + (token % (rows * columns));
      tokens[token] = values[tube];
    }
    return tokens;
  },

  // Uniform numbers in [0, 1) that are the same for the same seed (mulberry32).
  generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  },
};
