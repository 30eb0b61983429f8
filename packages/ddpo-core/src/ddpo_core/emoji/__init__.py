"""The embedded world: a small pretrained pipeline, its vocabulary, and a judge that is never optimised."""

from importlib.resources import files
from pathlib import Path


def pipeline_path() -> Path:
    """Return the folder of the embedded pipeline, which `StableDiffusionPipeline.from_pretrained` takes as well.

    Example:
        >>> (pipeline_path() / "model_index.json").exists()
        True
    """
    return Path(str(files("ddpo_core.emoji"))) / "pipeline"
