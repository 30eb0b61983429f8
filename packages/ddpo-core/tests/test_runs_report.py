"""The report: what it holds, that nothing foreign is let in, how large it is, and that it works in a browser."""

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium, find_chromium
from PIL import Image
from recorded import write_probe, write_run

from ddpo_core.runs.log import append_samples
from ddpo_core.runs.pictures import read_tiles, save_tiles
from ddpo_core.runs.report import render_report, write_report
from ddpo_core.runs.run import open_run
from ddpo_core.runs.view import read_view


class Scripts(HTMLParser):
    """Every element of a page with what stands in it."""

    def __init__(self, page):
        super().__init__()
        self.found, self.attributes = {}, []
        self.open = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.open = (tag, dict(attributes).get("type"))
        if tag == "meta":
            self.found[dict(attributes).get("http-equiv", tag)] = dict(attributes).get("content")

    def handle_data(self, data):
        if self.open is not None:
            self.found.setdefault(self.open, data)
        self.open = None


def data_of(page):
    return json.loads(Scripts(page).found["script", "application/json"])


def test_a_page_holds_every_picture_of_its_run_pixel_for_pixel_and_once(tmp_path):
    run = write_run(tmp_path / "run")
    data = data_of(render_report([read_view(open_run(run))]))
    (told,) = data["runs"]
    assert [drawing["epoch"] for drawing in told["series"]] == [0, 2, 4, 6]
    for drawing in told["series"]:
        for tile, drawn in zip(
            drawing["tiles"], read_tiles(run / f"samples/epoch-{drawing['epoch']:04d}.png"), strict=True
        ):
            encoded = data["images"][tile["image"]].removeprefix("data:image/webp;base64,")
            assert np.array_equal(Image.open(BytesIO(base64.b64decode(encoded))).convert("RGB"), drawn.image)
            assert (tile["prompt"], tile["seed"]) == (drawn.described["prompt"], drawn.described["seed"])
    assert len(set(data["images"])) == len(data["images"])
    with_picture = [sample for sample in told["samples"] if "image" in sample]
    assert sorted(sample["epoch"] for sample in with_picture) == [2] * 8 + [4] * 8 + [6] * 8


def test_nothing_that_a_run_says_becomes_html_and_nothing_is_loaded(tmp_path):
    run = write_run(tmp_path / "<script>alert(1)</script>")
    nasty = "</script><img src=x onerror=alert(1)>\u2028\ud800"
    append_samples(run, [])
    with open(run / "samples.jsonl", "a") as file:
        file.write(
            json.dumps({"epoch": 6, "sample": 10, "prompt": nasty, "reward": 1.0, "info": {nasty: nasty}}) + "\n"
        )
    page = write_report(run).read_text(encoding="utf-8")
    parsed = Scripts(page)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert not [
        value for name, value in parsed.attributes if name in ("src", "href") and value not in ("data:,", "#main")
    ]
    assert nasty.replace("\ud800", "?") in [sample["prompt"] for sample in data_of(page)["runs"][0]["samples"]]
    policy = parsed.found["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, kind in (("script", None), ("style", None)):
        digest = base64.b64encode(sha256(parsed.found[tag, kind].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_pictures_shrink_and_then_get_fewer_until_they_fit(tmp_path):
    run = write_run(tmp_path / "run", epochs=2)
    noise = np.random.default_rng(0)
    for epoch in range(0, 120, 2):  # 60 tiles of noise, which nothing compresses: 65 kB each as they are
        image = Image.fromarray(noise.integers(256, size=(128, 128, 3), dtype=np.uint8))
        save_tiles(run / "samples" / f"epoch-{epoch:04d}.png", [image], [""], described=[{}])
    seen = []
    for limit in (2_000_000, 100_000):
        data = data_of(render_report([read_view(open_run(run))], picture_bytes=limit))
        assert limit / 5 < sum(map(len, data["images"])) < limit
        seen.append([drawing["epoch"] for drawing in data["runs"][0]["series"]])
        assert any(note.startswith(f"{60 - len(seen[-1])} of the") for note in data["runs"][0]["notes"])
    assert [(epochs[0], epochs[-1]) for epochs in seen] == [(0, 118), (0, 118)]
    assert len(seen[1]) < len(seen[0]) == 50


def test_of_too_many_samples_the_ends_of_every_epoch_stay_and_the_page_says_so(tmp_path):
    run = write_run(tmp_path / "run", epochs=2)
    rows = [
        {"epoch": epoch, "sample": index, "prompt": "x" * 5000, "reward": float(index)}
        for epoch in (3, 4)
        for index in range(400)
    ]
    append_samples(run, rows)
    (told,) = data_of(render_report([read_view(open_run(run))]))["runs"]
    of_epoch = sorted(sample["reward"] for sample in told["samples"] if sample["epoch"] == 3)
    ends = len(of_epoch) // 2
    assert 0 < ends < 200
    assert of_epoch == [float(i) for i in (*range(ends), *range(400 - ends, 400))]
    assert f"of the samples of each epoch the best {ends} and the worst {ends} are listed" in told["notes"]


def test_every_name_that_needs_words_has_a_title_and_a_sentence():
    words = json.loads((Path(__file__).parents[1] / "src/ddpo_core/runs/page/words.json").read_text(encoding="utf-8"))
    assert all(title and explanation.endswith(".") for title, explanation in words.values())


# --- In a browser -----------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="there is no Chromium (Debian: apt install chromium)"
)
PALE = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => {
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 255 || !node.parentElement ? own : behind(node.parentElement);
  };
  return [...document.querySelectorAll('body *')].flatMap((node) => {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!hasText || !node.checkVisibility() || node.matches('script, noscript, option, .skip')) return [];
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return ratio < 4.5 ? [`${node.tagName}.${node.className} ${ratio.toFixed(2)}`] : [];
  });
})()"""
"""What has less contrast than WCAG 2.2 AA wants of text (4.5 to 1, by its formula)."""

SHOWN = "[...document.querySelectorAll('.tiles .frame img.b')].map((image) => image.src).join()"


def enter(page, name, value):
    """Put a value into a control as a person does."""
    page.run(
        f"Object.assign(document.getElementById('{name}'), {{ value: '{value}' }}).dispatchEvent(new Event('input'))"
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("there is no Chromium (Debian: apt install chromium)")
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("one") / "0001-run")
    write_probe(run / "probe")
    return write_report(run)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    runs = [write_run(folder / "0001-a"), write_run(folder / "0002-b", epochs=8, of=20, seed=1, rate=2e-3)]
    path = folder / "both.html"
    path.write_text(render_report([read_view(open_run(run)) for run in runs]), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [400, 1280])
def test_a_page_has_all_its_parts_and_nothing_to_complain_of(page, one, width):
    page.complaints.clear()
    page.requests.clear()
    page.open(one, width=width, height=20_000)
    titles = page.run("[...document.querySelectorAll('section h2')].map((title) => title.textContent)")
    assert titles == ["Overview", "Reward", "Pictures", "Samples", "Constraints", "Held-out rewards", "Monitors",
                      "Health of the training", "Probes", "Configuration"]  # fmt: skip
    page.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('canvas'))")
    assert page.run("document.querySelectorAll('.plot').length") > 15
    assert page.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.run("[...document.images].every((image) => image.alt)")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []


def test_the_slider_changes_the_pictures_by_hand_by_key_and_by_play(page, one):
    page.open(one)
    last = page.run(SHOWN)
    page.run("document.getElementById('after-epoch').focus()")
    page.press("ArrowLeft")
    before = page.run(SHOWN)
    assert before != last
    assert page.run("document.querySelector('.moment output').textContent") == "epoch 4, 40 queries"
    page.press("Home")
    assert page.run("document.querySelector('.moment output').textContent") == "before training"
    page.run("document.getElementById('play').click()")
    page.wait(f"({SHOWN}) === {json.dumps(last)}")
    page.wait("document.getElementById('play').textContent === 'Play'")


@pytest.mark.parametrize(
    ("view", "property", "value"),
    [
        ("wipe", "clipPath", "inset(0px 0px 0px 25%)"),
        ("fade", "opacity", "0.25"),
        ("difference", "mixBlendMode", "difference"),
    ],
)
def test_two_epochs_are_compared_in_every_way(page, one, view, property, value):
    page.open(one)
    page.run(f"document.querySelector('input[value={view}]').click()")
    enter(page, "amount", "25")
    assert page.run(f"getComputedStyle(document.querySelector('.frame img.b')).{property}") == value
    alts = page.run("[...document.querySelector('.frame').querySelectorAll('img')].map((image) => image.alt)")
    assert alts == ["a cat, seed 0, before training, score \u22122", "a cat, seed 0, epoch 6, score \u22121.4"]
    assert page.run("document.querySelector('figcaption .up').textContent") == "▲ +0.6"


def test_a_picture_opens_its_series_and_escape_closes_it(page, one):
    page.open(one)
    page.run("document.querySelector('.frame').focus()")
    page.press("Enter")
    assert page.run("document.querySelectorAll('dialog .film li').length") == 4
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")
    assert page.run("document.activeElement.className") == "frame"


def test_arrow_keys_move_along_a_chart_and_say_where(page, one):
    page.open(one)
    page.wait("document.querySelector('#reward canvas')")
    page.run("document.querySelector('#reward .plot').focus()")
    page.press("Home")
    said = page.run("document.querySelector('#reward .readout').textContent")
    assert said.startswith("10 queries")
    page.press("ArrowRight")
    assert page.run("document.querySelector('#reward .readout').textContent").startswith("20 queries")
    assert page.run("document.querySelector('#reward .readout').getAttribute('aria-live')") == "polite"


def test_every_chart_has_its_numbers_as_a_table(page, one):
    page.open(one)
    page.run("document.querySelector('#reward details').open = true")
    page.wait("document.querySelector('#reward details table')")
    rows = page.run(
        "[...document.querySelectorAll('#reward details tbody tr')].map((row) => row.children[1].textContent)"
    )
    assert rows == ["10", "20", "30", "40", "50", "60"]


def test_samples_are_sorted_by_score_and_found_by_what_was_said_of_them(page, one):
    page.open(one)
    scores = page.run(
        "[...document.querySelectorAll('.score')].map((score) => Number(score.textContent.replace('\\u2212', '-')))"
    )
    assert len(scores) == 24
    assert scores == sorted(scores, reverse=True)
    enter(page, "samples-text", "drawing BEE")
    prompts = page.run("[...document.querySelectorAll('.sample bdi')].map((prompt) => prompt.textContent)")
    assert "a bee" in prompts
    assert page.run("[...document.querySelectorAll('.sample p bdi')].every((prompt) => prompt.textContent === 'a bee')")


def test_several_runs_share_an_axis_and_their_differences_are_marked(page, both):
    page.complaints.clear()
    page.open(both, height=20_000)
    page.wait("document.querySelector('#reward canvas')")
    assert page.run("document.querySelectorAll('#reward .wide .readout .swatch').length") == 2
    differing = page.run(
        "[...document.querySelectorAll('#configuration tbody tr')].map((row) => row.firstElementChild.textContent)"
    )
    assert differing == ["epochs", "seed", "learning_rate"]
    page.run("document.querySelector('input[value=side]').click()")
    alts = page.run("[...document.querySelector('.frame').querySelectorAll('img')].map((image) => image.alt)")
    assert alts == [
        "a cat, seed 0, 0001-a, epoch 6, score \u22121.4",
        "a cat, seed 0, 0002-b, epoch 8, score \u22121.2",
    ]
    assert page.complaints == []


def test_a_screen_reader_finds_names_for_everything_that_can_be_used(page, both):
    page.open(both)
    controls = {"button", "slider", "combobox", "searchbox", "radio", "checkbox", "link", "image"}
    nameless = [role for role, name in page.names() if role in controls and not name.strip()]
    assert nameless == []


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_stands_out_from_what_is_behind_it(page, one, dark):
    page.open(one, dark=dark, height=20_000)
    pale = page.run(PALE)
    assert pale == []


def test_a_page_of_a_run_in_training_reads_itself_again_and_keeps_what_was_chosen(page, tmp_path):
    run = write_run(tmp_path / "run", epochs=2, of=9)
    path = tmp_path / "live.html"
    path.write_text(render_report([read_view(open_run(run))], live=True), encoding="utf-8")
    page.open(path)
    page.run("document.querySelector('input[value=fade]').click()")
    path.write_text(path.read_text(encoding="utf-8").replace("<title>run", "<title>newer"), encoding="utf-8")
    page.wait("document.title === 'newer'")
    page.wait("document.readyState === 'complete'")
    assert page.run("document.querySelector('input[value=fade]').checked")


def test_a_run_that_has_just_begun_is_a_page_too(page, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 3\n")
    page.complaints.clear()
    page.open(write_report(tmp_path / "run"))
    assert re.search("No epoch is done yet", page.run("document.body.innerText"))
    assert page.complaints == []
