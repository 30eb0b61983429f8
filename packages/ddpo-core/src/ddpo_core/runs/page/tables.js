// What came of each run, verdicts, probes, and the configuration.

const share = (value) => `${Math.round(100 * value)} %`;

function overviewSection() {
  const notes = RUNS.flatMap((run) => run.notes.map((note) => (SEVERAL ? `${run.name}: ${note}` : note)));
  return section("overview", "Overview", null, el("div", { class: "cards" }, RUNS.map(runCard)),
    notes.length > 0 && el("div", { class: "notice" }, notes.map((note) => el("p", {}, note))));
}

function runCard(run, i) {
  const done = run.epochs.at(-1) ?? 0, of = run.wanted ? ` of ${run.wanted}` : "";
  const verdict = run.verdicts.at(-1);
  const { evaluation } = run;
  const facts = [];
  const fact = (name, value, big = false) => { if (value !== null && value !== undefined && value !== "") facts.push(el("div", { class: big ? "big" : undefined }, el("dt", {}, name), el("dd", {}, value))); };
  if (evaluation) {
    fact(`Before and after, ${evaluation.images} pictures`, `${number(evaluation.base.mean)} \u2192 ${number(evaluation.finetuned.mean)}`, true);
    const { mean, low, high } = evaluation.change;
    fact("Change, 95 % interval", [signed(mean), el("small", {}, `${signed(low)} to ${signed(high)}`)], true);
    fact("Pictures that improved", share(evaluation.improved));
  } else {
    const curve = run.curves.find(({ name, room }) => room === "reward" && name === "reward_mean");
    if (curve?.values.length) fact("Mean reward, first and last epoch", `${number(curve.values[0])} \u2192 ${number(curve.values.at(-1))}`, true);
  }
  fact("Epochs", `${done}${of}`);
  fact("Queries", count(run.queries.at(-1) ?? 0));
  if (run.seconds.length) fact("Computing", clock(run.seconds.at(-1)));
  fact("Model of epoch", run.model);
  fact("Best epoch", run.best);
  const settings = [run.config.model, run.config["objective.name"], run.config.prompts, run.config.seed && `seed ${run.config.seed}`].filter(Boolean);
  return el("div", { class: "card" },
    el("div", { class: "run-head" }, el("h3", {}, runName(i)), el("span", { class: "chip soft" }, run.status),
      verdict && el("span", { class: `chip status-${verdict.status}` }, verdict.status)),
    el("p", { class: "soft" }, run.config.reward ? `Reward: ${run.config.reward}` : "", settings.length ? ` \u00b7 ${settings.join(" \u00b7 ")}` : ""),
    el("dl", { class: "facts" }, facts));
}

function rewardSection() {
  const charts = [...curvesOf("reward"), ...curvesOf("component")].map(([name, lines]) => {
    const [title, explanation] = words(name);
    const isTerm = lines[0].curve.room === "component";
    return chart(isTerm ? name : title, isTerm ? "The mean of what the reward says of every sample." : explanation, lines, { wide: name === "reward_mean" });
  });
  if (!charts.length) return section("reward", "Reward", "No epoch is done yet.");
  return section("reward", "Reward", "Drag over a chart to look closer, click twice to see all of it again.", el("p", {}, axisControl()), el("div", { class: "charts" }, charts));
}

function heldOutSection() {
  const charts = curvesOf("held_out").map(([name, lines]) => chart(words(name)[0], words(name)[1] || "Measured, never optimised.", lines));
  return charts.length ? section("held-out", "Held-out rewards", "What is measured and never optimised. Where it falls while the reward rises, the reward is being gamed.", el("div", { class: "charts" }, charts)) : null;
}

function constraintsSection() {
  const multipliers = new Map(curvesOf("multiplier"));
  const charts = curvesOf("kept").flatMap(([name, lines]) => [
    chart(words(name)[0], `${words(name)[1]} It is not to fall below the dashed level.`.trim(), lines),
    ...(multipliers.has(name) ? [chart(`${words(name)[0]}: multiplier`, "How much it weighs beside the reward; 0 while it is above its level.", multipliers.get(name), { zero: true })] : []),
  ]);
  return charts.length ? section("constraints", "Constraints", "What must not fall while the reward rises, with the 95 % interval of each epoch, and the multiplier that sees to it.", el("div", { class: "charts" }, charts)) : null;
}

function monitorsSection() {
  const judged = RUNS.filter((run) => run.verdicts.length);
  const charts = curvesOf("signal").map(([name, lines]) => chart(words(name)[0], words(name)[1], lines));
  if (!judged.length && !charts.length) return null;
  return section("monitors", "Monitors", "One verdict per epoch, and what is measured of the samples.", el("div", { class: "stack" }, judged.map(verdicts)), el("div", { class: "charts" }, charts));
}

function verdicts(run) {
  const changes = run.verdicts.filter((verdict, i) => verdict.status !== run.verdicts[i - 1]?.status);
  const last = run.verdicts.at(-1);
  return el("div", { class: "card" },
    el("h3", {}, SEVERAL ? `Verdicts of ${run.name}` : "Verdicts"),
    el("div", { class: "strip", "aria-hidden": "true" }, run.verdicts.map(({ epoch, status, reason }) => el("span", { class: `status-${status}`, title: `epoch ${epoch}: ${status}, ${reason}` }))),
    el("ul", { class: "changes" }, changes.map(({ epoch, status, reason }) => el("li", {}, `From epoch ${epoch}: `, el("strong", { class: `status-${status}` }, status), `, ${reason}`)),
      last.reason !== changes.at(-1).reason && el("li", {}, `Epoch ${last.epoch}: `, el("strong", { class: `status-${last.status}` }, last.status), `, ${last.reason}`)));
}

const HEALTH_ORDER = ["ratio_mean", "clip_fraction", "clip_fraction_high", "clip_fraction_low", "approx_kl", "grad_norm", "reward_std", "prompts_without_spread", "rate_scale", "loss"];

function healthSection() {
  const rank = (name) => (HEALTH_ORDER.indexOf(name) + 1 || HEALTH_ORDER.length + 1);
  const charts = curvesOf("health").sort(([a], [b]) => rank(a) - rank(b)).map(([name, lines]) => chart(words(name)[0], words(name)[1], lines));
  const steps = stackOf("step", "Change of log-probabilities by denoising step", "Mean absolute change since sampling: which steps the updates move. Step 0 is the noisiest.", (name) => `step ${name}`);
  const costs = stackOf("cost", "Milliseconds per image", "By stage.", (name) => name);
  const all = [...charts, ...steps, ...costs];
  return all.length ? section("health", "Health of the training", "Whether updates do what they are meant to.", el("div", { class: "charts" }, all)) : null;
}

function probesSection() {
  const probes = RUNS.flatMap((run) => run.probes.map((probe) => ({ run, probe })));
  if (!probes.length) return null;
  return section("probes", "Probes", "Whether a reward can be gamed, tried on pictures that were made no better (ddpo probe).", probes.map(({ run, probe }) => el("div", { class: "card probe" },
    el("div", { class: "run-head" }, el("h3", {}, probe.reward), el("span", { class: `chip status-${probe.verdict}` }, probe.verdict.replaceAll("_", " "))),
    el("p", { class: "soft" }, (SEVERAL ? `${run.name} \u00b7 ` : "") + probe.pictures),
    table(`What was asked of ${probe.reward}`, ["question", "answer", "effect", "verdict"], probe.tests.map((test) => [test.question, test.reason, effect(test), el("span", { class: `status-${test.verdict}` }, test.verdict.replaceAll("_", " "))])),
    probe.sheet && el("details", {}, el("summary", {}, "Pictures"), el("img", { src: probe.sheet, alt: `The pictures that ${probe.reward} was probed with, as they were and changed` })))));
}

function effect({ effect: [value, low, high], unit }) {
  if (value === null) return "";
  return unit === "share" ? `${share(value)} (${share(low)} to ${share(high)})` : `${signed(value)} ${unit} (${signed(low)} to ${signed(high)})`;
}

function configurationSection() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.config)))];
  const differs = (key) => new Set(RUNS.map((run) => run.config[key])).size > 1;
  const host = el("div", { class: "card" });
  const show = (onlyDifferences) => {
    const rows = keys.filter((key) => !onlyDifferences || differs(key)).map((key) => ({ cells: [el("code", {}, key), ...RUNS.map((run) => run.config[key] ?? "\u2013")], mark: SEVERAL && differs(key) ? "differs" : undefined }));
    host.replaceChildren(rows.length ? table(SEVERAL ? "What differs is marked" : "As in config.toml", ["key", ...RUNS.map((run) => run.name)], rows) : el("p", {}, "The configurations are the same."));
  };
  const only = el("input", { type: "checkbox", id: "only-differences", checked: SEVERAL, onchange: (event) => show(event.target.checked) });
  show(SEVERAL);
  return section("configuration", "Configuration", null, SEVERAL && el("p", {}, el("label", { class: "row" }, only, " Only what differs")), host);
}
