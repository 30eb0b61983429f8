"""A real Stable Diffusion pipeline, tiny and random, and a way to run `ddpo` in this process."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

RunCommand = Callable[..., Result]


class Trained(NamedTuple):
    """A run that several tests look at, and what the command said."""

    folder: Path
    result: Result


os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # typer colours its help on CI, whatever it is written to
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test works in a folder of its own, and leaves the import path as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before


@pytest.fixture
def ddpo() -> RunCommand:
    """Run `ddpo` with arguments in this process."""
    from ddpo_cli.app import app

    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `StableDiffusionPipeline` loads: 16 x 16 pixels, a few thousand random weights."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vocab = {token: index for index, token in enumerate(_tokens())}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)
    text = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(steps_offset=1, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_quick(tiny_model: Path) -> Callable[[], list[str]]:
    """Write the configuration of a run of seconds into the working directory; returns options of `ddpo train`."""

    def write() -> list[str]:
        Path("quick.toml").write_text(  # what has no flag
            "eval_samples = 4\ngrid_samples = 2\nsample_every = 1\ncheckpoint_every = 1\n"
            "[fit]\nsample_batch_size = 4\nmicro_batch_size = 4\n"
        )
        options = {"epochs": 2, "num-steps": 2, "samples-per-epoch": 4, "updates-per-epoch": 1, "guidance-scale": 1}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return ["train", "--model", str(tiny_model), "--config", "quick.toml", "--device", "cpu", *flags]

    return write


@pytest.fixture
def quick(write_quick: Callable[[], list[str]], working_directory: Path) -> list[str]:
    """Options of `ddpo train` for a run of seconds."""
    return write_quick()


@pytest.fixture(scope="module")
def trained(write_quick: Callable[[], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two quick epochs, trained once for all tests of a module; `run` is a copy of the folder."""
    from ddpo_cli.app import app

    with chdir(tmp_path_factory.mktemp("trained")):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, write_quick())
        assert result.exit_code == 0, result.output
        return Trained(Path(result.stdout.strip()).absolute(), result)


@pytest.fixture
def run(trained: Trained, quick: list[str]) -> Path:
    """A run of two epochs that this test may do with what it likes."""
    return Path(shutil.copytree(trained.folder, "run"))


def _tokens() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture
def plugin(working_directory: Path) -> Callable[..., str]:
    """Write a module with a function `score` of what it takes in the working directory; returns its reference."""
    written: list[str] = []

    def write(body: str, takes: str = "images, prompts") -> str:
        name = f"plugin_{abs(hash(str(working_directory)))}_{len(written)}"
        written.append(name)
        head = f"import os, resource, signal, time\nCALLS = []\n\n\ndef score({takes}):\n    CALLS.append(1)\n"
        Path(f"{name}.py").write_text(head + indent(body, "    ") + "\n")
        return f"{name}:score"

    return write


@pytest.fixture
def interruptible():
    """A shell's background job is started with SIGINT ignored; the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
