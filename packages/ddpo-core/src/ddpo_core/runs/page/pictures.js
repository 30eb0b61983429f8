// The same prompts and seeds over the epochs, of one run or of several, and two moments of them compared.

const VIEWS = { one: "One", side: "Side by side", wipe: "Slider", fade: "Fade", difference: "Difference" };
const ORDERS = { drawn: "as drawn", high: "highest score first", low: "lowest score first", rose: "by how much it rose" };
const AMOUNTS = { wipe: "Position of the cut", fade: "Share of the later picture", difference: "Brightness of the difference" };
const PLAY_MS = 700;

const keyOf = (tile, i) => (tile.prompt === undefined ? `#${i}` : JSON.stringify([tile.prompt, tile.seed]));
const titleOf = (tile) => tile.prompt ?? "the whole picture";
const seriesOf = (i) => RUNS[i].series;
const DRAWN = RUNS.map((_, i) => i).filter((i) => seriesOf(i).length);

function image(tile, className, where) {
  const node = el("img", { class: className, src: DATA.images[tile.image], alt: altOf(tile, where), decoding: "async" });
  node.addEventListener("load", () => node.classList.toggle("small", Math.max(node.naturalWidth, node.naturalHeight) <= 128));
  return node;
}

function altOf(tile, where) {
  const seed = tile.seed === undefined ? "" : `, seed ${tile.seed}`;
  const score = typeof tile.score === "number" ? `, score ${number(tile.score)}` : "";
  return `${titleOf(tile)}${seed}, ${where}${score}`;
}

const epochName = (epoch) => (epoch === 0 ? "before training" : `epoch ${epoch}`);
const momentName = ({ run, epoch }) => (SEVERAL ? `${RUNS[run].name}, ` : "") + epochName(epoch);

function drawingOf({ run, epoch }) {
  return seriesOf(run).find((drawing) => drawing.epoch === epoch) ?? seriesOf(run).at(-1);
}

/** A moment that a stored choice names, or where there is none (any more) the fallback. */
function moment(stored, run, fallback) {
  const chosen = stored && DRAWN.includes(stored.run) ? stored : { run, epoch: fallback };
  return { run: chosen.run, epoch: drawingOf(chosen).epoch };
}

function picturesSection() {
  if (!DRAWN.length) return section("pictures", "Pictures", "This run has drawn no pictures yet.");
  const [first, last] = [DRAWN[0], DRAWN.at(-1)];
  state.after = moment(state.after, last, Infinity);
  state.before = moment(state.before, first, SEVERAL && first !== last ? Infinity : 0);
  const tiles = el("div", { class: "tiles" });
  const update = () => { remember(); showTiles(tiles); };

  const amountName = el("span", { class: "name", id: "amount-name" });
  const amount = el("input", { type: "range", id: "amount", min: "0", max: "100", value: String(state.amount), "aria-labelledby": "amount-name" });
  const amountBox = el("div", {}, amountName, amount);
  const beforeBox = momentControl("before", SEVERAL ? "The other" : "Before", update);
  const setAmount = (value) => {
    state.amount = Math.max(0, Math.min(100, Number(value)));
    amount.value = String(state.amount);
    tiles.style.setProperty("--amount", `${state.amount}%`);
    tiles.style.setProperty("--share", String(state.amount / 100));
    tiles.style.setProperty("--gain", String(1 + state.amount / 12));
    remember();
  };
  const setView = (view) => {
    state.view = view;
    tiles.className = `tiles view-${view}`;
    beforeBox.hidden = view === "one";
    amountBox.hidden = !(view in AMOUNTS);
    amountName.textContent = AMOUNTS[view] ?? "";
    update();
  };
  amount.addEventListener("input", () => setAmount(amount.value));
  tiles.addEventListener("pointermove", (event) => {
    const frame = event.target.closest(".frame");
    if (state.view !== "wipe" || !frame) return;
    const box = frame.getBoundingClientRect();
    setAmount((100 * (event.clientX - box.left)) / box.width);
  });
  const views = el("fieldset", { class: "whole" }, el("legend", {}, "Show"), el("div", { class: "segments" },
    Object.entries(VIEWS).map(([view, title]) => el("label", {}, el("input", { type: "radio", name: "view", value: view, checked: state.view === view, onchange: () => setView(view) }), el("span", {}, title)))));
  const order = el("label", {}, el("span", { class: "name" }, "Order"), el("select", { id: "order", onchange: (event) => { state.order = event.target.value; update(); } },
    Object.entries(ORDERS).map(([name, title]) => el("option", { value: name, selected: state.order === name }, title))));
  const controls = el("div", { class: "controls" }, views, momentControl("after", SEVERAL ? "This one" : "Epoch", update, true), beforeBox, amountBox, order);
  setAmount(state.amount);
  setView(state.view);
  return section("pictures", "Pictures",
    "The same prompts and the same noise every time, so that what changes is the model. Choose a picture to see it over all epochs.", controls, tiles);
}

/** The run and the epoch of one side; the slider has one stop for every drawing. */
function momentControl(side, title, update, plays = false) {
  const said = el("output", { for: `${side}-epoch` });
  const slider = el("input", { type: "range", id: `${side}-epoch`, min: "0", step: "1", "aria-label": `${title}: epoch of the pictures` });
  const show = () => {
    const series = seriesOf(state[side].run), { epoch } = state[side];
    slider.max = String(series.length - 1);
    slider.value = String(series.findIndex((drawing) => drawing.epoch === epoch));
    const queries = queriesAt(RUNS[state[side].run], epoch);
    said.textContent = epochName(epoch) + (queries ? `, ${count(queries)} queries` : "");
    slider.setAttribute("aria-valuetext", said.textContent);
  };
  const go = (index) => {
    const series = seriesOf(state[side].run);
    state[side] = { run: state[side].run, epoch: series[Math.max(0, Math.min(series.length - 1, index))].epoch };
    show();
    update();
  };
  slider.addEventListener("input", () => go(Number(slider.value)));
  const choose = SEVERAL && el("select", {
    "aria-label": `${title}: run`,
    onchange: (event) => { state[side] = moment({ run: Number(event.target.value), epoch: state[side].epoch }); show(); update(); },
  }, DRAWN.map((i) => el("option", { value: String(i), selected: i === state[side].run }, RUNS[i].name)));
  show();
  const play = plays && el("button", { type: "button", id: "play", "aria-pressed": "false" }, "Play");
  if (play) {
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; play.setAttribute("aria-pressed", "false"); };
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Stop";
      play.setAttribute("aria-pressed", "true");
      if (Number(slider.value) >= Number(slider.max)) go(0);
      timer = setInterval(() => (Number(slider.value) >= Number(slider.max) ? stop() : go(Number(slider.value) + 1)), PLAY_MS);
      return undefined;
    });
  }
  return el("div", { class: "moment" }, el("span", { class: "name" }, `${title}: `, said), choose, el("div", { class: "row" }, slider, play));
}

/** Join both moments by prompt and seed. */
function pairs() {
  const keyed = (moment) => new Map(drawingOf(moment).tiles.map((tile, i) => [keyOf(tile, i), tile]));
  const after = keyed(state.after), before = keyed(state.view === "one" ? { run: state.after.run, epoch: seriesOf(state.after.run)[0].epoch } : state.before);
  const keys = state.view === "one" ? [...after.keys()] : [...new Set([...after.keys(), ...before.keys()])];
  const joined = keys.map((key) => ({ key, after: after.get(key), before: before.get(key) }));
  const score = ({ after: tile }) => tile?.score ?? -Infinity;
  const rise = (pair) => (pair.after?.score ?? -Infinity) - (pair.before?.score ?? 0);
  const by = { high: (a, b) => score(b) - score(a), low: (a, b) => score(a) - score(b), rose: (a, b) => rise(b) - rise(a) }[state.order];
  return by ? joined.sort(by) : joined;
}

function showTiles(host) {
  // Focus stays where it was: an arrow key on the slider, or a tile, may have asked for this.
  const focused = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  host.replaceChildren(...pairs().map((pair) => {
    const tile = pair.after ?? pair.before;
    const [a, b] = [["before", pair.before, "a"], ["after", pair.after, "b"]].map(([side, own, name]) =>
      own ? image(own, name, momentName(state[side])) : el("span", { class: `missing ${name}` }, "not drawn"));
    const frame = el("button", { class: "frame", type: "button", "data-key": pair.key, "aria-haspopup": "dialog", onclick: () => openFilm(pair.key, tile) }, state.view === "one" ? [b] : [a, b]);
    return el("figure", { class: tile.prompt === undefined ? "only" : undefined }, frame, el("figcaption", {}, el("bdi", {}, titleOf(tile)), scoreLine(pair)));
  }));
  if (focused) [...host.querySelectorAll(".frame")].find((frame) => frame.dataset.key === focused)?.focus();
}

function scoreLine({ after, before }) {
  const [now, then] = [after?.score, before?.score];
  if (typeof now !== "number") return null;
  if (typeof then !== "number" || before === after) return el("span", { class: "soft" }, number(now));
  const change = now - then;
  const word = change > 0 ? "up" : change < 0 ? "down" : "";
  return el("span", { class: "soft" }, `${number(now)} `, el("span", { class: word }, `${change > 0 ? "\u25b2" : change < 0 ? "\u25bc" : ""} ${signed(change)}`));
}

/** One prompt and seed over all epochs of all runs, in a dialog. */
function openFilm(key, tile) {
  const rows = DRAWN.map((i) => {
    const frames = seriesOf(i).flatMap((drawing) => drawing.tiles.map((own, place) => ({ own, epoch: drawing.epoch, key: keyOf(own, place) }))).filter((frame) => frame.key === key);
    if (!frames.length) return null;
    return el("div", {}, SEVERAL && el("p", {}, runName(i)), el("ol", { class: "film", tabindex: "0", "aria-label": `${RUNS[i].name}: over the epochs` }, frames.map(({ own, epoch }) =>
      el("li", {}, image(own, "", epochName(epoch)), el("div", { class: "soft" }, epochName(epoch)), typeof own.score === "number" && el("div", {}, number(own.score))))));
  });
  const told = drawingOf(state.after).tiles.find((own, i) => keyOf(own, i) === key) ?? tile;
  const close = el("button", { type: "button", autofocus: true }, "Close");
  const dialog = el("dialog", { "aria-labelledby": "film-title" },
    el("div", { class: "bar" }, el("h3", { id: "film-title" }, el("bdi", {}, titleOf(tile)), tile.seed === undefined ? "" : `, seed ${tile.seed}`), close), ...rows.filter(Boolean), infoList(told.info, `What the reward said, ${momentName(state.after)}`));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function plainText(value) {
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

function infoList(info, title) {
  const entries = Object.entries(info ?? {});
  if (!entries.length) return null;
  return el("div", {}, title && el("p", { class: "soft" }, title), el("dl", {}, entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, plainText(value)))])));
}
