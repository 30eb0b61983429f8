"""One readable line per error, and the exit codes.

0 done, 1 a defect of ddpo itself, 2 bad usage or input, 3 a probe found the reward susceptible, 4 inconclusive,
130 interrupted.
"""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import typer

from ddpo_cli.ui.console import say

BAD_INPUT = 2
DEFECT = 1
INTERRUPTED = 130
SUSCEPTIBLE = 3
INCONCLUSIVE = 4


class CLIError(ValueError):
    """What the user can mend; the text is the whole message: what was got, what was wanted, what to do."""


@dataclass
class Settings:
    """What the options before the command chose."""

    debug: bool = False


@contextmanager
def readable_errors(settings: Settings | None) -> Iterator[None]:
    """Turn every exception of a command into one line on stderr and an exit code (`--debug` adds the traceback)."""
    debug = settings is not None and settings.debug
    rank = process_rank()
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except KeyboardInterrupt as interrupt:
        if rank != 0:
            pass  # the first process says it
        elif str(interrupt):
            say(f"Interrupted: {interrupt}")
        else:
            say("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _silence_stdout()
        raise typer.Exit(0) from None
    except Exception as error:
        if debug:
            typer.echo(traceback.format_exc(), err=True, nl=False)
        if rank == 0:
            say(f"Error: {describe(error)}")
        elif type(error).__name__ != "ProcessError":  # that one is said by the process where it happened
            say(f"Process {rank}: {describe(error)}")
        raise typer.Exit(exit_code(error)) from None


def describe(error: BaseException) -> str:
    """Return the line that a person reads for `error`.

    >>> describe(CLIError("epochs is 0; it must be at least 1"))
    'epochs is 0; it must be at least 1'
    >>> describe(KeyError("x"))
    "KeyError: 'x'. This is a defect of ddpo: run it again with `ddpo --debug ...` and report the traceback."
    """
    if isinstance(error, OSError) and error.errno is not None:
        return _describe_os_error(error)
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        first = text.split(". ")[0]
        return (
            f"{first}. Use --gradient-checkpointing, smaller batches (micro_batch_size and sample_batch_size under "
            "[fit]), or --dtype bfloat16."
        )
    if _is_compiler_error(error):
        return f"the UNet cannot be compiled on this machine: {text.split('. ')[0]}. Leave out --compile."
    if is_user_error(error):
        return text or type(error).__name__
    return (
        f"{type(error).__name__}: {text}. "
        "This is a defect of ddpo: run it again with `ddpo --debug ...` and report the traceback."
    )


def process_rank() -> int:
    """Return which process of `torchrun` this is; 0 without it."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdigit() else 0


def exit_code(error: BaseException) -> int:
    """2 where the user can do something about `error`, 1 where it is a defect."""
    return BAD_INPUT if is_user_error(error) else DEFECT


def is_user_error(error: BaseException) -> bool:
    """Tell whether the input or the machine is at fault: the packages raise `ValueError` for bad input."""
    known = isinstance(error, ValueError | OSError | FloatingPointError)
    return known or is_out_of_memory(error) or _is_compiler_error(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is Python's or torch's out-of-memory error (by name: torch need not be loaded)."""
    return isinstance(error, MemoryError) or type(error).__name__ in {"OutOfMemoryError"}


def did_you_mean(name: str, choices: list[str]) -> str:
    """Return a suggestion to append to a message, or nothing.

    >>> did_you_mean("num_step", ["num_steps", "seed"])
    "; did you mean 'num_steps'?"
    >>> did_you_mean("zzz", ["num_steps"])
    ''
    """
    close = get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_compiler_error(error: BaseException) -> bool:
    """Tell whether torch.compile found no compiler, or one that fails (by name: torch need not be loaded)."""
    return type(error).__name__ in {"BackendCompilerFailed", "CppCompileError", "InductorError", "InvalidCxxCompiler"}


def _describe_os_error(error: OSError) -> str:
    place = f" {str(error.filename)!r}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"no room to write{place} ({error.strerror}); what was written before is intact. "
                "Make room, then run again."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"may not open{place} ({error.strerror}); choose another place or change its permissions."
        case errno.ENOENT:
            return f"there is no file{place}; check the path."
        case _:
            return f"{error.strerror or type(error).__name__}:{place or ' no file named'}"


def _silence_stdout() -> None:
    """Point stdout at the null device, so that the interpreter's last flush of a closed pipe stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
