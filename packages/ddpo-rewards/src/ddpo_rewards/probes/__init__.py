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
    conclusion,
    outcome_rows,
    worst,
)
from ddpo_rewards.probes.pictures import builtin_set
from ddpo_rewards.probes.report import (
    CELL_COLUMNS,
    cell_rows,
    check_folder,
    pair_rows,
    to_json,
    to_markdown,
    write_report,
)
from ddpo_rewards.probes.run import SUITES, probe
from ddpo_rewards.probes.sheet import contact_sheet
from ddpo_rewards.probes.statistics import (
    Comparison,
    Evidence,
    Resampling,
    Unit,
    choose_unit,
    compare,
    estimate,
    judge,
    judge_cell,
    mean_of,
    resample,
)

__all__ = [
    "CELL_COLUMNS",
    "SUITES",
    "Arm",
    "BaseSet",
    "Cell",
    "Comparison",
    "Estimate",
    "Evidence",
    "Findings",
    "Outcome",
    "Probe",
    "ProbeReport",
    "Resampling",
    "SuiteReport",
    "Trial",
    "Unit",
    "Verdict",
    "builtin_set",
    "cell_rows",
    "check_folder",
    "choose_unit",
    "compare",
    "conclusion",
    "contact_sheet",
    "estimate",
    "judge",
    "judge_cell",
    "mean_of",
    "outcome_rows",
    "pair_rows",
    "probe",
    "resample",
    "to_json",
    "to_markdown",
    "worst",
    "write_report",
]
