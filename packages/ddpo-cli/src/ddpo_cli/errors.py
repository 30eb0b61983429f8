"""One readable line per error, and the exit codes.

0 done, 1 a defect of ddpo itself, 2 bad usage or input, 3 a probe found the reward susceptible, 4 inconclusive,
130 interrupted.
"""

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from ddpo_cli.ui.console import say

BAD_INPUT = 2
DEFECT = 1
INTERRUPTED = 130
SUSCEPTIBLE = 3
INCONCLUSIVE = 4

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""An option of `ddpo` and of each of its commands."""

_OURS = frozenset({"ddpo_cli", "ddpo_core", "ddpo_rewards"})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_COMPILER_ERRORS = frozenset({"BackendCompilerFailed", "CppCompileError", "InductorError", "InvalidCxxCompiler"})
# PyTorch's CPU and MPS allocators raise a RuntimeError, and only its text says what happened.
_OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
                  "MPS backend out of memory")  # fmt: skip


class CLIError(ValueError):
    """What the user can mend; the text is the whole message: what was got, what was wanted, what to do."""


def readable(body: Callable[..., None]) -> Callable[..., None]:
    """Return the command `body` with the option `--debug`, whose errors are one line and an exit code.

    Where `body` takes any keyword, they are the options that its command adds to those of the signature.
    """

    @wraps(body)
    def command(*, context: typer.Context, debug: bool, **given: Any) -> None:
        with readable_errors(debug=debug or context.find_root().params["debug"]):
            body(**given)

    own = [part for part in signature(body).parameters.values() if part.kind is not Parameter.VAR_KEYWORD]
    added = (
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter("debug", Parameter.KEYWORD_ONLY, annotation=Debug, default=False),
    )
    command.__signature__ = Signature([*own, *added])  # type: ignore[attr-defined]
    return command


@contextmanager
def readable_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn every exception of a command into one line on stderr and an exit code; `debug` adds the traceback."""
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
            say(traceback.format_exc().rstrip("\n"))
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
    "KeyError: 'x'. This is a defect of ddpo: run it again with --debug and report the traceback."
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return (
            f"{_memory_line(text)}. Use --gradient-checkpointing, smaller batches (--set fit.micro_batch_size=4 --set "
            "fit.sample_batch_size=4, with --resume as well), or --dtype bfloat16."
        )
    if _is_compiler_error(error):
        return f"the UNet cannot be compiled on this machine: {text.split('. ')[0]}. Add --compile off."
    if _is_file_error(error):
        return _describe_file_error(error)
    if is_user_error(error):
        return text or type(error).__name__
    return (
        f"{type(error).__name__}: {text}. This is a defect of ddpo: run it again with --debug and report the traceback."
    )


def process_rank() -> int:
    """Return which process of `torchrun` this is; 0 without it."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdigit() else 0


def exit_code(error: BaseException) -> int:
    """2 where the user can do something about `error`, 1 where it is a defect."""
    return BAD_INPUT if is_user_error(error) else DEFECT


def is_user_error(error: BaseException) -> bool:
    """Tell whether the input or the machine is at fault.

    That are the errors that our packages define, files that cannot be opened or written, no memory and no compiler. A
    ValueError of somebody else, out of the depth of a library, is a defect of ours: we let it come so far.
    """
    is_ours = any(kind.__module__.partition(".")[0] in _OURS for kind in type(error).__mro__)
    return is_ours or _is_file_error(error) or is_out_of_memory(error) or _is_compiler_error(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, of the machine or of an accelerator (by name and text: torch need not be loaded)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def did_you_mean(name: str, choices: list[str]) -> str:
    """Return a suggestion to append to a message, or nothing.

    >>> did_you_mean("num_step", ["num_steps", "seed"])
    "; did you mean 'num_steps'?"
    >>> did_you_mean("zzz", ["num_steps"])
    ''
    """
    close = get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _memory_line(text: str) -> str:
    """Return what an allocator said without the place in its source: the first sentence that names it."""
    start = max((text.find(name) for name in _OUT_OF_MEMORY), default=-1)
    return text[max(start, 0) :].split(". ")[0] or "there is not enough memory"


def _is_compiler_error(error: BaseException) -> bool:
    """Tell whether torch.compile found no compiler, or one that fails (by name: torch need not be loaded)."""
    return type(error).__name__ in _COMPILER_ERRORS


def _is_file_error(error: BaseException) -> bool:
    """Tell whether the system would not open the file that `error` names, or has no room to write."""
    return isinstance(error, OSError) and error.errno is not None and (bool(error.filename) or error.errno in _NO_ROOM)


def _describe_file_error(error: BaseException) -> str:
    assert isinstance(error, OSError)
    place = f" {str(error.filename)!r}" if error.filename else ""
    match error.errno:
        case number if number in _NO_ROOM:
            return (
                f"no room to write{place} ({error.strerror}); what was written before is intact. "
                "Make room, then run again."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"may not open{place} ({error.strerror}); choose another place or change its permissions."
        case errno.ENOENT:
            return f"there is no file{place}; check the path."
        case _:
            return f"{error.strerror or type(error).__name__}:{place}"


def _silence_stdout() -> None:
    """Point stdout at the null device, so that the interpreter's last flush of a closed pipe stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
