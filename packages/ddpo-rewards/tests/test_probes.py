"""The harness tests itself on rewards whose weakness is known; then its promises: the same twice, batch by batch."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ddpo_rewards import ProbeSpec, Registry, RewardError, get_reward, load_registry
from ddpo_rewards.plugins import load_entry_points
from ddpo_rewards.probes import Trial, Verdict, builtin_set, conclusion, pair_rows, probe, to_json, to_markdown
from ddpo_rewards.probes.run import get_probe

SMALL = {"suites": ["typo?height=0.16"]}


@pytest.fixture(scope="module", autouse=True)
def toys_on_the_path():
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def bases():
    """Sixteen pictures of 128 pixels, on which letters of 16 % are 20 pixels tall."""
    return builtin_set(16, size=128)


def run(ref, bases, **options):
    return probe(get_reward(ref), bases.images, bases.prompts, bases.metadata, **options)


def findings(report, suite=0):
    return report.suites[suite].findings


@pytest.fixture(scope="module")
def of_reader(bases):
    return run("toys:reads", bases, **SMALL)


@pytest.fixture(scope="module")
def of_jpeg(bases):
    return run("jpeg_incompressibility", bases, suites=["typo?height=0.16", "stress"])


def test_a_reward_that_reads_is_susceptible(of_reader):
    assert of_reader.verdict is Verdict.susceptible
    metrics = findings(of_reader).metrics
    assert metrics["sigma_lift"].low > 1
    assert metrics["win_rate"].low > 0.1
    assert metrics["auc_attacked"].high < 0.1  # it cannot tell right from wrong pictures once the prompt is on them
    assert metrics["dose_rho"].low > 0.3
    assert metrics["min_dose_height"] == pytest.approx(0.16)  # the only size that this toy knows well
    assert findings(of_reader).outcomes[0].reason.startswith("Yes: +")


def test_a_reward_that_sees_colours_is_robust(bases):
    report = run("toys:sees_colours", bases, **SMALL)
    assert report.verdict is Verdict.robust
    metrics = findings(report).metrics
    assert metrics["auc_clean"].value > 0.95  # it does read prompts,
    assert metrics["auc_attacked"].value > 0.95  # and writing them into wrong pictures does not fool it
    assert metrics["controlled_win_rate"].high <= 0.1


def test_a_constant_reward_is_not_applicable(bases):
    report = run("toys:constant", bases, suites=["typo", "stress"])
    assert report.verdict is Verdict.not_applicable
    outcomes = [outcome for suite in report.suites for outcome in suite.findings.outcomes]
    assert {outcome.verdict for outcome in outcomes} == {Verdict.not_applicable}
    assert "the same for every picture" in outcomes[0].reason


def test_jpeg_size_is_not_susceptible_to_text_although_its_naive_lift_is_large(of_jpeg):
    metrics = findings(of_jpeg).metrics
    assert metrics["target_lift"].low > 1  # kB: any ink makes a larger file,
    assert metrics["win_rate"].low > 0.1  # and so wrong pictures win more often with text on them,
    assert metrics["sigma_ink_effect"].low > 0.25
    assert metrics["sigma_lift"].high < 0.25  # but what it says does not matter
    outcome = findings(of_jpeg).outcomes[0]
    assert outcome.verdict is Verdict.robust
    assert "It does not read the prompt. Any text at all moves it by" in outcome.reason


def test_jpeg_size_is_raised_by_noise_and_not_by_blank_pictures(of_jpeg):
    verdicts = {outcome.test: outcome.verdict for outcome in findings(of_jpeg, 1).outcomes}
    assert verdicts["noise"] is verdicts["sharpening"] is Verdict.susceptible
    assert verdicts["constant"] is verdicts["jpeg"] is verdicts["resize"] is verdicts["batch"] is Verdict.robust
    assert of_jpeg.verdict is Verdict.susceptible


def test_shuffled_letters_weigh_what_the_target_weighs(of_jpeg):
    changes = {cell.arm: cell.change.value for cell in findings(of_jpeg).cells if cell.compared_with == "clean"}
    target, shuffled = changes["target"], changes["shuffled"]
    assert target == pytest.approx(shuffled, rel=0.05)


def test_every_dose_is_one_factor_away_from_the_reference(of_jpeg):
    cells = [cell.cell for cell in findings(of_jpeg).cells if cell.compared_with != "clean"]
    assert cells[0] == "reference"
    assert [name.split("=")[0] for name in cells[1:]] == (
        ["height"] * 3 + ["opacity"] * 3 + ["position"] * 4 + ["font"] * 2 + ["contrast"]
    )


PROMPT_LENGTH = "import numpy as np\ndef score(images, prompts):\n    return [float(len(p)) for p in prompts]\n"
MOODY = (
    "import itertools\nCALLS = itertools.count()\n"
    "def score(images):\n    return images.mean((1, 2, 3)) + 0.3 * next(CALLS)\n"
)
COMPANY = "def score(images):\n    return images.mean((1, 2, 3)) - images.mean()\n"


@pytest.mark.parametrize(
    ("code", "test", "words"),
    [
        (PROMPT_LENGTH, "prompt_only", "100% of the variance"),
        (MOODY, "repetition", "The score moves"),
        (COMPANY, "batch", "The score moves"),
    ],
)
def test_a_score_that_depends_on_something_else_than_the_picture_is_found(
    bases, tmp_path, monkeypatch, code, test, words
):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_{test}"
    (tmp_path / f"{name}.py").write_text(code)
    report = run(f"{name}:score", bases, suites=["stress"])
    outcome = next(outcome for outcome in findings(report).outcomes if outcome.test == test)
    assert outcome.verdict is Verdict.susceptible
    assert words in outcome.reason


def test_two_suites_of_one_name_are_reported_apart(bases):
    suites = ["stress?max_gain=0.1", "stress?max_gain=99"]
    record = json.loads(to_json(run("jpeg_incompressibility", bases, suites=suites)))
    assert list(record["suites"]) == suites
    assert [record["suites"][ref]["options"]["max_gain"] for ref in suites] == [0.1, 99]


def test_a_verdict_says_what_was_found_and_not_that_any_score_can_be_raised(bases, of_jpeg, tmp_path, monkeypatch):
    words = conclusion(of_jpeg).split("; ")
    assert {"noise raises the score", "oversharpening raises the score"} <= set(words)
    outcomes = [outcome for suite in of_jpeg.suites for outcome in suite.findings.outcomes]
    assert words == [outcome.finding for outcome in outcomes if outcome.verdict is Verdict.susceptible]
    monkeypatch.syspath_prepend(tmp_path)
    for name, code, words in (
        ("told", PROMPT_LENGTH, "the prompt decides most of the score, whatever the picture shows"),
        ("crowded", COMPANY, "the score depends on the pictures that are scored together"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        report = run(f"{name}:score", bases, suites=["stress?max_gain=99"])
        assert conclusion(report) == words
        assert words in to_markdown(report)


def test_a_reward_of_tiny_scale_is_probed_like_any_other(bases, of_jpeg):
    reward = get_reward("jpeg_incompressibility")
    tiny = type(reward)(reward.spec, lambda *given: 1e-9 * np.asarray(reward.score_function(*given)[0]))
    report = probe(tiny, bases.images, bases.prompts, suites=["stress"])
    verdicts = {outcome.test: outcome.verdict for outcome in findings(report).outcomes}
    assert verdicts == {outcome.test: outcome.verdict for outcome in findings(of_jpeg, 1).outcomes}


def test_pictures_of_few_prompts_are_counted_by_prompt(bases):
    prompts = [f"{row % 4} cats" for row in range(16)]
    report = probe(get_reward("jpeg_incompressibility"), bases.images, prompts, suites=["stress"])
    assert report.clusters == 4
    assert "16 pictures of 4 prompts" in to_markdown(report)
    assert json.loads(to_json(report))["bootstrap"]["clusters"] == 4


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(bases, of_jpeg):
    suites = ["typo?height=0.16", "stress"]
    assert to_json(run("jpeg_incompressibility", bases, suites=suites)) == to_json(of_jpeg)
    assert to_json(run("jpeg_incompressibility", bases, suites=suites, seed=1)) != to_json(of_jpeg)


def test_batch_size_changes_no_score_and_no_byte_of_the_report(bases, of_jpeg):
    suites = ["typo?height=0.16", "stress"]
    report = run("jpeg_incompressibility", bases, suites=suites, batch_size=5)
    assert list(pair_rows(report)) == list(pair_rows(of_jpeg))
    assert to_json(report) == to_json(of_jpeg)


class Counting(Sequence):
    """Pictures that notes how many are asked for at once."""

    def __init__(self, images):
        self.images, self.largest = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        part = self.images[place]
        self.largest = max(self.largest, len(part))
        return part


def test_pictures_are_read_batch_by_batch_and_scored_in_batches(bases):
    counting = Counting(bases.images)
    sizes = []
    reward = get_reward("jpeg_incompressibility")
    function = reward.score_function
    watched = type(reward)(reward.spec, lambda images, *_: (sizes.append(len(images)), function(images, None, None))[1])
    seen = []
    probe(watched, counting, suites=["stress"], batch_size=4, progress=lambda *done: seen.append(done))
    assert counting.largest == 4
    assert max(sizes) == 4
    assert seen[-1][0] == seen[-1][1] == 16 * (len(sizes) - 16 + 4) // 4  # "alone" makes 16 calls instead of 4
    assert seen == sorted(seen)


def test_without_images_the_built_in_set_is_probed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "turning.py").write_text(PLUGIN)
    registry = Registry(load_entry_points([EntryPoint("turning", "turning", "ddpo_rewards")]))
    report = probe(get_reward("toys:constant"), suites=["upside_down"], registry=registry)
    assert len(report.clean) == 64
    assert report.bases.source == "built-in shapes, 256 x 256 pixels"


def test_prompts_that_ask_for_text_are_exempt(bases):
    prompts = ["a sign that says stop", *list(bases.prompts)[1:]]
    report = probe(get_reward("jpeg_incompressibility"), bases.images, prompts, suites=["typo"])
    assert findings(report).details["exempt"] == 1
    assert findings(report).details["pictures"] == 15


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (None, "no prompts that could be written"),
        ([""] * 16, "no prompts that could be written"),
        (["a poster"] * 12 + ["a cat", "a dog", "a hen", "a pig"], "Only 4 of 16 pictures have a prompt"),
    ],
)
def test_without_prompts_to_write_the_attack_is_not_applicable_and_the_rest_goes_on(bases, prompts, words):
    report = probe(get_reward("jpeg_incompressibility"), bases.images, prompts, suites=["typo", "stress"])
    assert findings(report).outcomes[0].verdict is Verdict.not_applicable
    assert words in findings(report).outcomes[0].reason
    assert report.verdict is Verdict.susceptible  # by noise


def test_verdicts_follow_the_limits_that_are_given(bases, of_reader):
    trial = Trial(bases=bases, clean=of_reader.clean, scores=of_reader.suites[0].scores, draws=2000, seed=0)
    lenient = get_probe("typo?height=0.16&max_sigma_lift=9&max_win_rate=1", load_registry())
    assert lenient.assess(trial).outcomes[0].verdict is Verdict.robust
    strict = get_probe("typo?height=0.16&max_sigma_lift=-9", load_registry())
    assert strict.assess(trial).outcomes[0].verdict is Verdict.susceptible


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"images": []}, "there are no images"),
        ({"count": 1}, "got 1 pictures; a verdict needs 8 or more"),
        ({"prompts": ["a"]}, "got 1 prompts for 16 images"),
        ({"images": None, "prompts": ["a"]}, "got prompts without images"),
        ({"suites": []}, r"suites is \[\]"),
        ({"suites": "typo"}, "suites is 'typo'"),
        ({"suites": ["typos"]}, "suite 'typos' is not installed; did you mean 'typo'"),
        ({"suites": ["typo?heigt=1"]}, "suite 'typo' has no option 'heigt'; did you mean 'height'"),
        ({"suites": ["typo?height=9"]}, "height=9.0 is no share"),
        ({"suites": ["typo?font=no.ttf"]}, "there is no font 'no.ttf'"),
        ({"suites": ["2*typo"]}, "has a weight"),
        ({"draws": 3}, "draws=3 is too small"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"prompts": ["a cat"] * 15 + ["a dog"]}, "15 of 16 pictures have the same prompt"),
        ({"prompts": [f"{i} 猫" for i in range(16)]}, "has no letters for 猫"),
    ],
)
def test_a_mistake_is_named_before_anything_is_scored(bases, change, complaint):
    given = {"images": bases.images, "prompts": bases.prompts, "suites": ["typo"]} | change
    images = given.pop("images")
    count = given.pop("count", None)
    if count:
        images, given["prompts"] = images[:count], given["prompts"][:count]
    with pytest.raises(RewardError, match=complaint):
        probe(get_reward("toys:constant"), images, given.pop("prompts"), **given)


def test_a_picture_that_cannot_be_read_is_named_before_anything_is_scored(bases, tmp_path):
    paths = []
    for index, image in enumerate(bases.images):
        paths.append(tmp_path / f"{index}.png")
        image.save(paths[-1])
    paths[9].write_text("no image")
    with pytest.raises(RewardError, match=r"9\.png"):
        probe(get_reward("toys:never_called"), paths, suites=["stress"])


PLUGIN = """
from ddpo_rewards import ProbeSpec, hookimpl
from ddpo_rewards.probes import Arm, Findings, Outcome, Probe, Verdict

@hookimpl
def register_probes(register):
    register(ProbeSpec(name="upside_down", factory="turning:make"))

def make(*, limit: float = 0.0):
    def plan(bases, seed):
        return [Arm(cell="turned", name="twice", change=lambda image, row: image.rotate(180))]

    def assess(trial):
        moved = float((trial.scores["turned/twice"] - trial.clean).mean())
        verdict = Verdict.susceptible if moved > limit else Verdict.robust
        return Findings(outcomes=(Outcome(test="turned", question="Better?", verdict=verdict, reason=f"{moved:.2f}"),))

    return Probe(plan=plan, assess=assess, options={"limit": limit})
"""


def test_a_plugin_offers_a_suite_of_its_own(bases, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "turning.py").write_text(PLUGIN)
    registry = Registry(load_entry_points([EntryPoint("turning", "turning", "ddpo_rewards")]))
    report = run("toys:constant", bases, suites=["upside_down?limit=-1"], registry=registry)
    assert report.verdict is Verdict.susceptible  # 0 > -1
    assert json.loads(to_json(report))["suites"]["upside_down?limit=-1"]["options"] == {"limit": -1.0}


def test_the_built_in_suites_come_through_the_hook_of_the_plugins():
    assert set(load_registry().list_probes()) >= {"typo", "stress"}
    assert all(isinstance(spec, ProbeSpec) and spec.summary for spec in load_registry().list_probes().values())


def test_scores_of_wrong_pictures_are_compared_with_the_right_picture_of_their_prompt(of_reader, bases):
    rows = [row for row in pair_rows(of_reader) if row["cell"] == "mismatched" and row["arm"] == "target"]
    assert [row["prompt"] for row in rows] == [row["text"] for row in rows]
    assert all(row["prompt"] != prompt for row, prompt in zip(rows, bases.prompts, strict=True))
    assert sorted(row["prompt"] for row in rows) == sorted(bases.prompts)


def test_clean_scores_that_do_not_vary_are_measured_by_the_spread_of_all(bases):
    reward = get_reward("toys:constant")
    ink = type(reward)(reward.spec, lambda images, *_: (images > 0.985).all(1).float().mean((1, 2)))
    report = probe(ink, [np.zeros((64, 64, 3), np.uint8)] * 16, bases.prompts, suites=["typo"])
    assert findings(report).details["sd"].startswith("standard deviations of all scores")
    assert report.verdict is Verdict.robust  # it likes white ink, whatever it says


def test_the_masked_lift_is_what_the_text_is_worth():
    pytest.importorskip("rapidocr")
    bases = builtin_set(8, size=128)
    report = run("jpeg_incompressibility", bases, suites=["typo?height=0.16&ocr=true"])
    metrics = findings(report).metrics
    assert metrics["masked_lift"].low > 0.5 * metrics["target_lift"].value  # blurring text takes most of its ink away
    assert "masked_lift" not in findings(run("toys:constant", bases, suites=["typo"])).metrics


def test_letters_of_another_script_are_written_in_the_font_that_is_named(bases):
    prompts = [f"{number} кошек" for number in range(16)]
    matplotlib = Path(find_spec("matplotlib").origin).parent  # bert-score brings it; it has a font of Cyrillic letters
    serif = matplotlib / "mpl-data" / "fonts" / "ttf" / "DejaVuSerif.ttf"
    report = probe(get_reward("jpeg_incompressibility"), bases.images, prompts, suites=[f"typo?font={serif}"])
    assert findings(report).outcomes[0].verdict is Verdict.robust
    assert not any(cell.cell.startswith("font") for cell in findings(report).cells)
