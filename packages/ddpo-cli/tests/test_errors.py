"""What the machine lacks is said in one line that names what to do."""

import errno
import os
from pathlib import Path

import pytest

from ddpo_cli.errors import BAD_INPUT, DEFECT, CLIError, describe, exit_code
from ddpo_core.errors import DDPOError
from ddpo_rewards import RewardError


def error_of_torch(name: str, text: str) -> RuntimeError:
    """Torch's errors are told by their names, because torch need not be loaded."""
    return type(name, (RuntimeError,), {})(text)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 2 GiB. And more.",
            "CUDA out of memory. Use --gradient-checkpointing, smaller batches (--set fit.micro_batch_size=4 --set "
            "fit.sample_batch_size=4, with --resume as well), or --dtype bfloat16.",
        ),
        (
            "InductorError",
            "InvalidCxxCompiler: No working C++ compiler found.\nSet TORCHDYNAMO_VERBOSE=1",
            "the UNet cannot be compiled on this machine: InvalidCxxCompiler: No working C++ compiler found. "
            "Add --compile off.",
        ),
    ],
)
def test_what_the_machine_lacks_is_no_defect_of_ddpo(name, text, line):
    error = error_of_torch(name, text)
    assert describe(error) == line
    assert exit_code(error) == BAD_INPUT


def test_memory_that_ran_out_on_a_cpu_or_on_mps_is_no_defect_of_ddpo():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert exit_code(error.value) == BAD_INPUT
    assert describe(error.value).startswith(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes. Use "
    )
    mps = RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB). Tried to allocate 2 GB."
    )
    assert exit_code(mps) == BAD_INPUT
    assert describe(mps).startswith("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB). Use ")
    assert describe(MemoryError()).startswith("there is not enough memory. Use ")


@pytest.mark.parametrize("error", [CLIError("so"), DDPOError("so"), RewardError("so")])
def test_what_the_packages_refuse_is_for_the_user_to_mend(error):
    assert (exit_code(error), describe(error)) == (BAD_INPUT, "so")


def test_an_error_out_of_the_depth_of_a_library_is_a_defect_whatever_its_type():
    import torch

    with pytest.raises(ValueError, match="Expected parameter scale") as depth:
        torch.distributions.Normal(0.0, -1.0, validate_args=True)
    for error in (depth.value, ValueError("odd"), OSError("odd"), ConnectionResetError(errno.ECONNRESET, "reset")):
        assert exit_code(error) == DEFECT
        assert "This is a defect of ddpo" in describe(error)


def test_a_file_that_cannot_be_opened_is_named():
    Path("folder").mkdir()
    for path, line in {
        "nowhere": "there is no file 'nowhere'; check the path.",
        "folder": "Is a directory: 'folder'",
    }.items():
        with pytest.raises(OSError, match=path) as error:
            Path(path).read_text()
        assert (exit_code(error.value), describe(error.value)) == (BAD_INPUT, line)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert exit_code(full) == BAD_INPUT
    assert describe(full).startswith("no room to write (No space left on device)")


@pytest.mark.parametrize("place", [("--debug", "rewards", "show"), ("rewards", "show", "--debug"), ("rewards", "show")])
def test_the_traceback_is_shown_where_debug_stands_before_or_after_the_command(ddpo, place):
    result = ddpo(*place, "jpeg_compresibility")
    assert result.exit_code == BAD_INPUT
    assert ("Traceback (most recent call last)" in result.stderr) == ("--debug" in place)
    assert result.stderr.splitlines()[-1].startswith("Error: reward 'jpeg_compresibility' is not installed")


def test_what_nobody_foresaw_is_a_defect():
    assert "This is a defect of ddpo" in describe(RuntimeError("odd"))
    assert exit_code(RuntimeError("odd")) == 1
