/** Sliders, menus and small multiples. */

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
    const said = named(axis, read(), view.schedule());
    slider.value = values.indexOf(read());
    output.textContent = said.replace(`${axis} `, "");
    slider.setAttribute("aria-valuetext", said);
  };
  return { node: control(label, slider, output), mark };
}

function control(label, ...parts) {
  const name = create("span", { class: "label" }, label);
  return create("label", { class: "control", title: HELP[label.replace(/ beside$/, "")] }, name, ...parts);
}

function menu(label, options, read, write) {
  const select = create("select", { "aria-label": label, change: () => write(options[select.selectedIndex][0]) });
  select.append(...options.map(([, text]) => create("option", {}, text)));
  return { node: control(label, select), mark: () => (select.selectedIndex = options.findIndex(([v]) => v === read())) };
}

/** What has no effect on masks cannot be chosen while they are shown. */
function ofMaps(view, part, field) {
  const mark = () => {
    part.mark();
    field.disabled = view.get("mode") === "masks";
    part.node.classList.toggle("off", field.disabled);
  };
  return { node: part.node, mark };
}

/** Everything that is chosen beside the word. */
function controlBar(view) {
  const { get, set, choices, besideAxis } = view;
  const node = create("div", { class: "controls" });
  let [parts, covered] = [[], 0.5];
  const several = () => AXES.filter((axis) => choices(axis).length > 1);

  const besides = () => {
    const options = [["", "nothing"], ...several().map((axis) => [axis, `another ${axis}`])];
    const other = (axis) => {
      const at = choices(axis).indexOf(get(axis));
      return choices(axis)[at + 1] ?? choices(axis)[at - 1];
    };
    const write = (axis) => set({ beside: axis ? { [axis]: other(axis) } : {} });
    const found = [menu("beside it", options, () => besideAxis() ?? "", write)];
    const axis = besideAxis();
    if (!axis) return found;
    found.push(axisControl(view, axis, `${axis} beside`, () => get("beside")[axis], (v) => set({ beside: { [axis]: v } })));
    const shared = create("input", { type: "checkbox", change: () => set({ shared: shared.checked }) });
    const label = create("label", { class: "check" }, shared, "one scale for both");
    return [...found, ofMaps(view, { node: label, mark: () => (shared.checked = get("shared")) }, shared)];
  };

  const opacity = () => {
    const slider = create("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": "opacity" });
    const output = create("output");
    slider.addEventListener("input", () => set({ opacity: Number(slider.value) }));
    // without its colors and back again
    const toggle = () => set({ opacity: get("opacity") ? 0 : covered });
    const bare = create("button", { type: "button", title: "The picture alone", click: toggle }, "picture");
    const mark = () => {
      covered = get("opacity") || covered;
      slider.value = get("opacity");
      output.textContent = `${Math.round(100 * get("opacity"))} %`;
      slider.setAttribute("aria-valuetext", output.textContent);
      bare.setAttribute("aria-pressed", get("opacity") === 0);
    };
    return { node: control("opacity", slider, output, bare), mark };
  };

  const build = () => {
    const axes = several().sort((a, b) => SLIDERS.includes(b) - SLIDERS.includes(a));
    const scales = ["viridis", "magma", "cividis", "gray"].map((name) => [name, NAMES[name] ?? name]);
    const modes = [["map", "map of a word"], ["masks", "masks of words"]];
    parts = axes.map((axis) => axisControl(view, axis, axis, () => get(axis), (value) => set({ [axis]: value })));
    parts.push(menu("show", modes, () => get("mode"), (mode) => set({ mode })));
    const colors = menu("colors", scales, () => get("colors"), (name) => set({ colors: name }));
    parts.push(ofMaps(view, colors, colors.node.querySelector("select")));
    if (get("pictures").length) parts.push(opacity());
    const grounds = [["step", "its prediction at this step"], ["picture", "the picture itself"]];
    if (get("step_pictures")?.length) parts.push(menu("under it", grounds, () => get("under"), (under) => set({ under })));
    if (axes.length) parts.push(...besides());
    const focused = node.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    node.replaceChildren(...parts.map((part) => part.node));
    mark();
    if (focused) node.querySelector(`[aria-label="${focused}"]`)?.focus();
  };
  const mark = () => parts.forEach((part) => part.mark());
  return { node, build, mark };
}

/** Small maps, or masks, for each value of an axis; a click goes there. */
function multiples(view) {
  const { get, set, choices } = view;
  const strip = create("div", { class: "strip", role: "group" });
  const select = create("select", { "aria-label": "small maps for each", change: () => set({ multiples: select.value }) });
  const what = create("span");
  const title = create("label", { class: "heading" }, what, select);
  const node = create("div", { class: "multiples" }, title, strip);
  let [thumbs, asked, built] = [[], 0, ""];

  const build = () => {
    const axes = AXES.filter((axis) => choices(axis).length > 1);
    const wanted = axes.includes(get("multiples")) ? get("multiples") : "";
    // thumbnails of the same values stay until they are drawn anew
    const same = JSON.stringify([axes, wanted, choices(wanted)]);
    if (same === built) return mark();
    built = same;
    select.replaceChildren(
      ...axes.map((axis) => create("option", { value: axis }, axis)),
      create("option", { value: "" }, "nothing"),
    );
    select.value = wanted;
    node.hidden = !axes.length;
    strip.setAttribute("aria-label", wanted ? `a map for each ${wanted}` : "none");
    thumbs = choices(wanted).map((value) => {
      const canvas = create("canvas", { width: 1, height: 1 });
      const said = named(wanted, value, view.schedule());
      const label = { type: "button", "aria-label": said, title: said, click: () => set({ [wanted]: value }) };
      return { value, canvas, button: create("button", label, canvas, create("span", {}, String(value))) };
    });
    strip.replaceChildren(...thumbs.map(({ button }) => button));
    mark();
  };
  const mark = () => {
    const axis = select.value;
    const word = view.find(get("token"));
    what.textContent = `${get("mode") === "masks" ? "Masks" : `“${word ? shown(word) : ""}”`} for each`;
    for (const { value, button } of thumbs) button.setAttribute("aria-pressed", value === get(axis));
  };
  const draw = async (questions, colors) => {
    const axis = select.value;
    const masks = get("mode") === "masks";
    const labels = masks ? get("classes") : [get("token")];
    const words = labels.map(view.find).filter(Boolean);
    if (!axis || !words.length) return;
    const selection = { ...view.selection(), [axis]: choices(axis)[0] };
    const latest = ++asked;
    const along = ({ tokens }) => questions.ask({ ask: "along", axis, selection, tokens });
    const maps = await Promise.all(words.map(along));
    if (latest !== asked || maps.some(({ count }) => count !== thumbs.length)) return;
    const palette = words.map(({ label }) => rgb(view.colorOf(label)));
    thumbs.forEach(({ canvas }, i) => {
      const parts = maps.map((found) => meanMap(found, [i]));
      const drawn = masks ? maskCanvas(parts, palette, 64) : mapCanvas(parts[0], extent(parts[0].values), colors);
      Object.assign(canvas, { width: drawn.width, height: drawn.height });
      canvas.style.aspectRatio = `${drawn.width} / ${drawn.height}`;
      canvas.getContext("2d").drawImage(drawn, 0, 0);
    });
  };
  return { node, build, mark, draw };
}
