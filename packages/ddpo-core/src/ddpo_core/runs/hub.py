"""Giving a folder to the Hugging Face hub."""

from os import PathLike
from pathlib import Path

from ddpo_core.errors import DDPOError


def push_to_hub(folder: str | PathLike[str], repository: str, *, private: bool) -> str:
    """Upload a folder to a model repository of the hub, which is made where there is none; returns its address.

    Args:
        folder: What `export_run` wrote.
        repository: OWNER/NAME.
        private: Whether a repository that is made is private; one that is there stays as it is.

    Raises:
        DDPOError: Nobody is logged in, the hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=Path(folder), commit_message=f"Upload {Path(folder).name}")
    # The hub's client raises its own errors, those of its HTTP library and OSErrors; all mean that it is not there.
    except Exception as error:
        said = str(error).strip().splitlines()
        raise DDPOError(
            f"{str(folder)!r} cannot be pushed to {repository!r}: {type(error).__name__}: {said[0] if said else ''}; "
            "log in with `hf auth login`, or check the name and the network"
        ) from error
    return str(address)
