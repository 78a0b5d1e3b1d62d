"use strict";
// Draws every chart of the page from the JSON beside it; sets <html data-drawn> when all are done.
// The buttons are named one by one: plotly's own choice has one that sends the chart to a server.
const CONFIG = { displaylogo: false, responsive: true, toImageButtonOptions: { scale: 2 } };
const BUTTONS_2D = [["toImage"], ["zoom2d", "pan2d"], ["resetScale2d"]];
const BUTTONS_3D = [["toImage"], ["orbitRotation", "zoom3d", "pan3d"], ["resetCameraDefault3d"]];

const DARK = window.matchMedia("(prefers-color-scheme: dark)");
const INK = "#1f2937"; // on paper

function spec(div) {
  return JSON.parse(document.getElementById(div.id + "-data").textContent);
}

// The ink of the page; what is drawn in black is drawn in it.
const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
const inked = (layout, color) => ({ ...layout, font: { ...layout.font, color } });
const black = (trace, color) => {
  for (const part of [trace.line, trace.marker]) if (part?.color === "#000000") part.color = color;
  return trace;
};

function drawChart(div, color = ink()) {
  const { data, layout } = spec(div);
  return Plotly.react(div, data.map((trace) => black(trace, color)), inked(layout, color),
    { ...CONFIG, modeBarButtons: BUTTONS_2D });
}

// |h| comes as uint16 codes on a logarithmic scale: 0 is "no positive finite number".
function decode(surface) {
  const bytes = Uint8Array.from(atob(surface.codes), (c) => c.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

function drawSurface(div) {
  const surface = spec(div);
  const [, rows, columns] = surface.shape;
  const codes = decode(surface);
  const magnitude = (code) => (code ? Math.exp(surface.low + code * surface.step) : null);
  // A surface needs two rows and two columns: a lone token or bin is drawn twice.
  const rowOf = rows > 1 ? [...Array(rows).keys()] : [0, 0];
  const columnOf = columns > 1 ? [...Array(columns).keys()] : [0, 0];
  const codeAt = (layer, row, column) => codes[(layer * rows + row) * columns + column];
  const grid = (f) => rowOf.map((row) => columnOf.map((column) => f(row, column)));
  const text = grid((row, column) => surface.rows[row] + "<br>" + surface.bins[column]);
  const x = columns > 1 ? surface.first : [surface.first[0], surface.first[0] + 1];

  function traces(layer) {
    const height = (m) => magnitude(codeAt(layer, m.row, m.column));
    // One name for each dimension, at its tallest spike. A column that several share belongs to
    // the first of them: marks come by size.
    const tallest = new Map();
    const owner = new Map();
    for (const m of surface.marks.filter((m) => m.first <= layer && layer <= m.last)) {
      if (!owner.has(m.column)) owner.set(m.column, m.label);
      if (owner.get(m.column) !== m.label) continue;
      const other = tallest.get(m.label);
      if (!other || height(m) > height(other)) tallest.set(m.label, m);
    }
    const heights = [...tallest.values()].map(height);
    const enough = surface.min_height * Math.max(0, ...heights);
    const marks = [...tallest.values()].filter((m) => height(m) >= enough)
      .sort((a, b) => height(b) - height(a)).slice(0, surface.max_names);
    return [
      {
        type: "surface", x, y: rowOf.map((_, i) => i), text,
        z: grid((row, column) => magnitude(codeAt(layer, row, column))),
        surfacecolor: grid((row, column) => codeAt(layer, row, column) || null),
        cmin: 1, cmax: surface.max_code, colorscale: surface.colorscale, showscale: false,
        lighting: { ambient: 0.85, diffuse: 0.35, specular: 0.03, roughness: 0.9 },
        hovertemplate: "%{text}<br>" + surface.height + " = %{z:.4~g}<extra></extra>",
        contours: { x: { highlight: false }, y: { highlight: false }, z: { highlight: false } },
      },
      {
        type: "scatter3d", mode: "text", hoverinfo: "skip", textposition: "top center",
        x: marks.map((m) => surface.first[m.column]), y: marks.map((m) => m.row),
        z: marks.map(height), text: marks.map((m) => m.label),
        textfont: { color: "#d55e00", size: 13 },
      },
    ];
  }

  const slider = document.getElementById(div.id + "-layer");
  const shown = document.getElementById(div.id + "-shown");
  const log = document.getElementById(div.id + "-log");
  function layoutIn(color) {
    const layout = inked(structuredClone(surface.layout), color);
    layout.scene.zaxis.type = log.checked ? "log" : "linear";
    return layout;
  }
  function draw() {
    shown.value = slider.value;
    return Plotly.react(
      div, traces(Number(slider.value)), layoutIn(ink()),
      { ...CONFIG, modeBarButtons: BUTTONS_3D }
    );
  }
  // A scene cannot be printed: its picture stands in for it, from where the reader looks at it.
  const printed = Object.assign(new Image(), { className: "printed", alt: div.ariaLabel });
  async function picture() {
    const layout = layoutIn(INK);
    layout.scene.camera = div.layout?.scene?.camera ?? layout.scene.camera;
    printed.src = await Plotly.toImage(
      { data: traces(Number(slider.value)), layout }, { format: "png", width: 1000, height: 560 }
    );
    div.after(printed);
  }
  slider.addEventListener("input", draw);
  log.addEventListener("change", draw);
  for (const control of [slider, log]) control.addEventListener("change", picture);
  DARK.addEventListener("change", draw);
  return draw().then(() => {
    div.on("plotly_relayout", picture);
    requestIdleCallback(picture);
  });
}

// One tooltip for all marked tokens: it opens at once, also from the keyboard.
function tooltips() {
  const tip = document.getElementById("tip");
  if (!tip) return;
  const hide = () => { tip.style.display = "none"; };
  const show = (event) => {
    const mark = event.target.closest("[data-tip]");
    if (!mark) return hide();
    const box = mark.getBoundingClientRect();
    tip.textContent = mark.dataset.tip;
    tip.style.display = "block";
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = window.scrollX + Math.max(left, 8) + "px";
    tip.style.top = window.scrollY + box.bottom + 4 + "px";
  };
  document.addEventListener("mouseover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", hide);
}

tooltips();
const plots = [...document.querySelectorAll(".chart[data-kind=plot]")];
const drawPlots = (color) => plots.map((div) => drawChart(div, color));
DARK.addEventListener("change", () => drawPlots(ink()));
window.addEventListener("beforeprint", () => drawPlots(INK));
window.addEventListener("afterprint", () => drawPlots(ink()));
Promise.all([
  ...drawPlots(ink()),
  ...[...document.querySelectorAll(".chart[data-kind=surface]")].map(drawSurface),
]).then(() => { document.documentElement.dataset.drawn = "true"; });
