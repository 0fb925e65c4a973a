/**
 * Where settings and maps come from. Settings are traits of the model; maps are answers to questions, custom messages that
 * the answer repeats:
 *   {ask: "slice", selection}                 every token's map at one setting
 *   {ask: "along", axis, selection, tokens}   the mean map of some tokens for each value of an axis
 *   {ask: "file"}                             what is shown, as a netCDF file
 */

const KEPT = 64; // answers that are kept
const PATIENCE = 5000; // milliseconds

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
    const revision = this.model.get("revision");
    if (revision !== this.revision) this.answers.clear(); // of maps that are no more
    this.revision = revision;
    this.answers.set(key, answer);
    if (this.answers.size > KEPT) this.answers.delete(this.answers.keys().next().value);
  }

  close() {
    this.model.off("msg:custom", this.listen);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }
}

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
  const schedule = () => get("schedule") ?? 0;
  /** The picture under the maps of a selection, as a URL. */
  const pictureUrl = ({ image, frame, step }) => {
    const [own, predicted] = [get("pictures"), get("step_pictures") ?? []];
    if (predicted.length && get("under") === "step") return predicted[choices("step").indexOf(step)];
    const at = (axis, value) => Math.max(0, choices(axis).indexOf(value));
    return own.length > 1 ? own[at("image", image) * (choices("frame").length || 1) + at("frame", frame)] : own[0];
  };
  return { model, get, set, selection, besideAxis, entries, find, choices, panels, schedule, pictureUrl, colorOf: classColors(get, find) };
}

/** The color of a class, which it keeps as long as its word is there, whatever competes with it. */
function classColors(get, find) {
  const places = new Map();
  return (label) => {
    const colors = get("palette").classes;
    const shown = get("classes");
    for (const known of places.keys()) if (!find(known)) places.delete(known);
    const taken = [...places].filter(([known]) => known !== label && shown.includes(known)).map(([, place]) => place);
    let place = places.get(label) ?? (find(label)?.color ?? 0) % colors.length;
    if (taken.includes(place) && taken.length < colors.length) for (place = 0; taken.includes(place); ) place += 1;
    places.set(label, place);
    return colors[place];
  };
}

function describe({ get, choices, find, schedule }, chosen, limits, share) {
  const always = ["layer", "head", ...(schedule() ? ["step"] : [])];
  const parts = AXES.filter((axis) => chosen[axis] !== null && (choices(axis).length > 1 || always.includes(axis)));
  const said = parts.map((axis) => named(axis, chosen[axis], schedule()));
  const under = get("step_pictures")?.length && get("under") === "step" ? ", over the picture predicted at this step" : "";
  if (get("mode") === "masks") {
    const count = get("classes").length;
    return [...said, `masks of ${count} ${count === 1 ? "word" : "words"}`].join(", ") + under;
  }
  const word = find(get("token"));
  const kind = word?.tokens.length > 1 || !get("pieces") ? "word" : "token";
  const name = !word || word.kind === "word" ? `${kind} “${word ? shown(word) : get("token")}”` : shown(word);
  return [...said, name + (Number.isFinite(limits[0]) ? `: ${span(limits, share)}` : "")].join(", ") + under;
}

/** The settings that make this view again: names and values. */
function shownSettings({ get, choices, besideAxis }) {
  const several = AXES.filter((axis) => choices(axis).length > 1);
  const shown = several.map((axis) => [axis, get(axis)]);
  if (get("mode") === "map") shown.push(["token", get("token")]);
  else shown.push(["classes", get("classes")]);
  if (besideAxis()) shown.push(["beside", get("beside")]);
  if (get("cell")) shown.push(["cell", get("cell")]);
  for (const [name, value] of Object.entries(get("defaults"))) if (get(name) !== value) shown.push([name, get(name)]);
  return shown;
}

function codeLine(view) {
  // the axis of pictures has the name of another argument
  const argument = ([name, value]) => (name === "image" ? ["show", { image: value }] : [name, value]);
  const told = shownSettings(view).map(argument).map(([name, value]) => `${name}=${python(value)}`);
  return `${view.get("call")}, ${told.join(", ")})`;
}
