/** Plotly figures of the book: in the colors of the theme, and readable on a phone. */
(() => {
  const NARROW = 600; // pixels; below, legends stand below figures and titles take several lines
  const LINE = 20;
  const originals = new WeakMap();

  const isDark = () => document.documentElement.dataset.theme === "dark";
  const axesOf = (layout) => Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name)).length || 1;

  /** The figure's own template in the colors of the dark theme; what a figure colors itself stays as it is. */
  function darkened(template) {
    const dark = structuredClone(template ?? {});
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--pst-color-text-base").trim();
    const surface = style.getPropertyValue("--pst-color-surface").trim();
    const [clear, grid, edge] = ["rgba(0,0,0,0)", "#333b46", "#56606e"];
    const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: edge };
    const layout = (dark.layout ??= {});
    Object.assign(layout, { paper_bgcolor: clear, plot_bgcolor: clear, font: { ...layout.font, color: ink } });
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    layout.hoverlabel = { bgcolor: surface, bordercolor: edge, font: { color: ink }, align: "left" };
    layout.shapedefaults = { line: { color: ink } };
    layout.annotationdefaults = { ...layout.annotationdefaults, arrowcolor: ink };
    layout.updatemenudefaults = { bgcolor: surface, bordercolor: edge, font: { color: ink } };
    layout.sliderdefaults = { bgcolor: surface, bordercolor: edge, tickcolor: edge, activebgcolor: edge, font: { color: ink } };
    return dark;
  }

  /** How many pixels a figure needs so that what is written in it does not overlap. */
  function needed({ data, layout }) {
    if (layout.sliders?.length) return 130 + 95 * axesOf(layout);
    const columns = data.map((trace) => (trace.type === "heatmap" ? (trace.x?.length ?? trace.z?.[0]?.length ?? 0) : 0));
    if (columns.some(Boolean)) return 150 + 30 * Math.max(...columns);
    const bars = data.filter((trace) => trace.type === "bar" && trace.orientation !== "h");
    return bars.length ? 100 + 34 * bars.reduce((sum, trace) => sum + (trace.x?.length ?? 0), 0) : 0;
  }

  function wrapped(text, letters) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const longer = [lines.at(-1), word].filter(Boolean).join(" ");
      if (!lines.at(-1) || longer.length <= letters) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  }

  /** The layout for a width. */
  function fitted(original, width) {
    const layout = structuredClone(original);
    if (isDark()) layout.template = darkened(layout.template);
    if (width >= NARROW || !layout.title?.text) return layout;
    const lines = wrapped(layout.title.text, Math.floor(width / 7.5));
    // from the upper edge down: a share of the height would cut lines off a low figure
    const place = { x: 0, xref: "container", y: 1, yref: "container", yanchor: "top", pad: { l: 8, t: 12 } };
    Object.assign(layout.title, { text: lines.join("<br>"), ...place });
    const menus = (layout.updatemenus ?? []).some(({ type }) => type !== "buttons");
    layout.margin = { ...layout.margin, l: 48, r: 12, t: 30 + LINE * lines.length + (menus ? 30 : 0) };
    if (layout.sliders?.length) layout.margin.t += LINE; // titles of the pictures
    if (layout.showlegend !== false && !layout.sliders?.length) {
      layout.legend = { ...layout.legend, x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom" };
      layout.margin.b = 56 + LINE * 2;
      layout.height = (layout.height ?? 380) + LINE * 2;
    }
    return layout;
  }

  function draw(figure) {
    const { data, layout, frames, config } = originals.get(figure);
    const width = figure.parentElement.clientWidth;
    const least = needed({ data, layout });
    figure.style.minWidth = least > width ? `${Math.min(least, 720)}px` : "";
    const wide = Math.max(width, Math.min(least, 720));
    const settings = { responsive: true, displaylogo: false, displayModeBar: width < NARROW ? false : "hover", ...config };
    figure.dataset.drawn = `${isDark()} ${width < NARROW}`;
    return Plotly.newPlot(figure, { data: structuredClone(data), layout: fitted(layout, wide), frames, config: settings });
  }

  document.addEventListener("DOMContentLoaded", () => {
    const figures = [...document.querySelectorAll(".plotly-figure")];
    for (const figure of figures) {
      originals.set(figure, JSON.parse(figure.firstElementChild.textContent));
      draw(figure);
    }
    const again = () => {
      for (const figure of figures) {
        const now = `${isDark()} ${figure.parentElement.clientWidth < NARROW}`;
        if (figure.dataset.drawn !== now) draw(figure);
      }
    };
    new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    addEventListener("resize", again);
    addEventListener("toggle", again, true); // folded figures have no width until they are opened
  });
})();
