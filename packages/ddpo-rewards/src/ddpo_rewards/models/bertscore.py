"""BERTScore through the bert-score package, behind an adapter that repairs two of its breaks.

bert-score 0.3.13 fails with current transformers (1) on tokenizers without a length limit, such as DeBERTa's, with an
OverflowError, and (2) on an empty candidate or reference, which takes the whole batch along. Here (1) the limit is set
to the 512 tokens that such models were trained with, and (2) blanks are left out and score 0.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from ddpo_rewards.compute import Device, choose_device
from ddpo_rewards.errors import RewardError
from ddpo_rewards.weights import find_model

_MAX_TOKENS = 512
_NO_LIMIT = 10**6  # transformers says 10**30 where a tokenizer states no limit


class BertScores(NamedTuple):
    """BERTScore of each pair, in [-1, 1], mostly above 0.5."""

    precision: Float[np.ndarray, " batch"]
    recall: Float[np.ndarray, " batch"]
    f1: Float[np.ndarray, " batch"]


Scorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], BertScores]


def load_bert_scorer(
    encoder: str,
    *,
    revision: str | None = None,
    layer: int | None = None,
    device: Device = None,
    batch_size: int = 64,
) -> Scorer:
    """Load a text encoder and return `score(candidates, references) -> BertScores`.

    No idf weights and no rescaling, as in DDPO's server.

    Args:
        encoder: hub id or local folder.
        revision: commit of the hub repository; recorded at the first download otherwise.
        layer: whose hidden states are compared; by bert-score's own table where it knows the encoder.
        device: a GPU where there is one.
        batch_size: sentences at once.

    Raises:
        RewardError: no such encoder, a layer it does not have, or none given for an encoder unknown to bert-score.
    """
    chosen = str(choose_device(device))
    number = layer if layer is not None else _usual_layer(encoder)
    folder = find_model(encoder, revision)
    scorer = _build_scorer(folder, number, chosen, batch_size)

    def score(candidates: Sequence[str], references: Sequence[str]) -> BertScores:
        kept = [i for i, pair in enumerate(zip(candidates, references, strict=True)) if all(map(str.strip, pair))]
        scores = np.zeros((3, len(candidates)), np.float32)
        if kept:
            found = scorer.score([candidates[i] for i in kept], [references[i] for i in kept], batch_size=batch_size)
            scores[:, kept] = np.stack([part.numpy() for part in found])
        return BertScores(*scores)

    return score


def recall_baseline(encoder: str, layer: int | None = None) -> float | None:
    """The mean recall of unrelated English sentences, by bert-score's tables; None for an encoder it lacks.

    Raw recall has a high floor: 0.5170 for DeBERTa-xlarge-MNLI, 0.8315 for RoBERTa-large.

    Example:
        >>> round(recall_baseline("microsoft/deberta-xlarge-mnli"), 4)
        0.517
    """
    import bert_score

    table = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{encoder}.tsv"
    if not table.is_file():
        return None
    number = layer if layer is not None else _usual_layer(encoder)
    with table.open(newline="") as file:
        rows = {int(row["LAYER"]): float(row["R"]) for row in csv.DictReader(file)}
    return rows.get(number)


def _usual_layer(encoder: str) -> int:
    from bert_score.utils import model2layers

    if encoder not in model2layers:
        raise RewardError(f"bert-score knows no best layer of the encoder {encoder!r}; give it as encoder_layer=NUMBER")
    return int(model2layers[encoder])


def _build_scorer(folder: Path, layer: int, device: str, batch_size: int) -> Any:
    from bert_score import BERTScorer

    try:
        scorer = BERTScorer(
            model_type=str(folder), num_layers=layer, batch_size=batch_size, device=device, use_fast_tokenizer=True
        )
    # bert-score asserts, transformers raises OSError, ValueError and more, safetensors its own.
    except Exception as error:
        why = " ".join(str(error).split())
        raise RewardError(f"{folder} cannot be loaded as a text encoder with {layer} layers: {why}") from error
    if scorer._tokenizer.model_max_length > _NO_LIMIT:
        scorer._tokenizer.model_max_length = _MAX_TOKENS
    return scorer
