"""Where a network runs and in which precision."""

import torch

from ddpo_rewards.types import RewardError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(device: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one.

    Raises:
        RewardError: no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    # An unknown name, a build without CUDA and an absent GPU each raise another type.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RewardError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, else float16 on an NVIDIA GPU and float32 elsewhere.

    Raises:
        RewardError: not one of float32, float16 and bfloat16.

    Example:
        >>> choose_dtype(None, torch.device("cpu"))
        torch.float32
    """
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise RewardError(f"dtype={dtype!r} is not known; want one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
