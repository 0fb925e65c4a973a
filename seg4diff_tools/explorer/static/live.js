/** What a model behind the view reads and looks at. */

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
    const wanted = { prompt: prompt.value, seed: Math.round(Number(seed.value)) };
    const same = wanted.prompt === get("prompt") && wanted.seed === get("seed");
    if (same) model.send({ ask: "record" }); // after an error, or a stop
    else set(wanted);
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

/** A scene composed by hand: drag an object to move it, its corner to resize it; absent where the picture is given. */
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
      node.onpointerup = node.onpointercancel = () => (node.onpointermove = null);
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
  const add = create("select", { "aria-label": "add an object" }, create("option", { value: "" }, "add …"));
  add.append(...names.map((name) => create("option", {}, name)));
  add.addEventListener("change", () => {
    set({ objects: [...get("objects"), { name: add.value, x: 0.5, y: 0.5, side: 0.4 }] });
    add.value = "";
  });
  const ground = menu("background", backgrounds.map((name) => [name, name]), () => get("background"), (name) => set({ background: name }));
  const hint = create("span", { class: "heading" }, "drag an object or its corner; keys: arrows, + and −, Delete");
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
