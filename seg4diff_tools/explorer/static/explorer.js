/** The explorer's front end as a whole: an anywidget module, and (wrapped by page.py) the script of a page without Python. */

/** What is shown in words, and ways to take it along. */
function footer(view, exports) {
  const status = create("p", { class: "status", role: "status", "aria-live": "polite" });
  const note = create("p", { class: "note" });
  const code = create("code", { tabindex: 0, role: "textbox", "aria-readonly": "true", "aria-label": "code of this view" });
  const copy = copyButton("Copy code", () => code.textContent);
  const png = create("button", { type: "button", click: exports.png }, "Save PNG");
  const file = create("button", { type: "button", click: exports.file }, "Save data");
  const isPage = view.get("kept") !== undefined;
  if (isPage) Object.assign(file, { disabled: true, title: "The data need Python" });
  const line = create("div", { class: "code" }, code, copy, isPage ? copyButton("Copy link", exports.link) : null, png, file);
  const say = (text, trouble) => {
    if (status.textContent !== text) status.textContent = text;
    const troubles = [trouble, view.get("message")].filter(Boolean);
    const told = [...troubles, view.get("kept")].filter(Boolean).join(" ");
    note.setAttribute("role", troubles.length ? "alert" : "note");
    if (note.textContent !== told) note.textContent = told; // a screen reader says what was written anew
    note.classList.toggle("trouble", troubles.length > 0);
    code.textContent = codeLine(view);
  };
  return { node: create("div", { class: "foot" }, status, note, line), say };
}

function copyButton(label, textOf) {
  const button = create("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    await copyText(textOf());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = create("textarea", { style: "position: fixed; opacity: 0" }, text);
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

/** Prompt, panels with their scales, and the line below them as one picture. */
function poster(panels, headings, prompt, text) {
  const [gap, line, width] = [16, 22, SIDE];
  const sheet = create("canvas");
  const context = sheet.getContext("2d");
  const font = "15px system-ui, sans-serif";
  context.font = font;
  const wide = panels.length * (width + gap) - gap;
  const above = prompt ? wrapped(context, `“${prompt}”`, wide) : [];
  const below = text.split("\n").map((said) => wrapped(context, said, width));
  const top = gap + line * above.length + (headings.some(Boolean) ? line : 0) + (above.length ? gap / 2 : 0);
  const bottom = top + Math.max(...panels.map(({ canvas }) => canvas.height));
  const rows = Math.max(...panels.map((part) => part.paintScale(null, 0, 0, width, line)));
  const height = bottom + gap + line * (rows + Math.max(...below.map((lines) => lines.length))) + gap;
  Object.assign(sheet, { width: wide + 2 * gap, height });
  context.font = font; // which a new size forgets
  context.textBaseline = "top";
  context.fillStyle = "white";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = "#222";
  above.forEach((said, i) => context.fillText(said, gap, gap + i * line));
  panels.forEach((part, i) => {
    const left = gap + i * (width + gap);
    context.fillStyle = "#222";
    if (headings[i]) context.fillText(headings[i], left, top - line);
    context.drawImage(part.canvas, left, top);
    part.paintScale(context, left, bottom + gap / 2, width, line);
    context.fillStyle = "#222";
    below[i]?.forEach((said, k) => context.fillText(said, left, bottom + gap + (rows + k) * line));
  });
  return sheet;
}

/** Lines of at most a width; a single word may be wider. */
function wrapped(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = [lines.at(-1), word].filter(Boolean).join(" ");
    if (!lines.at(-1) || context.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function render({ model, el }) {
  const view = settings(model);
  const { get, set, choices } = view;
  let [hovered, headings, status, trouble] = [null, [], "", ""];
  let [busy, again, closed] = [false, false, false];
  const pictures = new Map();
  const ramps = new Map();
  const questions = new Questions(model, () => refresh());

  const exports = {
    png: () => {
      const prompt = get("prompt") ?? get("sentence") ?? "";
      const sheet = poster(panels.slice(0, headings.length), headings, prompt, status);
      sheet.toBlob((blob) => download("view.png", blob));
    },
    link: () => {
      const address = new URL(location.href);
      address.hash = linkOf(view);
      history.replaceState(null, "", address); // for those who read it there
      return address.href;
    },
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
  const about = { class: "explorer", role: "group", "aria-label": "Attention explorer", "data-lm-suppress-shortcuts": "true" };
  const root = create("div", about);
  root.append(...[live.node, scene.node, words.node, stage, controls.node, along.node, foot.node].filter(Boolean));
  el.append(root);

  const rank = () => {
    const cell = hovered ?? get("cell");
    panels.slice(0, view.panels().length).forEach((part) => part.rank(cell));
    if (!hovered && get("cell")) say(trouble);
  };
  const say = (problem) => {
    trouble = problem;
    const place = hovered || !get("cell") ? null : panels[0].place();
    foot.say([status, place].filter(Boolean).join("\n"), trouble);
  };
  const colors = () => {
    const name = get("colors");
    if (!ramps.has(name)) ramps.set(name, ramp(get("palette")[name]));
    return ramps.get(name);
  };
  const pictureOf = async (chosen) => {
    const url = view.pictureUrl(chosen);
    if (pictures.size > 2 + Math.max(get("pictures").length, get("step_pictures")?.length ?? 0)) pictures.clear();
    if (url && !pictures.has(url)) pictures.set(url, await pictureCanvases(url));
    return url ? pictures.get(url) : null;
  };

  const redraw = async () => {
    const chosen = view.panels();
    const slices = await Promise.all(chosen.map((selection) => questions.ask({ ask: "slice", selection })));
    const under = await Promise.all(chosen.map(pictureOf));
    if (closed) return;
    const word = view.find(get("token"));
    const found = slices.map((maps) => meanMap(maps, word?.tokens ?? []));
    let limits = found.map(({ values }) => extent(values));
    if (get("shared")) limits = limits.map(() => extent(limits.flat()));
    const classes = get("classes").map(view.find).filter(Boolean);
    const classColors = classes.map(({ label }) => rgb(view.colorOf(label)));
    const share = (i) => isShare(chosen[i].direction, slices[i]);
    const texts = chosen.map((selection, i) => describe(view, selection, limits[i], share(i)));
    const axis = view.besideAxis();
    headings = chosen.map((selection) => (axis ? named(axis, selection[axis], view.schedule()) : ""));
    stage.classList.toggle("two", chosen.length > 1);
    panels.forEach((part, i) => {
      part.node.hidden = i >= chosen.length;
      if (part.node.hidden) return;
      const masks = get("mode") === "masks" && classes.length;
      const maskMaps = masks && classes.map(({ tokens }) => meanMap(slices[i], tokens));
      const overlay = masks ? maskCanvas(maskMaps, classColors) : mapCanvas(found[i], limits[i], colors());
      part.head(headings[i]);
      part.draw(slices[i], chosen[i], under[i], overlay, texts[i]);
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
    await along.draw(questions, colors()).catch((error) => closed || say(error.message));
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

  const structure = ["axes", "words", "tokens", "pieces", "pictures", "step_pictures", "multiples"];
  const marks = [...AXES, "token", "mode", "classes", "cell", "colors", "opacity", "shared", "under", "progress", "message", "call"];
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
  const frames = { ",": ["frame", -1], ".": ["frame", 1] };
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") set({ cell: null });
    const move = moves[event.key] ?? frames[event.key];
    if (!move) return;
    event.preventDefault();
    const [axis, by] = move;
    if (event.shiftKey && moves[event.key]) return moveCell(axis, by);
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
