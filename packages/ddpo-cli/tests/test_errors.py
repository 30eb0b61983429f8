"""What the machine lacks is said in one line that names what to do."""

import pytest

from ddpo_cli.errors import BAD_INPUT, describe, exit_code


def error_of_torch(name: str, text: str) -> RuntimeError:
    """Torch's errors are told by their names, because torch need not be loaded."""
    return type(name, (RuntimeError,), {})(text)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 2 GiB. And more.",
            "CUDA out of memory. Use --gradient-checkpointing, smaller batches (micro_batch_size and "
            "sample_batch_size under [fit]), or --dtype bfloat16.",
        ),
        (
            "InductorError",
            "InvalidCxxCompiler: No working C++ compiler found.\nSet TORCHDYNAMO_VERBOSE=1",
            "the UNet cannot be compiled on this machine: InvalidCxxCompiler: No working C++ compiler found. "
            "Leave out --compile.",
        ),
    ],
)
def test_what_the_machine_lacks_is_no_defect_of_ddpo(name, text, line):
    error = error_of_torch(name, text)
    assert describe(error) == line
    assert exit_code(error) == BAD_INPUT


def test_what_nobody_foresaw_is_a_defect():
    assert "This is a defect of ddpo" in describe(RuntimeError("odd"))
    assert exit_code(RuntimeError("odd")) == 1
