/**
 * Links to a view of a page: its settings behind the "#" of the address, as in view.html#layer=4&step=20&token=cat.
 * Explorers of a page count from 1: view=2 is the second one; without it, the link is of the first.
 */

const PLAIN = ["colors", "opacity", "shared", "pieces", "under", "multiples"];
const LINKED = [...AXES, "token", "classes", "mode", "beside", "cell", ...PLAIN];

/** The settings of a link by name, each with its values; null for an address that is no link to a view. */
function parseLink(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const names = [...new Set(found.keys())];
  return names.some((name) => LINKED.includes(name)) || found.get("view") ? new Map(names.map((name) => [name, found.getAll(name)])) : null;
}

/** The changes that a link makes to a view, and what of it the view does not have. */
function readLink(link, view) {
  const changes = {};
  const unknown = [];
  for (const [name, texts] of link) {
    if (name === "view") continue;
    const value = LINKED.includes(name) ? readSetting(view, name, texts) : undefined;
    if (value === undefined) unknown.push(`${name}=${texts.join(",")}`);
    else changes[name] = value;
  }
  // a word asks for its map, classes for masks
  if (!changes.mode && (changes.token || changes.classes)) changes.mode = changes.token ? "map" : "masks";
  return { changes, unknown };
}

/** The value that a link gives to a setting; undefined where the view cannot have it. */
function readSetting({ get, choices, find }, name, texts) {
  const [text] = texts;
  const choice = (axis, wanted) => choices(axis).find((value) => String(value ?? "") === wanted);
  if (AXES.includes(name)) return choice(name, text);
  if (name === "token") return find(text)?.label;
  if (name === "classes") return texts.every(find) ? [...new Set(texts)] : undefined;
  if (name === "mode") return ["map", "masks"].find((value) => value === text);
  if (name === "under") return ["step", "picture"].find((value) => value === text);
  if (name === "colors") return Object.keys(get("palette")).find((value) => value === text && value !== "classes");
  if (name === "multiples") return ["", ...AXES].find((value) => value === text);
  if (name === "opacity") return text !== "" && Number(text) >= 0 && Number(text) <= 1 ? Number(text) : undefined;
  if (name === "cell") {
    if (!text) return null;
    const cell = text.split(",").map(Number);
    const most = get("shape").slice(1);
    return cell.length === 2 && cell.every((at, i) => Number.isInteger(at) && at >= 0 && at < most[i]) ? cell : undefined;
  }
  if (name === "beside") {
    if (!text) return {};
    const [axis, ...rest] = text.split(":");
    const value = AXES.includes(axis) ? choice(axis, rest.join(":")) : undefined;
    return value === undefined ? undefined : { [axis]: value };
  }
  return { true: true, false: false }[text];
}

/** The link to what is shown: what makes this view, and all that a page does not begin with. */
function linkOf(view) {
  const { get } = view;
  const start = get("start");
  const hidden = get("mode") === "masks" ? "token" : "classes";
  const changed = LINKED.filter((name) => name !== hidden && JSON.stringify(get(name)) !== JSON.stringify(start[name]));
  const link = new URLSearchParams(get("place") > 1 ? { view: get("place") } : {});
  for (const [name, value] of new Map([...shownSettings(view), ...changed.map((name) => [name, get(name)])])) {
    const pairs = name === "beside" ? Object.entries(value).map((pair) => pair.join(":")) : value;
    if (name === "classes") value.forEach((label) => link.append(name, label));
    else link.set(name, String(pairs ?? "")); // of a list, its values with commas
  }
  return link.toString();
}
