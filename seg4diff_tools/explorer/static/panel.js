/** The words of the prompt, and maps with their words ranked. */

const RANKED = 12; // words in a ranking
const RANKING = {
  i2t: "How much of its attention an image token gives to each; the rest goes to the image, and to text that was not recorded",
  t2i: "How much of its attention each word gives to an image token",
  i2c: "What an image token would give to each word outside the prompt, relative to all that it reads",
  c2i: "How much of its attention each word outside the prompt gives to an image token",
};

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
        const about = { type: "button", class: kind, title: explained(word), click: () => choose(word) };
        const chip = create("button", about, shown(word));
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
      chip.style.setProperty("--class", masks && place >= 0 ? view.colorOf(chip.dataset.label) : "");
      chip.classList.toggle("class", masks && place >= 0);
    }
  };
  const toggle = create("label", { class: "check", title: "Show the tokens that words were divided into" }, pieces, "tokens");
  return { node: create("div", { class: "bar" }, chips, toggle), build, mark };
}

/** One map over its picture, its scale, and its words ranked. */
function panel(view, hover) {
  const canvas = create("canvas", { role: "img" });
  const marker = create("div", { class: "marker", hidden: true });
  const stage = create("div", { class: "stage", tabindex: 0, role: "group" }, canvas, marker);
  const frames = view.choices("frame").length > 1 ? ", comma and full stop a frame" : "";
  stage.setAttribute("aria-label", `Map. Arrow keys choose layer and step, shift and arrow keys a place${frames}`);
  const [heading, scale] = [create("div", { class: "heading" }), create("div", { class: "scale" })];
  const [place, list] = [create("div", { class: "heading" }), create("ol", { class: "ranking" })];
  const left = create("div", { class: "left" }, heading, stage, scale);
  const node = create("figure", { class: "panel" }, left, create("div", { class: "right" }, place, list));
  let [maps, direction, ranked, ends] = [null, "", [], null];
  const share = () => isShare(direction, maps);

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

  const draw = (found, chosen, picture, overlay, text) => {
    [maps, direction] = [found, chosen.direction];
    const aspect = picture ? picture.grey.height / picture.grey.width : maps.rows / maps.columns;
    Object.assign(canvas, { width: SIDE, height: Math.round(SIDE * aspect) });
    canvas.setAttribute("aria-label", text);
    const context = canvas.getContext("2d");
    if (picture) {
      // the fainter the map, the more of the picture's own colors
      context.drawImage(picture.grey, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 1 - view.get("opacity");
      context.drawImage(picture.color, 0, 0, canvas.width, canvas.height);
    }
    context.globalAlpha = picture ? view.get("opacity") : 1;
    context.imageSmoothingEnabled = view.get("mode") === "map";
    context.imageSmoothingQuality = "low"; // bilinear
    if (overlay) context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  };

  const legend = (limits) => {
    ends = limits;
    const colors = view.get("palette")[view.get("colors")];
    const bar = create("span", { class: "gradient" });
    bar.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
    const classes = view.get("classes").map(view.find).filter(Boolean);
    const masks = classes.map((word) => {
      const swatch = create("span", { class: "swatch" });
      swatch.style.background = view.colorOf(word.label);
      return create("span", { class: "key" }, swatch, shown(word));
    });
    const missing = "This word has no map here.";
    if (view.get("mode") === "masks") scale.replaceChildren(...masks);
    else if (!limits || Number.isNaN(limits[0])) scale.replaceChildren(missing);
    else scale.replaceChildren(format(limits[0], share()), bar, format(limits[1], share()));
  };

  /** The scale, or the colors of masks, on a picture; without a context nothing is drawn. Gives the lines it takes. */
  const paintScale = (context, left, top, width, line) => {
    if (view.get("mode") === "masks") {
      const classes = view.get("classes").map(view.find).filter(Boolean);
      const across = 4;
      classes.forEach((word, i) => {
        if (!context) return;
        const [x, y] = [left + ((i % across) * width) / across, top + Math.floor(i / across) * line];
        context.fillStyle = view.colorOf(word.label);
        context.fillRect(x, y + 2, 12, 12);
        context.fillStyle = "#222";
        context.fillText(shown(word), x + 18, y, width / across - 24);
      });
      return Math.ceil(classes.length / across);
    }
    if (!ends || Number.isNaN(ends[0]) || !context) return 1;
    const [low, high] = ends.map((value) => format(value, share()));
    const [before, after] = [low, high].map((text) => context.measureText(text).width + 8);
    const colors = view.get("palette")[view.get("colors")];
    const gradient = context.createLinearGradient(left + before, 0, left + width - after, 0);
    colors.forEach((color, i) => gradient.addColorStop(i / (colors.length - 1), color));
    context.fillStyle = gradient;
    context.fillRect(left + before, top + 3, width - before - after, 10);
    context.fillStyle = "#222";
    context.fillText(low, left, top);
    context.fillText(high, left + width - after + 8, top);
    return 1;
  };

  const rank = (cell) => {
    if (!maps) return;
    // means over the picture hardly differ where each word divides its attention among places
    const highest = ["t2i", "c2i"].includes(direction) && !cell;
    const value = ({ tokens }) => (highest ? extent(meanMap(maps, tokens).values)[1] : valueAt(maps, tokens, cell));
    const words = view.entries().map((word) => ({ ...word, value: value(word) }));
    ranked = words.filter((word) => !Number.isNaN(word.value)).sort((a, b) => b.value - a.value);
    const most = Math.max(...ranked.map((word) => Math.abs(word.value)), Number.MIN_VALUE);
    const over = highest ? "words, at the place that each attends to most" : "words, mean over the picture";
    place.textContent = cell ? `words at row ${cell[0]}, column ${cell[1]}` : over;
    place.title = RANKING[direction] ?? "";
    list.setAttribute("aria-label", place.textContent);
    const chosen = (word) => word.label === view.get("token");
    list.replaceChildren(...ranked.slice(0, RANKED).map((word) => rankRow(word, most, share(), chosen(word))));
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
  const told = () => {
    const first = ranked.slice(0, 3).map((word) => `${shown(word)} ${format(word.value, share())}`);
    return `${place.textContent}: ${first.join(", ")}`;
  };
  return { node, stage, canvas, draw, legend, paintScale, rank, head, place: told };
}

function rankRow({ value, ...word }, most, share, chosen) {
  const bar = create("span", { class: "amount" });
  bar.style.width = `${(100 * Math.max(0, value)) / most}%`;
  const row = create("li", { class: word.kind === "word" ? "" : "special", title: explained(word) });
  row.append(create("span", { class: "name" }, shown(word)), create("span", { class: "track" }, bar));
  row.append(create("span", { class: "value" }, format(value, share)));
  row.classList.toggle("chosen", chosen);
  return row;
}
