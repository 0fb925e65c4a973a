/**
 * The explorer's front end: an anywidget module, and (wrapped by pages.py) the script of a page without Python.
 *
 * Settings are traits of the model. Maps come as answers to questions, custom messages that the answer repeats:
 *   {ask: "slice", selection}                 every token's map at one setting
 *   {ask: "along", axis, selection, tokens}   the mean map of some tokens for each value of an axis
 *   {ask: "file"}                             what is shown, as a netCDF file
 * Maps are 8-bit codes with a smallest and a largest value for each: see `Quantised` in atlas.py.
 */

const AXES = ["recording", "block", "image", "branch", "layer", "step", "head"];
const SLIDERS = ["layer", "step"];
const DEFAULTS = { mode: "map", colours: "viridis", opacity: 0.7, shared: false, pieces: false, multiples: "layer" };
const NAMES = { i2t: "image to text (I2T)", t2i: "text to image (T2I)", gray: "grey" };
const SIDE = 512; // of a canvas, in pixels
const RANKED = 12; // words in a ranking
const KEPT = 64; // answers that are kept
const PATIENCE = 5000; // milliseconds

// ---------------------------------------------------------------------------------------------- elements and text

function create(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function format(value) {
  if (Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  return Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(2);
}

function named(axis, value) {
  if (axis === "head" && value === "mean") return "mean of heads";
  return typeof value === "number" ? `${axis} ${value}` : NAMES[value] ?? String(value);
}

function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `"${k}": ${python(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}

function download(name, blob) {
  const link = create("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ------------------------------------------------------------------------------------------------------------ maps

function decode([count, rows, columns], view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const limits = new Float32Array(bytes.slice(0, 8 * count).buffer);
  const [low, high] = [limits.subarray(0, count), limits.subarray(count)];
  return { count, rows, columns, low, high, codes: bytes.subarray(8 * count), means: new Map() };
}

/** The mean map of some tokens. */
function meanMap(maps, tokens) {
  const cells = maps.rows * maps.columns;
  const values = new Float32Array(cells);
  for (const token of tokens) {
    const [low, scale] = [maps.low[token], (maps.high[token] - maps.low[token]) / 255];
    for (let i = 0; i < cells; i++) values[i] += (low + scale * maps.codes[token * cells + i]) / tokens.length;
  }
  return { values, rows: maps.rows, columns: maps.columns };
}

/** The mean of some tokens at a cell [row, column], or over the picture where there is none. */
function valueAt(maps, tokens, cell) {
  if (!cell) {
    const key = tokens.join();
    if (!maps.means.has(key)) {
      const { values } = meanMap(maps, tokens);
      maps.means.set(key, values.reduce((a, b) => a + b, 0) / values.length);
    }
    return maps.means.get(key);
  }
  const place = cell[0] * maps.columns + cell[1];
  const code = (token) => maps.codes[token * maps.rows * maps.columns + place] / 255;
  const value = (token) => maps.low[token] + code(token) * (maps.high[token] - maps.low[token]);
  return tokens.reduce((sum, token) => sum + value(token), 0) / tokens.length;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!(value >= low)) low = value;
    if (!(value <= high)) high = value;
  }
  return [low, high];
}

// --------------------------------------------------------------------------------------------------------- colours

function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** 256 colours blended from a few. */
function ramp(colours) {
  const anchors = colours.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (anchors.length - 1);
    const from = Math.min(Math.floor(place), anchors.length - 2);
    return anchors[from].map((c, k) => Math.round(c + (place - from) * (anchors[from + 1][k] - c)));
  });
}

function canvasOf(columns, rows, colourOf) {
  const canvas = create("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const colour = colourOf(i);
    if (!colour) continue;
    pixels.data.set(colour, 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function mapCanvas({ values, rows, columns }, [low, high], colours) {
  const scale = high > low ? 255 / (high - low) : 0;
  const index = (value) => Math.max(0, Math.min(255, Math.round((value - low) * scale)));
  return canvasOf(columns, rows, (i) => (Number.isNaN(values[i]) ? null : colours[index(values[i])]));
}

/** The class with the highest value at every pixel, maps enlarged bilinearly first (Seg4Diff, Eq 11 and 12). */
function maskCanvas(maps, colours) {
  const { rows, columns } = maps[0];
  const factor = Math.max(1, Math.ceil(SIDE / 2 / columns));
  const [down, across] = [sampling(rows, factor), sampling(columns, factor)];
  return canvasOf(columns * factor, rows * factor, (i) => {
    const [top, bottom, v] = down[Math.floor(i / (columns * factor))];
    const [left, right, u] = across[i % (columns * factor)];
    let [best, highest] = [null, -Infinity];
    maps.forEach(({ values }, k) => {
      const upper = values[top * columns + left] * (1 - u) + values[top * columns + right] * u;
      const lower = values[bottom * columns + left] * (1 - u) + values[bottom * columns + right] * u;
      const value = upper * (1 - v) + lower * v;
      if (value > highest) [best, highest] = [colours[k], value];
    });
    return best;
  });
}

/** For each enlarged place its two neighbours and the share of the second. */
function sampling(count, factor) {
  return Array.from({ length: count * factor }, (_, i) => {
    const place = Math.max(0, (i + 0.5) / factor - 0.5);
    const first = Math.min(Math.floor(place), count - 1);
    return [first, Math.min(first + 1, count - 1), place - first];
  });
}

async function greyCanvas(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const canvas = create("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.fill((pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3, i, i + 3);
  }
  const grey = create("canvas", { width: canvas.width, height: canvas.height });
  grey.getContext("2d").putImageData(pixels, 0, 0);
  return { colour: canvas, grey };
}

// ------------------------------------------------------------------------------------------------------- questions

/** Asks Python, or what a page stores in its place, and keeps the latest answers. */
class Questions {
  constructor(model, onLate) {
    Object.assign(this, { model, onLate, answers: new Map(), waiting: new Map() });
    this.listen = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.listen);
  }

  ask(question) {
    const asked = { revision: this.model.get("revision"), ...question };
    const key = JSON.stringify(asked);
    if (this.answers.has(key)) return Promise.resolve(this.answers.get(key));
    if (!this.waiting.has(key)) this.waiting.set(key, this.send(asked, key));
    return this.waiting.get(key).promise;
  }

  send(asked, key) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    const silent = "Python does not answer: it is busy, or it was restarted (then run the cell again).";
    const giveUp = () => this.settle(key, (waiting) => waiting.reject(new Error(silent)));
    entry.timer = setTimeout(giveUp, PATIENCE);
    try {
      this.model.send(asked);
    } catch {
      setTimeout(giveUp);
    }
    return entry;
  }

  receive({ question, error, shape }, buffers) {
    const key = JSON.stringify(question);
    const answer = error ? null : shape ? decode(shape, buffers[0]) : buffers[0];
    if (!error && question.ask !== "file") this.keep(key, answer);
    const late = !this.waiting.has(key);
    this.settle(key, (waiting) => (error ? waiting.reject(new Error(error)) : waiting.resolve(answer)));
    if (late && !error) this.onLate();
  }

  settle(key, end) {
    const entry = this.waiting.get(key);
    if (!entry) return;
    clearTimeout(entry.timer);
    this.waiting.delete(key);
    end(entry);
  }

  keep(key, answer) {
    this.answers.set(key, answer);
    if (this.answers.size > KEPT) this.answers.delete(this.answers.keys().next().value);
  }

  close() {
    this.model.off("msg:custom", this.listen);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }
}

// -------------------------------------------------------------------------------------------------------- settings

/** The model's traits by the names that the parts below use. */
function settings(model) {
  const get = (name) => model.get(name);
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };
  const selection = () => Object.fromEntries(AXES.map((axis) => [axis, get(axis)]));
  const besideAxis = () => Object.keys(get("beside"))[0];
  const entries = () => (get("pieces") ? get("tokens") : get("words"));
  const find = (label) => [...get("words"), ...get("tokens")].find((word) => word.label === label);
  const choices = (axis) => get("axes")[axis] ?? [];
  const panels = () => (besideAxis() ? [selection(), { ...selection(), ...get("beside") }] : [selection()]);
  return { model, get, set, selection, besideAxis, entries, find, choices, panels };
}

function describe({ get, choices, find }, chosen, limits) {
  const parts = AXES.filter((axis) => chosen[axis] !== null && (choices(axis).length > 1 || ["layer", "head"].includes(axis)));
  const said = parts.map((axis) => {
    const values = choices(axis);
    const whole = axis === "step" && values[0] === 0 && values.at(-1) === values.length - 1;
    return named(axis, chosen[axis]) + (whole ? ` of ${values.length}` : "");
  });
  const masks = `masks of ${get("classes").length} words`;
  const kind = find(get("token"))?.tokens.length > 1 || !get("pieces") ? "word" : "token";
  const map = `${kind} “${get("token")}”` + (limits ? `: ${format(limits[0])} to ${format(limits[1])}` : "");
  return [...said, get("mode") === "masks" ? masks : map].join(", ");
}

function codeLine({ get, choices, besideAxis }) {
  const shown = AXES.filter((axis) => choices(axis).length > 1).map((axis) => [axis, get(axis)]);
  if (get("mode") === "map") shown.push(["token", get("token")]);
  else shown.push(["classes", get("classes")]);
  if (besideAxis()) shown.push(["beside", get("beside")]);
  if (get("cell")) shown.push(["cell", get("cell")]);
  for (const [name, value] of Object.entries(DEFAULTS)) if (get(name) !== value) shown.push([name, get(name)]);
  return `${get("call")}, ${shown.map(([name, value]) => `${name}=${python(value)}`).join(", ")})`;
}

// ----------------------------------------------------------------------------------------------------------- parts

/** The words of the prompt: click one to see its map, or to have it compete for masks. */
function wordBar(view) {
  const { get, set, entries } = view;
  const chips = create("div", { class: "words", role: "group", "aria-label": "Words of the prompt" });
  const pieces = create("input", { type: "checkbox", change: () => set({ pieces: pieces.checked }) });
  const choose = ({ label }) => {
    if (get("mode") === "map") return set({ token: label });
    const classes = get("classes");
    const others = classes.filter((name) => name !== label);
    if (others.length < classes.length) return others.length && set({ classes: others });
    set({ classes: [...classes, label] });
  };
  const build = () => {
    chips.replaceChildren(
      ...entries().map((word) => {
        const kind = word.kind === "word" ? "word" : "word special";
        const chip = create("button", { type: "button", class: kind, click: () => choose(word) }, word.label);
        chip.dataset.label = word.label;
        return chip;
      }),
    );
    mark();
  };
  const mark = () => {
    const masks = get("mode") === "masks";
    pieces.checked = get("pieces");
    for (const chip of chips.children) {
      const place = get("classes").indexOf(chip.dataset.label);
      chip.setAttribute("aria-pressed", masks ? place >= 0 : chip.dataset.label === get("token"));
      chip.style.setProperty("--class", masks && place >= 0 ? classColour(view, place) : "");
      chip.classList.toggle("class", masks && place >= 0);
    }
  };
  const toggle = create("label", { class: "check", title: "Tokens in place of words" }, pieces, "tokens");
  return { node: create("div", { class: "bar" }, chips, toggle), build, mark };
}

function classColour({ get }, place) {
  const colours = get("palette").classes;
  return colours[place % colours.length];
}

/** One map over its picture, its scale, and its words ranked. */
function panel(view, hover) {
  const canvas = create("canvas", { role: "img" });
  const marker = create("div", { class: "marker", hidden: true });
  const stage = create("div", { class: "stage", tabindex: 0, role: "group" }, canvas, marker);
  stage.setAttribute("aria-label", "Map. Arrow keys choose layer and step, shift and arrow keys a place");
  const [heading, scale] = [create("div", { class: "heading" }), create("div", { class: "scale" })];
  const [place, list] = [create("div", { class: "heading" }), create("ol", { class: "ranking" })];
  const left = create("div", { class: "left" }, heading, stage, scale);
  const node = create("figure", { class: "panel" }, left, create("div", { class: "right" }, place, list));
  let maps = null;

  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const part = (at, start, size, count) => Math.max(0, Math.min(count - 1, Math.floor(((at - start) / size) * count)));
    return [
      part(event.clientY, box.top, box.height, maps.rows),
      part(event.clientX, box.left, box.width, maps.columns),
    ];
  };
  stage.addEventListener("pointermove", (event) => maps && hover(cellAt(event)));
  stage.addEventListener("pointerleave", () => hover(null));
  stage.addEventListener("click", (event) => {
    if (!maps) return;
    const [cell, pinned] = [cellAt(event), view.get("cell")];
    view.set({ cell: pinned && pinned.join() === cell.join() ? null : cell });
  });

  const draw = (found, picture, overlay, text) => {
    maps = found;
    const aspect = picture ? picture.grey.height / picture.grey.width : maps.rows / maps.columns;
    Object.assign(canvas, { width: SIDE, height: Math.round(SIDE * aspect) });
    canvas.setAttribute("aria-label", text);
    const context = canvas.getContext("2d");
    if (picture) context.drawImage(picture.grey, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = picture ? view.get("opacity") : 1;
    context.imageSmoothingEnabled = view.get("mode") === "map";
    context.imageSmoothingQuality = "low"; // bilinear
    if (overlay) context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  };

  const legend = (limits) => {
    const colours = view.get("palette")[view.get("colours")];
    const bar = create("span", { class: "gradient" });
    bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    const masks = view.get("classes").map((label, i) => {
      const swatch = create("span", { class: "swatch" });
      swatch.style.background = classColour(view, i);
      return create("span", { class: "key" }, swatch, label);
    });
    const missing = "This word has no map here.";
    if (view.get("mode") === "masks") scale.replaceChildren(...masks);
    else if (!limits || Number.isNaN(limits[0])) scale.replaceChildren(missing);
    else scale.replaceChildren(format(limits[0]), bar, format(limits[1]));
  };

  const rank = (cell) => {
    if (!maps) return;
    const words = view.entries().map((word) => ({ ...word, value: valueAt(maps, word.tokens, cell) }));
    const known = words.filter(({ value }) => !Number.isNaN(value)).sort((a, b) => b.value - a.value);
    const most = Math.max(...known.map(({ value }) => Math.abs(value)), Number.MIN_VALUE);
    place.textContent = cell ? `words at row ${cell[0]}, column ${cell[1]}` : "words, mean over the picture";
    list.replaceChildren(...known.slice(0, RANKED).map((word) => rankRow(word, most, word.label === view.get("token"))));
    marker.hidden = !cell;
    if (!cell) return;
    const percent = (at, count) => `${(100 * at) / count}%`;
    Object.assign(marker.style, {
      top: percent(cell[0], maps.rows),
      left: percent(cell[1], maps.columns),
      height: percent(1, maps.rows),
      width: percent(1, maps.columns),
    });
  };
  const head = (text) => (heading.textContent = text);
  return { node, stage, canvas, draw, legend, rank, head };
}

function rankRow({ label, kind, value }, most, chosen) {
  const bar = create("span", { class: "amount" });
  bar.style.width = `${(100 * Math.max(0, value)) / most}%`;
  const row = create("li", { class: kind === "word" ? "" : "special" });
  row.append(create("span", { class: "name", title: label }, label), create("span", { class: "track" }, bar));
  row.append(create("span", { class: "value" }, format(value)));
  row.classList.toggle("chosen", chosen);
  return row;
}

/** A slider over numbers or a menu of names for one axis; `read` and `write` say where its value lives. */
function axisControl(view, axis, label, read, write) {
  const values = view.choices(axis);
  if (!SLIDERS.includes(axis)) {
    const menu = create("select", { "aria-label": label, change: () => write(values[menu.selectedIndex]) });
    menu.append(...values.map((value) => create("option", {}, named(axis, value))));
    return { node: control(label, menu), mark: () => (menu.selectedIndex = values.indexOf(read())) };
  }
  const output = create("output");
  const slider = create("input", { type: "range", min: 0, max: values.length - 1, step: 1, "aria-label": label });
  slider.addEventListener("input", () => write(values[Number(slider.value)]));
  const mark = () => {
    slider.value = values.indexOf(read());
    output.textContent = read();
    slider.setAttribute("aria-valuetext", `${label} ${read()}`);
  };
  return { node: control(label, slider, output), mark };
}

function control(label, ...parts) {
  return create("label", { class: "control" }, create("span", { class: "label" }, label), ...parts);
}

function menu(label, options, read, write) {
  const select = create("select", { "aria-label": label, change: () => write(options[select.selectedIndex][0]) });
  select.append(...options.map(([, text]) => create("option", {}, text)));
  return { node: control(label, select), mark: () => (select.selectedIndex = options.findIndex(([v]) => v === read())) };
}

/** Everything that is chosen beside the word. */
function controlBar(view) {
  const { get, set, choices, besideAxis } = view;
  const node = create("div", { class: "controls" });
  let parts = [];
  const several = () => AXES.filter((axis) => choices(axis).length > 1);

  const besides = () => {
    const options = [["", "nothing"], ...several().map((axis) => [axis, `another ${axis}`])];
    const other = (axis) => choices(axis).find((value) => value !== get(axis));
    const write = (axis) => set({ beside: axis ? { [axis]: other(axis) } : {} });
    const found = [menu("beside it", options, () => besideAxis() ?? "", write)];
    const axis = besideAxis();
    if (!axis) return found;
    found.push(axisControl(view, axis, `${axis} beside`, () => get("beside")[axis], (v) => set({ beside: { [axis]: v } })));
    const shared = create("input", { type: "checkbox", change: () => set({ shared: shared.checked }) });
    const label = create("label", { class: "check" }, shared, "one scale for both");
    return [...found, { node: label, mark: () => (shared.checked = get("shared")) }];
  };

  const opacity = () => {
    const slider = create("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": "opacity" });
    const output = create("output");
    slider.addEventListener("input", () => set({ opacity: Number(slider.value) }));
    const mark = () => {
      slider.value = get("opacity");
      output.textContent = `${Math.round(100 * get("opacity"))} %`;
    };
    return { node: control("opacity", slider, output), mark };
  };

  const build = () => {
    const axes = several().sort((a, b) => SLIDERS.includes(b) - SLIDERS.includes(a));
    const colours = ["viridis", "magma", "cividis", "gray"].map((name) => [name, NAMES[name] ?? name]);
    const modes = [["map", "map of a word"], ["masks", "masks of words"]];
    parts = axes.map((axis) => axisControl(view, axis, axis, () => get(axis), (value) => set({ [axis]: value })));
    parts.push(menu("show", modes, () => get("mode"), (mode) => set({ mode })));
    parts.push(menu("colours", colours, () => get("colours"), (name) => set({ colours: name })));
    if (get("pictures").length) parts.push(opacity());
    if (axes.length) parts.push(...besides());
    node.replaceChildren(...parts.map((part) => part.node));
    mark();
  };
  const mark = () => parts.forEach((part) => part.mark());
  return { node, build, mark };
}

/** Small maps of the word along an axis; a click goes there. */
function multiples(view) {
  const { get, set, choices } = view;
  const strip = create("div", { class: "strip", role: "group" });
  const select = create("select", { "aria-label": "small maps along", change: () => set({ multiples: select.value }) });
  const title = create("label", { class: "heading" }, "along ", select);
  const node = create("div", { class: "multiples" }, title, strip);
  let [thumbs, asked] = [[], 0];

  const build = () => {
    const axes = AXES.filter((axis) => choices(axis).length > 1);
    select.replaceChildren(
      ...axes.map((axis) => create("option", { value: axis }, `${axis}s`.replace("branchs", "branches"))),
      create("option", { value: "" }, "nothing"),
    );
    select.value = axes.includes(get("multiples")) ? get("multiples") : "";
    const axis = select.value;
    node.hidden = !axes.length;
    strip.setAttribute("aria-label", axis ? `${axis}s` : "none");
    thumbs = choices(axis).map((value) => {
      const canvas = create("canvas", { width: 1, height: 1 });
      const go = () => set({ [axis]: value });
      const label = { type: "button", "aria-label": named(axis, value), title: named(axis, value), click: go };
      const button = create("button", label, canvas, create("span", {}, typeof value === "number" ? value : String(value)));
      return { value, canvas, button };
    });
    strip.replaceChildren(...thumbs.map(({ button }) => button));
    mark();
  };
  const mark = () => {
    const axis = select.value;
    for (const { value, button } of thumbs) button.setAttribute("aria-pressed", value === get(axis));
  };
  const draw = async (questions, colours) => {
    const axis = select.value;
    const word = view.find(get("token"));
    if (!axis || !word) return;
    const selection = { ...view.selection(), [axis]: choices(axis)[0] };
    const latest = ++asked;
    const maps = await questions.ask({ ask: "along", axis, selection, tokens: word.tokens });
    if (latest !== asked || maps.count !== thumbs.length) return;
    thumbs.forEach(({ canvas }, i) => {
      const map = meanMap(maps, [i]);
      Object.assign(canvas, { width: maps.columns, height: maps.rows });
      canvas.getContext("2d").drawImage(mapCanvas(map, extent(map.values), colours), 0, 0);
    });
  };
  return { node, build, mark, draw };
}

/** What a live backbone reads; absent where there is none. */
function liveBar(view) {
  const { get, set, model } = view;
  if (get("prompt") === undefined || get("objects") !== undefined) return { node: null, mark: () => {} };
  const prompt = create("input", { type: "text", "aria-label": "prompt" });
  const seed = create("input", { type: "number", step: 1, "aria-label": "seed", class: "seed" });
  const record = create("button", { type: "submit" }, "Record");
  const stop = create("button", { type: "button", click: () => model.send({ ask: "cancel" }) }, "Stop");
  const progress = create("progress", { max: 1, "aria-label": "recording" });
  const submit = (event) => {
    event.preventDefault();
    set({ prompt: prompt.value, seed: Math.round(Number(seed.value)) });
  };
  const fields = [control("prompt", prompt), control("seed", seed), record, stop, progress];
  const node = create("form", { class: "live", submit }, ...fields);
  const fill = () => {
    prompt.value = get("prompt");
    seed.value = get("seed");
  };
  const mark = () => {
    const running = get("progress") < 1;
    progress.value = get("progress");
    progress.style.visibility = running ? "visible" : "hidden";
    stop.disabled = !running;
  };
  fill();
  model.on("change:prompt change:seed", fill);
  return { node, mark, close: () => model.off("change:prompt change:seed", fill) };
}

/** A scene composed by hand: drag a thing to move it, its corner to resize it; absent where the picture is given. */
function sceneBar(view, stage) {
  const { get, set } = view;
  if (get("objects") === undefined || get("kept") !== undefined) return { node: null, mark: () => {} };
  const boxes = create("div", { class: "objects" });
  stage.append(boxes);
  const change = (index, changes) =>
    set({ objects: get("objects").map((thing, i) => (i === index ? { ...thing, ...changes } : thing)) });
  const remove = (index) => get("objects").length > 1 && set({ objects: get("objects").filter((_, i) => i !== index) });
  const inside = (share, least = 0) => Math.max(least, Math.min(1, share));

  /** Follows the pointer from where it went down; `react` gets the thing as it was and the shares it moved by. */
  const follow = (node, index, react) => {
    node.addEventListener("pointerdown", (down) => {
      down.stopPropagation();
      node.setPointerCapture(down.pointerId);
      const [thing, { width }] = [get("objects")[index], stage.getBoundingClientRect()];
      node.onpointermove = (move) =>
        change(index, react(thing, (move.clientX - down.clientX) / width, (move.clientY - down.clientY) / width));
      node.onpointerup = () => (node.onpointermove = null);
    });
    node.addEventListener("click", (event) => event.stopPropagation());
  };
  const press = (index, event) => {
    const thing = get("objects")[index];
    const step = 0.02;
    const changes = {
      ArrowLeft: { x: inside(thing.x - step) },
      ArrowRight: { x: inside(thing.x + step) },
      ArrowUp: { y: inside(thing.y - step) },
      ArrowDown: { y: inside(thing.y + step) },
      "+": { side: inside(thing.side + step) },
      "-": { side: inside(thing.side - step, 0.1) },
    }[event.key];
    if (changes) change(index, changes);
    else if (event.key === "Delete" || event.key === "Backspace") remove(index);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const boxOf = (_, index) => {
    const corner = create("span", { class: "corner" });
    const box = create("div", { class: "object", tabindex: 0, role: "button", keydown: (event) => press(index, event) }, corner);
    follow(box, index, (thing, right, down) => ({ x: inside(thing.x + right), y: inside(thing.y + down) }));
    follow(corner, index, (thing, right, down) => ({ side: inside(thing.side + right + down, 0.1) }));
    return box;
  };

  const { names, backgrounds } = get("stock");
  const add = create("select", { "aria-label": "add a thing" }, create("option", { value: "" }, "add …"));
  add.append(...names.map((name) => create("option", {}, name)));
  add.addEventListener("change", () => {
    set({ objects: [...get("objects"), { name: add.value, x: 0.5, y: 0.5, side: 0.4 }] });
    add.value = "";
  });
  const ground = menu("background", backgrounds.map((name) => [name, name]), () => get("background"), (name) => set({ background: name }));
  const hint = create("span", { class: "heading" }, "drag a thing, or its corner; arrows, + and −, Delete");
  const mark = () => {
    const things = get("objects");
    if (boxes.children.length !== things.length) boxes.replaceChildren(...things.map(boxOf));
    things.forEach(({ name, x, y, side }, i) => {
      const percent = (share) => `${100 * share}%`;
      const place = { left: percent(x - side / 2), top: percent(y - side / 2), width: percent(side), height: percent(side) };
      Object.assign(boxes.children[i].style, place);
      boxes.children[i].setAttribute("aria-label", `${name}; arrow keys move it`);
      boxes.children[i].title = name;
    });
    ground.mark();
  };
  return { node: create("div", { class: "scene" }, add, ground.node, hint), mark };
}

/** What is shown in words, and ways to take it along. */
function footer(view, exports) {
  const status = create("p", { class: "status", role: "status", "aria-live": "polite" });
  const note = create("p", { class: "note", role: "alert" });
  const code = create("code", { tabindex: 0, "aria-label": "code of this view" });
  const copy = create("button", { type: "button" }, "Copy code");
  copy.addEventListener("click", async () => {
    await copyText(code);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy code"), 1500);
  });
  const png = create("button", { type: "button", click: exports.png }, "Save PNG");
  const file = create("button", { type: "button", click: exports.file }, "Save data");
  if (view.get("kept") !== undefined) Object.assign(file, { disabled: true, title: "The data need Python" });
  const line = create("div", { class: "code" }, code, copy, png, file);
  const say = (text, trouble) => {
    status.textContent = text;
    const troubles = [trouble, view.get("message")].filter(Boolean);
    note.textContent = [...troubles, view.get("kept")].filter(Boolean).join(" ");
    note.classList.toggle("trouble", troubles.length > 0);
    code.textContent = codeLine(view);
  };
  return { node: create("div", { class: "foot" }, status, note, line), say };
}

async function copyText(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
  } catch {
    getSelection().selectAllChildren(node);
    document.execCommand("copy");
  }
}

/** The panels and the line below them as one picture. */
function poster(panels, headings, text) {
  const [gap, line] = [16, 28];
  const sheet = create("canvas", {
    width: panels.length * (SIDE + gap) + gap,
    height: panels[0].canvas.height + 2 * gap + 2 * line,
  });
  const context = sheet.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = "#222";
  context.font = "15px system-ui, sans-serif";
  panels.forEach(({ canvas }, i) => {
    const left = gap + i * (SIDE + gap);
    context.fillText(headings[i], left, gap + 14, SIDE);
    context.drawImage(canvas, left, gap + line);
  });
  text.split("\n").forEach((said, i) => context.fillText(said, gap + i * (SIDE + gap), sheet.height - gap, SIDE));
  return sheet;
}

// ---------------------------------------------------------------------------------------------------------- the whole

function render({ model, el }) {
  const view = settings(model);
  const { get, set, choices } = view;
  let [hovered, headings, status, trouble] = [null, [], "", ""];
  let [busy, again, closed] = [false, false, false];
  const pictures = new Map();
  const ramps = new Map();
  const questions = new Questions(model, () => refresh());

  const exports = {
    png: () => poster(panels.slice(0, headings.length), headings, status).toBlob((blob) => download("view.png", blob)),
    file: async () => {
      try {
        download("view.nc", new Blob([await questions.ask({ ask: "file", settings: codeLine(view) })]));
      } catch (error) {
        say(error.message);
      }
    },
  };
  const hover = (cell) => {
    hovered = cell;
    rank();
  };
  const panels = [panel(view, hover), panel(view, hover)];
  const live = liveBar(view);
  const scene = sceneBar(view, panels[0].stage);
  const words = wordBar(view);
  const controls = controlBar(view);
  const along = multiples(view);
  const foot = footer(view, exports);
  const stage = create("div", { class: "panels" }, ...panels.map(({ node }) => node));
  const root = create("div", { class: "explorer", "data-lm-suppress-shortcuts": "true" });
  root.append(...[live.node, scene.node, words.node, stage, controls.node, along.node, foot.node].filter(Boolean));
  el.append(root);

  const rank = () => {
    const cell = hovered ?? get("cell");
    panels.slice(0, view.panels().length).forEach((part) => part.rank(cell));
  };
  const say = (problem) => {
    trouble = problem;
    foot.say(status, trouble);
  };
  const colours = () => {
    const name = get("colours");
    if (!ramps.has(name)) ramps.set(name, ramp(get("palette")[name]));
    return ramps.get(name);
  };
  const pictureOf = async (chosen) => {
    const found = get("pictures");
    const url = found.length > 1 ? found[choices("image").indexOf(chosen.image)] : found[0];
    if (pictures.size > choices("image").length + 1) pictures.clear();
    if (url && !pictures.has(url)) pictures.set(url, await greyCanvas(url));
    return url ? pictures.get(url) : null;
  };

  const redraw = async () => {
    const chosen = view.panels();
    const slices = await Promise.all(chosen.map((selection) => questions.ask({ ask: "slice", selection })));
    const under = await Promise.all(chosen.map(pictureOf));
    if (closed) return;
    const word = view.find(get("token"));
    const found = slices.map((maps) => meanMap(maps, word?.tokens ?? [0]));
    let limits = found.map(({ values }) => extent(values));
    if (get("shared")) limits = limits.map(() => extent(limits.flat()));
    const classes = get("classes").map(view.find).filter(Boolean);
    const classColours = classes.map((_, i) => rgb(classColour(view, i)));
    const texts = chosen.map((selection, i) => describe(view, selection, limits[i]));
    const axis = view.besideAxis();
    headings = chosen.map((selection) => (axis ? named(axis, selection[axis]) : ""));
    stage.classList.toggle("two", chosen.length > 1);
    panels.forEach((part, i) => {
      part.node.hidden = i >= chosen.length;
      if (part.node.hidden) return;
      const masks = get("mode") === "masks" && classes.length;
      const maskMaps = masks && classes.map(({ tokens }) => meanMap(slices[i], tokens));
      const overlay = masks ? maskCanvas(maskMaps, classColours) : mapCanvas(found[i], limits[i], colours());
      part.head(headings[i]);
      part.draw(slices[i], under[i], overlay, texts[i]);
      part.legend(limits[i]);
    });
    status = texts.join("\n");
    say("");
    rank();
    root.dataset.drawn = status;
  };

  const refresh = async () => {
    again = true;
    if (busy) return;
    busy = true;
    while (again && !closed) {
      again = false;
      await redraw().catch((error) => closed || say(error.message));
    }
    busy = false;
    if (closed) return;
    askAhead();
    await along.draw(questions, colours()).catch((error) => closed || say(error.message));
  };

  /** Asks for the setting that comes next if the last move is repeated. */
  let last = view.selection();
  const askAhead = () => {
    const now = view.selection();
    const moved = SLIDERS.find((axis) => now[axis] !== last[axis]);
    const place = (selection) => choices(moved).indexOf(selection[moved]);
    const next = moved && choices(moved)[place(now) + Math.sign(place(now) - place(last))];
    last = now;
    if (next !== undefined) questions.ask({ ask: "slice", selection: { ...now, [moved]: next } }).catch(() => {});
  };

  const structure = ["axes", "words", "tokens", "pieces", "pictures", "multiples"];
  const marks = [...AXES, "token", "mode", "classes", "cell", "colours", "opacity", "shared", "progress", "message", "call"];
  const scenery = ["objects", "background"];
  let beside = null;
  const update = () => {
    const rebuilt = beside !== (view.besideAxis() ?? "");
    beside = view.besideAxis() ?? "";
    if (rebuilt) controls.build();
    [live, scene, words, controls, along].forEach((part) => part.mark());
    refresh();
  };
  const rebuild = () => {
    words.build();
    controls.build();
    along.build();
    update();
  };
  const watched = [
    [structure, rebuild],
    [[...marks, ...scenery, "beside", "revision"], update],
  ].map(([names, react]) => [names.map((name) => `change:${name}`).join(" "), react]);
  watched.forEach(([events, react]) => model.on(events, react));

  const moves = { ArrowLeft: ["step", -1], ArrowRight: ["step", 1], ArrowUp: ["layer", 1], ArrowDown: ["layer", -1] };
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") set({ cell: null });
    if (!moves[event.key]) return;
    event.preventDefault();
    const [axis, by] = moves[event.key];
    if (event.shiftKey) return moveCell(axis, by);
    const values = choices(axis);
    const next = values[values.indexOf(get(axis)) + by];
    if (next !== undefined) set({ [axis]: next });
  });
  const moveCell = async (axis, by) => {
    const { rows, columns } = await questions.ask({ ask: "slice", selection: view.selection() });
    const [row, column] = get("cell") ?? [Math.floor(rows / 2), Math.floor(columns / 2)];
    const [down, right] = axis === "step" ? [0, by] : [-by, 0];
    const inside = (at, count) => Math.max(0, Math.min(count - 1, at));
    set({ cell: [inside(row + down, rows), inside(column + right, columns)] });
  };

  rebuild();
  return () => {
    closed = true;
    watched.forEach(([events, react]) => model.off(events, react));
    live.close?.();
    questions.close();
  };
}

export default { render };
