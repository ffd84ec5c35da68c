// Which tubes a mask hides: the rule of hpm_video.method.masking.make_mask, of scores per tube.
const masks = {
  // The small term keeps 0.29 * 100 = 28.999... at 29.
  floorShare: (ratio, count) => Math.floor(ratio * count + 1e-9),

  // How many tubes are masked, leaving at least one of each, and how many of them by score.
  counts(units, maskRatio, hardRatio) {
    const masked = Math.min(Math.max(masks.floorShare(maskRatio, units), 1), units - 1);
    return { masked, hard: masks.floorShare(hardRatio, masked) };
  },

  // Flags (U) of the `count` highest scores (U), never of -Infinity; of equal ones, those with the
  // lowest `place` (U).
  hardest(scores, count, place = scores.map((_, unit) => unit)) {
    const order = Array.from(scores, (_, unit) => unit);
    order.sort((a, b) => scores[b] - scores[a] || place[a] - place[b]);
    const flags = new Uint8Array(scores.length);
    for (const unit of order.slice(0, count)) flags[unit] = scores[unit] > -Infinity ? 1 : 0;
    return flags;
  },

  // Flags (U) of those in `taken`, and others up to `count`: at random, but by their `turn` (U).
  fill(taken, count, seed, turn = null) {
    const flags = Uint8Array.from(taken);
    const random = masks.generator(seed);
    const free = [];
    flags.forEach((flag, unit) => flag || free.push([random() + (turn ? turn[unit] : 0), unit]));
    free.sort((a, b) => a[0] - b[0]);
    const missing = count - (flags.length - free.length);
    for (const [, unit] of free.slice(0, Math.max(0, missing))) flags[unit] = 1;
    return flags;
  },

  // A mask with hard tubes: {hard, masked}, flags (U). In blocks of a `frame` of so many rows and
  // columns, if it is given.
  hardMask(scores, maskRatio, hardRatio, seed, frame = null) {
    const counts = masks.counts(scores.length, maskRatio, hardRatio);
    if (!frame) {
      const hard = masks.hardest(scores, counts.hard);
      return { hard, masked: masks.fill(hard, counts.masked, seed) };
    }
    const blocks = masks.blocks(frame, masks.draws(seed, 1 + 3 * (8 + 32)));
    const ties = masks.draws(seed + 1, scores.length);
    const hard = masks.hardest(blocks.scores(scores), counts.hard, ties);
    return { hard, masked: masks.fill(hard, counts.masked, seed + 2, blocks.turn) };
  },

  randomMask(units, maskRatio, seed, frame = null) {
    const counts = masks.counts(units, maskRatio, 0);
    const turn = frame && masks.blocks(frame, masks.draws(seed, 1 + 3 * 8)).turn;
    return masks.fill(new Uint8Array(units), counts.masked, seed + 2, turn);
  },

  // The rule of hpm_video.method.blocks, of random numbers: turn (U) is the first block that hides
  // a unit, scores(values) for each unit the highest mean of the candidates for hard ones that hold
  // it, -Infinity where none does.
  blocks([rows, columns], draws) {
    const units = rows * columns;
    const held = (block, share) => {
      const [shape, ...places] = draws.slice(1 + 3 * block, 4 + 3 * block);
      const [size, aspect] = [Math.floor(share * units), 0.75 + 0.75 * shape];
      const sides = [[rows, size * aspect], [columns, size / aspect]];
      const [down, right] = sides.map(([length, area], axis) => {
        const extent = Math.min(Math.max(Math.round(Math.sqrt(area)), 1), length);
        const first = Math.min(Math.floor(places[axis] * (length - extent + 1)), length - extent);
        return Array.from({ length: extent }, (_, place) => first + place);
      });
      return down.flatMap((row) => right.map((column) => row * columns + column));
    };
    const [count, share] = draws[0] < 0.5 ? [8, 0.15] : [2, 0.7];
    const turn = new Uint8Array(units).fill(8);
    for (let block = count - 1; block >= 0; block--) {
      for (const unit of held(block, share)) turn[unit] = block;
    }
    const scores = (values) => {
      const best = new Array(units).fill(-Infinity);
      for (let block = 8; block < 8 + 32; block++) {
        const there = held(block, 0.15);
        const mean = there.reduce((sum, unit) => sum + values[unit], 0) / there.length;
        for (const unit of there) best[unit] = Math.max(best[unit], mean);
      }
      return best;
    };
    return { turn, scores };
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

  draws: (seed, count) => Array.from({ length: count }, masks.generator(seed)),

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
