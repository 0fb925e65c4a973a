/** The words of the prompt, and maps with their words ranked. */

const RANKED = 12; // words in a ranking

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
      chip.style.setProperty("--class", masks && place >= 0 ? classColor(view, place) : "");
      chip.classList.toggle("class", masks && place >= 0);
    }
  };
  const toggle = create("label", { class: "check", title: "Tokens in place of words" }, pieces, "tokens");
  return { node: create("div", { class: "bar" }, chips, toggle), build, mark };
}

function classColor({ get }, place) {
  const colors = get("palette").classes;
  return colors[place % colors.length];
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
    const colors = view.get("palette")[view.get("colors")];
    const bar = create("span", { class: "gradient" });
    bar.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
    const masks = view.get("classes").map((label, i) => {
      const swatch = create("span", { class: "swatch" });
      swatch.style.background = classColor(view, i);
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
  const told = () => `${place.textContent}: ${[...list.children].slice(0, 3).map((row) => row.textContent).join(", ")}`;
  return { node, stage, canvas, draw, legend, rank, head, place: told };
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
