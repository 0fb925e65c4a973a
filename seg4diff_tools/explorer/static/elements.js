/** Elements of the page, and values as text; first of the files that pages.py joins to one module. */

const AXES = ["recording", "direction", "image", "branch", "layer", "step", "head"];
const SLIDERS = ["layer", "step"];
const NAMES = { i2t: "image to text (I2T)", t2i: "text to image (T2I)", gray: "grey" };

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
