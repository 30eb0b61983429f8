"""Score folders of images: what to score, a table of scores that survives a crash, the best and the worst at a glance.

Example:
    >>> from ddpo_rewards import folders
    >>> job = folders.plan(["photos"], ["jpeg_compressibility"], output="scores.csv", resume=True)  # doctest: +SKIP
    >>> for row in folders.score(job):  # doctest: +SKIP
    ...     print(row["image"], row["jpeg_compressibility"])
"""

from ddpo_rewards.folders.agreement import Agreement, agreements, disagreements
from ddpo_rewards.folders.formats import FILE_FORMATS, Row, to_csv, to_json
from ddpo_rewards.folders.inputs import (
    METADATA_FILES,
    Columns,
    FolderError,
    Item,
    MissingPrompts,
    describe_images,
    find_images,
    read_table,
)
from ddpo_rewards.folders.job import Job, plan, score
from ddpo_rewards.folders.journal import journal_path
from ddpo_rewards.folders.on_ray import score_on_ray
from ddpo_rewards.folders.shards import Sample, read_images, read_shards
from ddpo_rewards.folders.sheet import best_and_worst, write_disagreements, write_sheet

__all__ = [
    "FILE_FORMATS",
    "METADATA_FILES",
    "Agreement",
    "Columns",
    "FolderError",
    "Item",
    "Job",
    "MissingPrompts",
    "Row",
    "Sample",
    "agreements",
    "best_and_worst",
    "describe_images",
    "disagreements",
    "find_images",
    "journal_path",
    "plan",
    "read_images",
    "read_shards",
    "read_table",
    "score",
    "score_on_ray",
    "to_csv",
    "to_json",
    "write_disagreements",
    "write_sheet",
]
