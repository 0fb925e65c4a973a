/** Maps, which come as 8-bit codes with a smallest and a largest value for each (`Quantized` in maps.py), and their colors. */

const SIDE = 512; // of a canvas, in pixels
const MOST = 254; // code of a map's largest value; one more says that there is none

function decode([count, rows, columns], view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const limits = new Float32Array(bytes.slice(0, 8 * count).buffer);
  const [low, high] = [limits.subarray(0, count), limits.subarray(count)];
  return { count, rows, columns, low, high, codes: bytes.subarray(8 * count), means: new Map() };
}

/** The mean map of some tokens. */
function meanMap(maps, tokens) {
  const cells = maps.rows * maps.columns;
  const values = new Float32Array(cells).fill(tokens.length ? 0 : NaN);
  for (const token of tokens) {
    const [low, scale] = [maps.low[token], (maps.high[token] - maps.low[token]) / MOST];
    for (let i = 0; i < cells; i++) {
      const code = maps.codes[token * cells + i];
      values[i] += code > MOST ? NaN : (low + scale * code) / tokens.length;
    }
  }
  return { values, rows: maps.rows, columns: maps.columns };
}

/** The mean of some tokens at a cell [row, column], or over the picture where there is none. */
function valueAt(maps, tokens, cell) {
  if (!cell) {
    const key = tokens.join();
    if (!maps.means.has(key)) {
      const { values } = meanMap(maps, tokens);
      const known = values.filter((value) => !Number.isNaN(value));
      maps.means.set(key, known.reduce((a, b) => a + b, 0) / known.length);
    }
    return maps.means.get(key);
  }
  const place = cell[0] * maps.columns + cell[1];
  const code = (token) => maps.codes[token * maps.rows * maps.columns + place];
  const range = (token) => maps.high[token] - maps.low[token];
  const value = (token) => (code(token) > MOST ? NaN : maps.low[token] + (code(token) / MOST) * range(token));
  return tokens.reduce((sum, token) => sum + value(token), 0) / tokens.length;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low > high ? [NaN, NaN] : [low, high];
}

/** Whether all values of some maps are shares of attention. */
function isShare(direction, { low, high }) {
  const inside = (value) => Number.isNaN(value) || (value >= 0 && value <= 1);
  return SHARES.includes(direction) && low.every(inside) && high.every(inside);
}

function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** 256 colors blended from a few. */
function ramp(colors) {
  const anchors = colors.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (anchors.length - 1);
    const from = Math.min(Math.floor(place), anchors.length - 2);
    return anchors[from].map((c, k) => Math.round(c + (place - from) * (anchors[from + 1][k] - c)));
  });
}

function canvasOf(columns, rows, colorOf) {
  const canvas = create("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const color = colorOf(i);
    if (!color) continue;
    pixels.data.set(color, 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function mapCanvas({ values, rows, columns }, [low, high], colors) {
  const scale = high > low ? 255 / (high - low) : 0;
  const index = (value) => Math.max(0, Math.min(255, Math.round((value - low) * scale)));
  return canvasOf(columns, rows, (i) => (Number.isNaN(values[i]) ? null : colors[index(values[i])]));
}

/** The class with the highest value at every pixel, maps enlarged bilinearly first (Seg4Diff, Eq 11 and 12). */
function maskCanvas(maps, colors, side = SIDE / 2) {
  const { rows, columns } = maps[0];
  const factor = Math.max(1, Math.ceil(side / columns));
  const [down, across] = [sampling(rows, factor), sampling(columns, factor)];
  return canvasOf(columns * factor, rows * factor, (i) => {
    const [top, bottom, v] = down[Math.floor(i / (columns * factor))];
    const [left, right, u] = across[i % (columns * factor)];
    let [best, highest] = [null, -Infinity];
    maps.forEach(({ values }, k) => {
      const upper = values[top * columns + left] * (1 - u) + values[top * columns + right] * u;
      const lower = values[bottom * columns + left] * (1 - u) + values[bottom * columns + right] * u;
      const value = upper * (1 - v) + lower * v;
      if (value > highest) [best, highest] = [colors[k], value];
    });
    return best;
  });
}

/** For each enlarged place its two neighbors and the share of the second. */
function sampling(count, factor) {
  return Array.from({ length: count * factor }, (_, i) => {
    const place = Math.max(0, (i + 0.5) / factor - 0.5);
    const first = Math.min(Math.floor(place), count - 1);
    return [first, Math.min(first + 1, count - 1), place - first];
  });
}

/** A picture in color and in grey, on which the colors of a map are seen better. */
async function pictureCanvases(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const [color, grey] = [0, 1].map(() => create("canvas", { width: picture.naturalWidth, height: picture.naturalHeight }));
  color.getContext("2d").drawImage(picture, 0, 0);
  const pixels = color.getContext("2d").getImageData(0, 0, color.width, color.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.fill((pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3, i, i + 3);
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  return { color, grey };
}
