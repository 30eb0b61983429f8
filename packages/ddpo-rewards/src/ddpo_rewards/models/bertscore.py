"""BERTScore through the bert-score package, behind an adapter that repairs three of its breaks.

bert-score 0.3.13 fails with current transformers (1) on tokenizers without a length limit, such as DeBERTa's, with an
OverflowError, and (2) on an empty candidate or reference, which takes the whole batch along. Here (1) the limit is set
to the 512 tokens that such models were trained with, and (2) blanks are left out and score 0. (3) It takes every model
with "t5" in its name for a T5, which is wrong for a path; here the model's configuration decides.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from ddpo_rewards.compute import Device, choose_device
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import TEXT_ENCODER, quietly
from ddpo_rewards.weights import EMBEDDED, find_model

# Who owns today what the hub, and bert-score's tables, once knew by the bare name.
_FIRST_OWNERS = ("albert", "distilbert", "FacebookAI", "google-bert", "google-t5", "openai-community", "xlnet")
# Of the embedded encoder, which has two layers: the last one, and the mean recall of unrelated captions there.
_EMBEDDED_LAYER, _EMBEDDED_FLOOR = 2, 0.2
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
        encoder: hub id, local folder, or `builtin:emoji`.
        revision: commit of the hub repository; recorded at the first download otherwise.
        layer: whose hidden states are compared; by bert-score's own table where it knows the encoder.
        device: a GPU where there is one.
        batch_size: sentences at once.

    Raises:
        RewardError: no such encoder, a layer it does not have, or none given for an encoder unknown to bert-score.
    """
    chosen = str(choose_device(device))
    number = layer if layer is not None else usual_layer(encoder)
    folder = find_model(encoder, revision, published=TEXT_ENCODER)
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
    if encoder == EMBEDDED:
        return _EMBEDDED_FLOOR if layer in (None, _EMBEDDED_LAYER) else None
    import bert_score

    table = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{_name_in_tables(encoder)}.tsv"
    if not table.is_file():
        return None
    number = layer if layer is not None else usual_layer(encoder)
    with table.open(newline="") as file:
        rows = {int(row["LAYER"]): float(row["R"]) for row in csv.DictReader(file)}
    return rows.get(number)


def usual_layer(encoder: str) -> int:
    """The layer whose hidden states agree best with people, by bert-score's table.

    Raises:
        RewardError: the table lacks the encoder.

    Example:
        >>> usual_layer("microsoft/deberta-xlarge-mnli")
        40
    """
    if encoder == EMBEDDED:
        return _EMBEDDED_LAYER
    from bert_score.utils import model2layers

    name = _name_in_tables(encoder)
    if name not in model2layers:
        raise RewardError(f"bert-score knows no best layer of the encoder {encoder!r}; give it as encoder_layer=NUMBER")
    return int(model2layers[name])


class _ModelFolder(str):
    """A path that has a "t5" in it where the model is a T5: by that bert-score chooses the class to load."""

    is_t5: bool

    def __contains__(self, part: object) -> bool:
        return self.is_t5 if part == "t5" else super().__contains__(part)  # type: ignore[operator]


def _name_in_tables(encoder: str) -> str:
    owner, _, name = encoder.rpartition("/")
    return name if owner in _FIRST_OWNERS else encoder


def _build_scorer(folder: Path, layer: int, device: str, batch_size: int) -> Any:
    from bert_score import BERTScorer
    from transformers import AutoConfig

    path = _ModelFolder(folder.resolve())
    try:
        path.is_t5 = "t5" in AutoConfig.from_pretrained(str(path), local_files_only=True).model_type
        with quietly():  # the pooler that may be missing is never asked
            scorer = BERTScorer(
                model_type=path, num_layers=layer, batch_size=batch_size, device=device, use_fast_tokenizer=True
            )
    # bert-score asserts, transformers raises OSError, ValueError and more, safetensors its own.
    except Exception as error:
        why = " ".join(str(error).split())
        raise RewardError(f"{folder} cannot be loaded as a text encoder with {layer} layers: {why}") from error
    if scorer._tokenizer.model_max_length > _NO_LIMIT:
        scorer._tokenizer.model_max_length = _MAX_TOKENS
    return scorer
