"""Find out whether a reward can be gamed: typographic attacks, stress tests, and reports of both.

Example:
    >>> from ddpo_rewards import get_reward
    >>> pictures = builtin_set(8, size=32)
    >>> report = probe(get_reward("jpeg_incompressibility"), pictures.images, pictures.prompts)
    >>> report.verdict.value  # noise makes larger files, and no better pictures
    'susceptible'
"""

from ddpo_rewards.probes.core import (
    Arm,
    BaseSet,
    Cell,
    Estimate,
    Findings,
    Outcome,
    Probe,
    ProbeReport,
    SuiteReport,
    Trial,
    Verdict,
    worst,
)
from ddpo_rewards.probes.pictures import builtin_set
from ddpo_rewards.probes.report import (
    CELL_COLUMNS,
    MEANING,
    cell_rows,
    check_folder,
    outcome_rows,
    pair_rows,
    to_json,
    to_markdown,
    write_report,
)
from ddpo_rewards.probes.run import SUITES, probe
from ddpo_rewards.probes.sheet import contact_sheet
from ddpo_rewards.probes.statistics import (
    Comparison,
    Unit,
    benjamini_hochberg,
    choose_unit,
    compare,
    draw_weights,
    estimate,
    judge,
    judge_cell,
    mean_of,
)

__all__ = [
    "CELL_COLUMNS",
    "MEANING",
    "SUITES",
    "Arm",
    "BaseSet",
    "Cell",
    "Comparison",
    "Estimate",
    "Findings",
    "Outcome",
    "Probe",
    "ProbeReport",
    "SuiteReport",
    "Trial",
    "Unit",
    "Verdict",
    "benjamini_hochberg",
    "builtin_set",
    "cell_rows",
    "check_folder",
    "choose_unit",
    "compare",
    "contact_sheet",
    "draw_weights",
    "estimate",
    "judge",
    "judge_cell",
    "mean_of",
    "outcome_rows",
    "pair_rows",
    "probe",
    "to_json",
    "to_markdown",
    "worst",
    "write_report",
]
