// Charts over queries, epochs or time, one cursor over all of them, each with a table and a line of text.

const AXES = { queries: "Queries of the reward", epochs: "Epochs", minutes: "Minutes of computing" };
const charts = [];

function place(run, epoch) {
  const index = run.epochs.indexOf(epoch);
  if (index < 0) return epoch === 0 ? 0 : null;
  return { queries: run.queries[index], epochs: epoch, minutes: run.seconds[index] / 60 }[state.axis];
}

/** The colours of the theme as canvas wants them: CSS alone knows which theme is shown. */
function tone(name) {
  const probe = el("span", { class: name });
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

const faint = (colour, share) => colour.replace(/^rgba?\(([^)]*)\)$/, (_, parts) => `rgba(${parts.split(",").slice(0, 3).join(",")},${share})`);

/**
 * Draw lines. `lines`: {run, label, curve, colour, dash}, where curve has epochs, values and perhaps errors and a level.
 * Where their labels are those of the runs, which have their colours everywhere, a small chart does not show them.
 */
function chart(title, explanation, lines, { wide = false, zero = false, named = false } = {}) {
  const plot = el("div", { class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart" });
  const readout = el("output", { class: "readout", "aria-live": "off" });
  const details = el("details", {}, el("summary", {}, "Table"));
  const figure = el("figure", { class: `card chart${wide ? " wide" : ""}` }, el("h3", {}, title), el("p", { class: "soft" }, explanation), readout, plot, details);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(valueTable(title, lines));
  });
  const own = { plot, readout, title, lines, wide, zero, named, drawn: null, shown: null };
  plot.addEventListener("keydown", (event) => moveCursor(own, event));
  plot.addEventListener("blur", () => { readout.setAttribute("aria-live", "off"); });
  charts.push(own);
  return figure;
}

function valueTable(title, lines) {
  const rows = lines.flatMap(({ run, label, curve }) => curve.epochs.map((epoch, i) => [
    ...(lines.length > 1 ? [label] : []), String(epoch), queriesAt(run, epoch) === null ? "" : count(queriesAt(run, epoch)),
    number(curve.values[i], 6), ...(lines.some((line) => line.curve.errors) ? [curve.errors ? `\u00b1 ${number(curve.errors[i], 3)}` : ""] : []),
  ]));
  const head = [...(lines.length > 1 ? ["of"] : []), "epoch", "queries", "value", ...(lines.some((line) => line.curve.errors) ? ["95 % interval"] : [])];
  return table(title, head, rows, head.map((_, i) => i).slice(lines.length > 1 ? 1 : 0));
}

function joined(lines) {
  const tables = lines.map(({ run, curve }) => {
    const points = curve.epochs.map((epoch, i) => [place(run, epoch), curve.values[i], curve.errors?.[i] ?? 0]).filter((point) => point[0] !== null);
    return [points.map((p) => p[0]), points.map((p) => p[1]), points.map((p) => p[1] - p[2]), points.map((p) => p[1] + p[2]), points.map(() => curve.level ?? null)];
  });
  return tables.length ? uPlot.join(tables) : [[]];
}

function draw(own) {
  own.drawn?.destroy();
  const values = own.lines.flatMap(({ curve }) => curve.values);
  own.digits = Math.max(4, digitsFor(values, (Math.max(...values) - Math.min(...values)) / 20 || Infinity));
  const data = joined(own.lines);
  const width = Math.max(240, own.plot.clientWidth), height = own.wide ? 340 : 190;
  const ink = tone("axis-ink"), lattice = tone("axis-grid");
  const series = [{}], bands = [];
  own.lines.forEach(({ label, colour, dash, curve }, i) => {
    const stroke = tone(colour), first = 1 + 4 * i;
    const few = curve.values.length < 40;
    series.push({ label, stroke, width: 2, dash, spanGaps: true, points: { show: few, size: few && curve.values.length > 20 ? 4 : 5 } });
    const edge = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
    series.push(edge, { ...edge }, { stroke: curve.level === null || curve.level === undefined ? "transparent" : stroke, width: 1.5, dash: [7, 5], points: { show: false }, spanGaps: true });
    if (curve.errors) bands.push({ series: [first + 2, first + 1], fill: faint(stroke, 0.18) });
  });
  const axis = { stroke: ink, grid: { stroke: lattice, width: 1 }, ticks: { stroke: lattice, width: 1 }, font: "12px system-ui, sans-serif" };
  own.drawn = new uPlot({
    width, height, series, bands, legend: { show: false },
    scales: { x: { time: false }, y: { range: (_, low, high) => padded(own.zero ? Math.min(0, low) : low, high) } },
    axes: [
      { ...axis, label: own.wide ? AXES[state.axis] : undefined, labelSize: 20, labelFont: "12px system-ui, sans-serif", values: (_, ticks) => ticks.map((tick) => count(tick)), space: 60 },
      { ...axis, size: 64, values: (_, ticks, __, ___, step) => ticks.map((tick) => number(tick, digitsFor([tick], step))), space: 34 },
    ],
    cursor: { sync: { key: "all", scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 8 }, y: false },
    hooks: { setCursor: [(u) => tell(own, u.cursor.idx)] },
  }, data, own.plot);
  tell(own, null);
}

/** How many digits tell values apart that differ by `step`. */
const digitsFor = (values, step) => Math.max(1, Math.min(12, Math.ceil(Math.log10(Math.max(...values.map(Math.abs)) / step) + 1e-9) + 1));

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const margin = (high - low) * 0.06 || Math.abs(low) * 0.1 || 0.5;
  return [low === 0 ? 0 : low - margin, high + margin];
}

/** Say in words what is at the cursor, or where there is none what the last values are. */
function tell(own, index) {
  const data = own.drawn.data;
  own.shown = index;
  const parts = own.lines.map(({ label, colour, dash, curve, run }, i) => {
    const column = data[1 + 4 * i];
    let at = index ?? column.length - 1;
    while (at > 0 && (column[at] === null || column[at] === undefined)) at -= 1;
    const [value, low, high] = [0, 1, 2].map((k) => data[1 + 4 * i + k][at]);
    if (value === null || value === undefined) return null;
    const interval = curve.errors ? ` (${number(low, own.digits - 1)} to ${number(high, own.digits - 1)})` : "";
    const level = curve.level === null || curve.level === undefined ? "" : `, level ${number(curve.level)}`;
    return el("span", {}, own.lines.length > 1 && el("span", { class: `swatch ${colour}${dash ? " dash-1" : ""}`, "aria-hidden": "true" }), own.lines.length > 1 && el("span", { class: own.wide || own.named ? undefined : "sr" }, `${label} `), `${number(value, own.digits)}${interval}${level}`);
  });
  const x = data[0][index ?? data[0].length - 1];
  const where = { queries: `${count(Math.round(x ?? 0))} queries`, epochs: `epoch ${x}`, minutes: `${number(x, 3)} min` }[state.axis];
  own.readout.replaceChildren(el("span", { class: "soft" }, index === null ? "last" : where), ...parts.filter(Boolean));
  own.plot.setAttribute("aria-label", `${own.title} over ${AXES[state.axis].toLowerCase()}: ${own.readout.innerText || own.readout.textContent}. Left and right arrows move along it; a table follows.`);
}

function moveCursor(own, event) {
  const last = own.drawn.data[0].length - 1;
  const at = own.shown ?? last;
  const to = { ArrowLeft: at - 1, ArrowRight: own.shown === null ? at : at + 1, Home: 0, End: last, Escape: null }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  own.readout.setAttribute("aria-live", "polite");
  if (to === null) return void own.drawn.setCursor({ left: -10, top: -10 });
  const x = own.drawn.data[0][Math.max(0, Math.min(last, to))];
  for (const other of charts) {
    if (other.drawn && other.drawn.data[0].length) other.drawn.setCursor({ left: other.drawn.valToPos(x, "x"), top: 10 });
  }
}

/** Draw charts when they come near the window, again when it changes its width. */
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const own = charts.find(({ plot }) => plot === target);
    if (isIntersecting && !own.drawn) draw(own);
  }
}, { rootMargin: "600px" });
const widths = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const own = charts.find(({ plot }) => plot === target);
    if (own.drawn && Math.abs(own.drawn.width - contentRect.width) > 1 && contentRect.width > 0) {
      own.drawn.setSize({ width: contentRect.width, height: own.drawn.height });
    }
  }
});

function watchCharts() {
  for (const { plot } of charts) {
    near.observe(plot);
    widths.observe(plot);
  }
}

function redrawCharts() {
  for (const own of charts) if (own.drawn) draw(own);
}

/** The curves of a room by name, those of all runs together. */
function curvesOf(room) {
  const found = new Map();
  RUNS.forEach((run, i) => {
    for (const curve of run.curves) {
      if (curve.room !== room) continue;
      if (!found.has(curve.name)) found.set(curve.name, []);
      found.get(curve.name).push({ run, label: run.name, curve, colour: `run-${i % COLOURS}`, dash: i < COLOURS ? undefined : [6, 4] });
    }
  });
  return [...found];
}

/** Several curves of a run in one chart each: by stage, or by denoising step. */
function stackOf(room, title, explanation, label) {
  return RUNS.flatMap((run) => {
    const curves = run.curves.filter((curve) => curve.room === room);
    if (!curves.length) return [];
    const lines = curves.map((curve, i) => ({ run, label: label(curve.name), curve, colour: `run-${i % COLOURS}`, dash: i < COLOURS ? undefined : [6, 4] }));
    return [chart(SEVERAL ? `${title}: ${run.name}` : title, explanation, lines, { zero: true, named: true })];
  });
}

function axisControl() {
  return el("label", { class: "row" }, "Along ", el("select", {
    id: "axis",
    onchange: (event) => { state.axis = event.target.value; remember(); redrawCharts(); },
  }, Object.entries(AXES).map(([name, title]) => el("option", { value: name, selected: state.axis === name }, title.toLowerCase()))));
}
