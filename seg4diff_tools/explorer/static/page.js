/** What stands in for the kernel's model in a page: the settings, and answers out of the stored maps. */

function storedModel(stored, place) {
  const values = { message: "", revision: 0, ...stored, start: stored, place };
  const listeners = [];
  const emit = (name, ...details) => listeners.filter(([event]) => event === name).forEach(([, react]) => react(...details));
  const known = AXES.filter((axis) => stored.axes[axis]); // a page of an earlier version has fewer
  const key = (selection) => known.map((axis) => stored.axes[axis].indexOf(selection[axis])).join();
  const bytesAt = (selection) => Uint8Array.from(atob(stored.slices[key(selection)]), (letter) => letter.charCodeAt(0));

  const along = ({ axis, selection, tokens }) => {
    const maps = stored.axes[axis].map((value) => {
      const content = bytesAt({ ...selection, [axis]: value });
      return meanMap(decode(stored.shape, content), tokens).values;
    });
    return { shape: [maps.length, ...stored.shape.slice(1)], content: encode(maps) };
  };
  const answer = (question) => {
    const slice = () => ({ shape: stored.shape, content: bytesAt(question.selection) });
    try {
      const { shape, content } = question.ask === "slice" ? slice() : along(question);
      emit("msg:custom", { question, shape }, [new DataView(content.buffer)]);
    } catch (error) {
      emit("msg:custom", { question, error: `This page does not hold that: ${error.message}` }, []);
    }
  };
  return {
    get: (name) => values[name],
    set: (name, value) => {
      values[name] = value;
      emit(`change:${name}`);
    },
    save_changes: () => {},
    on: (events, react) => events.split(" ").forEach((event) => listeners.push([event, react])),
    off: () => (listeners.length = 0),
    send: (question) => setTimeout(() => answer(question)),
  };
}

/** The layout that `decode` reads. */
function encode(maps) {
  const limits = maps.map(extent);
  const codes = maps.map((map, i) => {
    const [low, high] = limits[i];
    const code = (value) => Math.round(((value - low) * MOST) / (high > low ? high - low : 1));
    return Uint8Array.from(map, (value) => (Number.isFinite(value) ? code(value) : MOST + 1));
  });
  const numbers = new Float32Array([...limits.map(([low]) => low), ...limits.map(([, high]) => high)]);
  const content = new Uint8Array(numbers.byteLength + maps.length * codes[0].length);
  content.set(new Uint8Array(numbers.buffer));
  codes.forEach((code, i) => content.set(code, numbers.byteLength + i * code.length));
  return content;
}

/** Brings the explorer that a link is of into its state, and into sight; tells what it cannot have. */
function followLink(pages) {
  const link = parseLink(location.hash);
  if (!link) return;
  const wanted = link.get("view")?.[0] ?? "1";
  const found = pages[Number(wanted) - 1];
  const { el, model } = found ?? pages[0];
  const { changes, unknown } = found ? readLink(link, settings(model)) : { changes: {}, unknown: [`view=${wanted}`] };
  for (const [name, value] of Object.entries(changes)) model.set(name, value);
  model.set("message", unknown.length ? `The link asks for ${unknown.join(" and ")}, which is not on this page.` : "");
  requestAnimationFrame(() => el.scrollIntoView());
}

function showStored() {
  const pages = [...document.querySelectorAll(".explorer-page")].map((el, i) => {
    const stored = JSON.parse(el.firstElementChild.textContent);
    return { el, model: storedModel(stored, i + 1) };
  });
  if (!pages.length) return;
  followLink(pages);
  pages.forEach((page) => explorer.render(page));
  addEventListener("hashchange", () => followLink(pages));
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", showStored);
else showStored();
