"""What `ddpo train` says: events as JSON for programs, next to nothing with --quiet, a heartbeat, pictures inline."""

import base64
import io
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ddpo_cli.ui.inline import InlinePicture, Pictures, escape_of, known_pictures, sixels
from ddpo_cli.ui.live import View, shown
from ddpo_core.runs.events import Drawn, as_record

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_event_is_one_json_object_on_stdout_and_nothing_else_is_said(ddpo, quick):
    result = ddpo(*quick, "--json", "--output", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[:2], kinds[-1]) == (["started", "drawn"], "finished")
    assert kinds.count("epoch") == 2
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "epoch"]
    assert [{key: row[key] for key in row if key not in ("event", "seconds")} for row in told] == written
    assert (events[0]["run"], events[0]["config"]["epochs"]) == ("run", 2)
    assert events[-1]["artefact"] == "run/lora"
    rows = dict(re.findall(r"^- `(\w+)`: (.+)$", README, re.MULTILINE))
    for event in events:
        named = set(re.findall(r"`(\w+)`", rows[event["event"]])) | {"event"}
        assert named <= event.keys()
        assert event["event"] == "epoch" or named == event.keys(), "the README has every key"


def test_with_quiet_only_the_path_is_said_and_errors(ddpo, quick):
    result = ddpo(*quick, "--quiet", "--output", "run")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "run\n", "")
    again = ddpo(*quick, "--quiet", "--output", "run")
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.startswith("Error: 'run' holds another run")


@pytest.mark.parametrize("flags", [("--quiet", "--json"), ("--json", "--dry-run")])
def test_what_contradicts_itself_is_refused(ddpo, flags):
    result = ddpo("train", *flags)
    assert (result.exit_code, "give one of them" in result.stderr) == (2, True)


def test_away_from_a_terminal_a_line_says_what_is_being_done_where_there_was_none_for_long():
    console = Console(file=io.StringIO(), width=80)
    with shown(View("t", 3), console, heartbeat=0.05) as view:
        view.show_phase("sampling", 8, 64)
        deadline = time.monotonic() + 10
        while console.file.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = console.file.getvalue().splitlines()
    assert set(lines) == {"epoch 1/3: sampling 8/64, left …"}
    time.sleep(0.1)
    assert console.file.getvalue().splitlines() == lines, "it ends with the block"


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "none"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "none"),
        ({}, "none"),
    ],
)
def test_pictures_are_shown_where_the_terminal_is_known_to_show_them(environment, kind):
    assert known_pictures(environment) is Pictures(kind)


def shown_picture(kind: Pictures) -> str:
    """What a terminal of 40 columns is sent for a picture of 800 x 400 pixels."""
    Image.effect_noise((800, 400), 90).convert("RGB").save("a.png")
    return escape_of(InlinePicture(Path("a.png"), kind, columns=40, rows=10))


def test_kitty_is_sent_a_png_in_pieces_that_fits():
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", shown_picture(Pictures.kitty))
    assert [keys for keys, _ in pieces] == ["f=100,a=T,q=2,m=1", *["m=1"] * (len(pieces) - 2), "m=0"]
    assert all(len(data) <= 4096 for _, data in pieces)
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces)))) as image:
        assert image.size == (400, 200)  # 40 columns of 10 pixels, 10 rows of 20


def test_iterm_is_sent_a_png():
    (data,) = re.fullmatch(r"\x1b\]1337;File=inline=1;size=\d+:([^\x07]*)\x07", shown_picture(Pictures.iterm)).groups()
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_sixels_draw_every_pixel_once_in_its_colour():
    image = Image.new("RGB", (7, 8), "red")
    image.putpixel((2, 7), (0, 0, 255))
    body = re.fullmatch(r'\x1bPq"1;1;7;8(.*)\x1b\\', sixels(image))[1]
    colours = {int(n): (int(r), int(g), int(b)) for n, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", body)}
    drawn = {}
    for band, line in enumerate(re.sub(r"#\d+;2;\d+;\d+;\d+", "", body).split("-")[:-1]):
        for layer in line.split("$"):
            colour, data = re.fullmatch(r"#(\d+)(.*)", layer).groups()
            letters = re.sub(r"!(\d+)(.)", lambda found: found[2] * int(found[1]), data)
            assert len(letters) == 7
            for x, letter in enumerate(letters):
                for bit in range(6):
                    if (ord(letter) - 63) >> bit & 1:
                        assert drawn.setdefault((x, 6 * band + bit), colours[int(colour)]) == colours[int(colour)]
    assert len(drawn) == 7 * 8
    assert {place for place, colour in drawn.items() if colour == (0, 0, 100)} == {(2, 7)}


def test_a_terminal_shows_the_samples_above_the_panel_and_any_other_only_their_path():
    Image.new("RGB", (64, 64)).save("epoch-0005.png")
    for kind in (Pictures.kitty, Pictures.none):
        console = Console(file=io.StringIO(), width=80, force_terminal=True)
        with shown(View("t", 9), console, pictures=kind) as view:
            view.show(Drawn(5, -1.5, Path("epoch-0005.png")))
        sent = console.file.getvalue()
        assert ("\x1b_G" in sent) == (kind is Pictures.kitty)
        assert ("epoch 5: mean reward -1.5" in sent) == (kind is Pictures.kitty)
        assert "epoch-0005.png" in sent


def test_an_event_as_a_record_is_json():
    record = as_record(Drawn(5, -1.5, Path("a.png")))
    assert json.loads(json.dumps(record)) == {"event": "drawn", "epoch": 5, "reward_mean": -1.5, "picture": "a.png"}
