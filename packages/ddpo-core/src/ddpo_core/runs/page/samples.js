// Single samples, sorted and searched: those that were trained on, and the fixed ones with their pictures.

const AT_ONCE = 24;
const SORTS = { high: "highest score first", low: "lowest score first", late: "latest epoch first", early: "earliest epoch first" };
const SOURCES = { pictures: "all that have a picture", fixed: "fixed prompts and seeds", trained: "samples trained on" };

function allSamples() {
  return RUNS.flatMap((run, i) => [
    ...run.series.flatMap(({ epoch, tiles }) => tiles.filter((tile) => tile.prompt !== undefined).map((tile) => ({ ...tile, run: i, epoch, source: "fixed" }))),
    ...run.samples.map(({ reward, ...row }) => ({ ...row, score: reward, run: i, source: "trained" })),
  ]);
}

function samplesSection() {
  const all = allSamples();
  if (!all.length) return null;
  const hasPictures = all.some((sample) => sample.image !== undefined);
  const browse = { source: hasPictures ? "pictures" : "trained", sort: "high", run: "", epoch: "", text: "", ...state.browse };
  state.browse = browse;
  for (const sample of all) sample.text = [sample.prompt, ...Object.values(sample.info ?? {}).map(plainText), ...Object.values(sample.metadata ?? {}).map(plainText)].join("\n").toLowerCase();
  let shown = AT_ONCE;
  const said = el("p", { class: "soft", role: "status" });
  const list = el("div", { class: "browser" });
  const more = el("button", { type: "button", onclick: () => { shown += 2 * AT_ONCE; show(); } }, "Show more");

  const show = () => {
    remember();
    const found = all.filter((sample) =>
      (browse.source === "pictures" ? sample.image !== undefined : sample.source === browse.source)
      && (browse.run === "" || sample.run === Number(browse.run)) && (browse.epoch === "" || sample.epoch === Number(browse.epoch))
      && browse.text.toLowerCase().split(/\s+/).every((word) => sample.text.includes(word)));
    const score = (sample, none) => (typeof sample.score === "number" ? sample.score : none);
    found.sort({
      high: (a, b) => score(b, -Infinity) - score(a, -Infinity), low: (a, b) => score(a, Infinity) - score(b, Infinity),
      late: (a, b) => b.epoch - a.epoch, early: (a, b) => a.epoch - b.epoch,
    }[browse.sort]);
    list.replaceChildren(...found.slice(0, shown).map(sampleCard));
    said.textContent = `${count(Math.min(shown, found.length))} of ${count(found.length)} samples`;
    more.hidden = shown >= found.length;
  };
  const control = (title, key, entries) => el("label", {}, el("span", { class: "name" }, title), el("select", { id: `samples-${key}`, onchange: (event) => { browse[key] = event.target.value; shown = AT_ONCE; show(); } },
    entries.map(([value, text]) => el("option", { value, selected: browse[key] === value }, text))));
  const epochs = [...new Set(all.map((sample) => sample.epoch))].sort((a, b) => a - b);
  const search = el("input", { type: "search", id: "samples-text", value: browse.text, placeholder: "in prompts and captions", oninput: (event) => { browse.text = event.target.value; shown = AT_ONCE; show(); } });
  const controls = el("div", { class: "controls" },
    control("Which", "source", Object.entries(SOURCES).filter(([name]) => name !== "pictures" || hasPictures)), control("Order", "sort", Object.entries(SORTS)),
    SEVERAL && control("Run", "run", [["", "all"], ...RUNS.map((run, i) => [String(i), run.name])]),
    control("Epoch", "epoch", [["", "all"], ...epochs.map((epoch) => [String(epoch), epochName(epoch)])]),
    el("label", {}, el("span", { class: "name" }, "Search"), search));
  show();
  return section("samples", "Samples", "The best scores show soonest what a reward really asks for: look whether you would call them good.", controls, said, list, el("p", {}, more));
}

function sampleCard(sample) {
  const where = (SEVERAL ? `${RUNS[sample.run].name}, ` : "") + epochName(sample.epoch);
  const which = sample.source === "fixed" ? `seed ${sample.seed}` : `sample ${sample.sample}`;
  const advantage = typeof sample.advantage === "number" ? `advantage ${signed(sample.advantage)}` : null;
  return el("div", { class: "card sample" },
    sample.image !== undefined && image({ ...sample, seed: sample.source === "fixed" ? sample.seed : undefined }, "", where),
    el("div", {}, el("p", { class: "score" }, number(sample.score)), el("p", {}, el("bdi", {}, sample.prompt)), el("p", { class: "soft" }, [where, which, advantage].filter(Boolean).join(" \u00b7 ")),
      infoList(sample.info), infoList(sample.metadata)));
}
