/** Elements of the page, and values as text; first of the files that page.py joins to one module. */

const AXES = ["recording", "direction", "image", "frame", "branch", "layer", "step", "head"];
const SLIDERS = ["layer", "step", "frame"];
const NAMES = {
  i2t: "image to text (I2T)",
  t2i: "text to image (T2I)",
  i2c: "image to words outside the prompt (I2C)",
  c2i: "words outside the prompt to image (C2I)",
  cond: "with the prompt (cond)",
  uncond: "without it (uncond)",
  gray: "grey",
};
const SHARES = ["i2t", "t2i", "c2i"]; // directions whose values are shares of attention
/** What a control is about, for those who point at it. */
const HELP = {
  recording: "Which of the recordings that were given",
  direction: "Image to text: each place of the image divides its attention among words. Text to image: each word divides its attention among places",
  image: "Which of the images that were recorded together",
  frame: "Latent frame of the video, counted from 0: the first is the first frame, each other one stands for several",
  branch: "Guided generation runs the model with the prompt and without it; this chooses whose attention is shown",
  layer: "Transformer block, counted from 0",
  step: "Denoising step, counted from 0; in brackets, how many are still to come, this one included",
  head: "Attention head, counted from 0, or the mean of all",
  show: "The map of one word, or the word with the most attention at every place (Seg4Diff, Eq 12)",
  colors: "Color scale of the map",
  opacity: "Of the colors over the picture; at 0 % the picture stands alone",
  "under it": "The clean picture that the model predicted at this step, or the finished one",
  "beside it": "A second map that differs in one setting",
};

function create(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** A number with two digits; a share of attention in percent. */
function format(value, share = false) {
  if (Number.isNaN(value)) return "–";
  if (value === 0) return share ? "0 %" : "0";
  if (!share) return Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(2);
  const percent = 100 * value;
  if (percent < 0.01) return "< 0.01 %";
  return `${percent < 9.95 ? percent.toPrecision(2) : Math.round(percent)} %`;
}

function span([low, high], share) {
  const ends = [format(low, share), format(high, share)];
  return ends[0] === ends[1] ? ends[0] : ends.join(" to ");
}

/** A value of an axis in words; steps are counted from both ends where the length of the schedule is known. */
function named(axis, value, schedule = 0) {
  if (axis === "head" && value === "mean") return "mean of heads";
  if (axis === "step" && schedule) return `step ${value} of ${schedule} (${schedule - value} left)`;
  return typeof value === "number" ? `${axis} ${value}` : NAMES[value] ?? String(value);
}

/** A word as it is read: which of several alike it is, and how many tokens of padding it stands for. */
function shown({ label, kind, count = 1 }) {
  if ((kind === "pad" || kind === "zero") && count > 1) return `each of ${count} ${kind}s`;
  const again = kind === "word" && /^(.+)#(\d+)$/.exec(label);
  return again ? `${again[1]} (${again[2]})` : label;
}

function explained({ label, kind, count = 1 }) {
  const again = /^(.+)#(\d+)$/.exec(label);
  const kinds = {
    start: "The token that stands before every prompt",
    end: "The token that stands after every prompt",
    template: "Of the frame that the model puts around a prompt",
    pad: `Padding, which fills the prompt up. The map is that of one pad on average; ${count} together get ${count} times as much`,
    zero: `Zero vectors in place of T5's tokens. The map is that of one on average; ${count} together get ${count} times as much`,
  };
  if (kinds[kind]) return `${kinds[kind]}. In code: "${label}"`;
  if (again) return `Number ${again[2]} of “${again[1]}” in the prompt. In code: "${label}"`;
  return count > 1 ? `“${label}”, the mean of its ${count} tokens` : label;
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
