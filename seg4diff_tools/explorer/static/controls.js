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
    const colors = ["viridis", "magma", "cividis", "gray"].map((name) => [name, NAMES[name] ?? name]);
    const modes = [["map", "map of a word"], ["masks", "masks of words"]];
    parts = axes.map((axis) => axisControl(view, axis, axis, () => get(axis), (value) => set({ [axis]: value })));
    parts.push(menu("show", modes, () => get("mode"), (mode) => set({ mode })));
    parts.push(menu("colors", colors, () => get("colors"), (name) => set({ colors: name })));
    if (get("pictures").length) parts.push(opacity());
    if (axes.length) parts.push(...besides());
    const focused = node.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    node.replaceChildren(...parts.map((part) => part.node));
    mark();
    if (focused) node.querySelector(`[aria-label="${focused}"]`)?.focus();
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
  const draw = async (questions, colors) => {
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
      canvas.style.aspectRatio = `${maps.columns} / ${maps.rows}`;
      canvas.getContext("2d").drawImage(mapCanvas(map, extent(map.values), colors), 0, 0);
    });
  };
  return { node, build, mark, draw };
}
