"""The report of a run, or of several side by side: report.html, a single file that needs no network.

    views = [read_view(run) for run in list_runs()]
    write_text(Path("report.html"), render_report(views))

The page itself (HTML, CSS, JavaScript, and the library that draws its charts) lies in `page/`. It gets one JSON object
and puts text into the document as text only; a Content-Security-Policy lets nothing in that is not in the file.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from math import fsum
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any, NamedTuple

from PIL import Image

from ddpo_core.runs.folder import REPORT, write_text
from ddpo_core.runs.log import plain
from ddpo_core.runs.run import open_run
from ddpo_core.runs.view import Drawing, Row, View, number, read_view, text

PICTURE_BYTES = 9_000_000
SAMPLE_BYTES = 2_500_000
"""How much of it the rows of samples.jsonl may take; of longer ones the best and the worst of each epoch are listed."""

_MAX_DRAWINGS = 50
_SHEET_SIDE = 1200
_SCRIPTS = ("base.js", "uPlot.iife.min.js", "charts.js", "pictures.js", "samples.js", "tables.js", "main.js")
_STYLES = ("uPlot.min.css", "page.css")


def render_report(views: Sequence[View], *, live: bool = False, picture_bytes: int = PICTURE_BYTES) -> str:
    """Return the page of one run, or of several side by side.

    Args:
        views: Of `read_view`, at least one.
        live: The page reads itself again every few seconds, for runs that are still trained.
        picture_bytes: About how much its pictures may take; they are made smaller, then fewer, until they fit.
    """
    encoded = _encode([drawing for view in views for drawing in view.drawings], limit=picture_bytes)
    left_out = sum(len(view.drawings) for view in views) - len(encoded.tiles)
    runs = []
    for view in views:
        table = {name: value for name, value in asdict(view).items() if name != "drawings"}
        pictures = {(drawing.kind, drawing.epoch): encoded.tiles.get(drawing.path, []) for drawing in view.drawings}
        extremes = {
            (epoch, str(tile.get("sample"))): tile["image"]
            for (kind, epoch), tiles in pictures.items()
            if kind == "extremes"
            for tile in tiles
        }
        samples, thinned = _chosen_samples(view.samples, SAMPLE_BYTES // len(views), kept=extremes.keys())
        table["series"] = [
            {"epoch": epoch, "tiles": tiles} for (kind, epoch), tiles in pictures.items() if kind == "fixed" and tiles
        ]
        table["samples"] = [_sample(row, extremes.get((row["epoch"], str(row.get("sample"))))) for row in samples]
        table["probes"] = [{**probe, "sheet": _sheet(probe["sheet"])} for probe in view.probes]
        table["notes"] = [*view.notes, *thinned]
        runs.append(table)
    if left_out:
        runs[0]["notes"].append(f"{left_out} of the pictures are left out, so that the page stays small or is whole")
    data = {"runs": runs, "images": encoded.images, "words": json.loads(_page("words.json")), "live": live}
    script, style = ("\n".join(map(_page, names)) for names in (_SCRIPTS, _STYLES))
    script = f"/* With uPlot:\n{_page('uPlot.LICENSE')}*/\n{script}"  # which wants to be in every copy
    return Template(_page("page.html")).substitute(
        title=html.escape(", ".join(view.name for view in views)),
        policy=f"default-src 'none'; img-src data:; script-src {_digest(script)}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        # Escaped so that no text can end the element: in JSON, `<` stands in strings only.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def write_report(run: Path) -> Path:
    """Write the report of a run that has ended into its folder; returns where."""
    path = run / REPORT
    # The process that has trained it still holds the lock.
    write_text(path, render_report([read_view(replace(open_run(run), is_training=False))]))
    return path


def leave_report(run: Path) -> tuple[Path | None, list[str]]:
    """Write the report of a run that has ended; returns where, or why not: it is no reason for the run to fail."""
    try:
        return write_report(run), []
    except Exception as error:
        return None, [f"{REPORT} cannot be written: {' '.join(f'{type(error).__name__}: {error}'.split())}"]


class _Encoded(NamedTuple):
    """Every picture once, and what each tile of a drawing is, with the place of its picture."""

    images: list[str]
    tiles: dict[Path, list[dict[str, Any]]]


class _Encoding(NamedTuple):
    """How tiles are written: their longer side at most, and the options of WebP."""

    side: int
    options: Mapping[str, Any]


_ENCODINGS = (
    _Encoding(128, {"lossless": True, "method": 2}),
    *(_Encoding(side, {"quality": quality}) for side, quality in ((1024, 90), (512, 85), (384, 80), (256, 80))),
    _Encoding(128, {"quality": 75}),
)


def _encode(drawings: Sequence[Drawing], *, limit: int) -> _Encoded:
    """Encode drawings so that all together are about `limit` bytes at most: as large, and as many, as fit.

    How large they will be is told by the first and the last of each kind. Pictures are read one by one, and none is
    enlarged. One that cannot be read is left out.
    """
    groups: dict[tuple[Path, str], list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault((drawing.path.parent, drawing.kind), []).append(drawing)
    probed = [([*group[0].tiles(), *group[-1].tiles()], len(group)) for group in groups.values()]
    side = max((max(tile.image.size) for tiles, _ in probed for tile in tiles), default=0)

    def expected(encoding: _Encoding, most: int) -> float:
        sizes = [[len(_webp(tile.image, encoding)) for tile in (*tiles[:6], *tiles[-6:])] for tiles, _ in probed]
        return fsum(
            fmean(own or [0]) * len(tiles) / 2 * min(most, count)
            for own, (tiles, count) in zip(sizes, probed, strict=True)
        )

    # What loses nothing is for tiles that are small as they are.
    possible = [one for one in _ENCODINGS if one.side >= side or "quality" in one.options]
    encoding = next((one for one in possible if expected(one, _MAX_DRAWINGS) <= limit), possible[-1])
    most = _MAX_DRAWINGS
    while most > 2 and expected(encoding, most) > limit:
        most //= 2
    places: dict[str, int] = {}
    encoded = {
        drawing.path: [
            {**tile.described, "image": places.setdefault(_webp(tile.image, encoding), len(places))}
            for tile in drawing.tiles()
        ]
        for group in groups.values()
        for drawing in _spread(group, max(2, most))
    }
    return _Encoded(list(places), {path: tiles for path, tiles in encoded.items() if tiles})


def _spread(group: Sequence[Drawing], count: int) -> list[Drawing]:
    """At most `count` of them, evenly spread, the first and the last among them."""
    if len(group) <= count:
        return list(group)
    return [group[round(index * (len(group) - 1) / (count - 1))] for index in range(count)]


def _webp(image: Image.Image, encoding: _Encoding) -> str:
    """One picture as a data URL."""
    copy = image.copy()
    copy.thumbnail((encoding.side, encoding.side), Image.Resampling.LANCZOS)
    written = BytesIO()
    copy.save(written, "WEBP", **encoding.options)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def _chosen_samples(
    samples: Sequence[Row], limit: int, *, kept: Iterable[tuple[int, str]]
) -> tuple[list[Row], list[str]]:
    """All rows where they fit into `limit` bytes, else those of `kept` and the best and the worst of every epoch."""
    size = sum(len(json.dumps(row)) for row in samples)
    if size <= limit:
        return list(samples), []
    by_epoch: dict[int, list[Row]] = {}
    for row in samples:
        by_epoch.setdefault(row["epoch"], []).append(row)
    ends = max(1, int(limit / (size / len(samples)) / len(by_epoch) / 2))
    wanted = set(kept)
    chosen = []
    for epoch, rows in by_epoch.items():
        ordered = sorted(range(len(rows)), key=lambda place: number(rows[place].get("reward")) or 0.0)
        places = {*ordered[:ends], *ordered[-ends:]}
        chosen += [row for i, row in enumerate(rows) if i in places or (epoch, str(row.get("sample"))) in wanted]
    return chosen, [f"of the samples of each epoch the best {ends} and the worst {ends} are listed"]


def _sample(row: Row, image: int | None) -> dict[str, Any]:
    told = {
        key: plain(row[key]) for key in ("epoch", "sample", "reward", "advantage", "info", "metadata") if key in row
    }
    return {**told, "prompt": text(row.get("prompt", "")), **({} if image is None else {"image": image})}


def _sheet(path: Path) -> str | None:
    """The pictures of a probing, in a size that does for a look."""
    tiles = Drawing("fixed", 0, path).tiles()
    return _webp(tiles[0].image, _Encoding(_SHEET_SIDE, {"quality": 75})) if tiles else None


def _page(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names the one script, or style, that it lets in."""
    return f"'sha256-{base64.b64encode(sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
