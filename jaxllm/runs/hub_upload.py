"""The model of a run on the Hugging Face Hub."""

import logging
import shlex
from pathlib import Path

from jaxllm.errors import InputError

logger = logging.getLogger("jaxllm")

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def prepare(repo: str) -> None:
    """Makes the repository, where it is missing; called before anything is trained.

    Raises:
        InputError: there is no login, or one that may not write there; the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError(f"run.push_to_hub: found {repo}, but no login at the Hub; {_LOGIN}")
    try:
        HfApi().create_repo(repo, exist_ok=True)
    except Exception as error:  # of the Hub's library, of its HTTP library, of the network
        raise InputError(
            f"run.push_to_hub: {repo} cannot be made on the Hub ({_first_line(error)}); {_LOGIN}, "
            "or set run.push_to_hub: null and upload later"
        ) from error


def upload(repo: str, model: Path) -> None:
    """Uploads what is in the directory `model`; a failure is told with the command to try again."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().upload_folder(
            repo_id=repo, folder_path=model, commit_message="Model trained with jaxllm"
        )
    except Exception as error:
        logger.error(
            "%s could not be uploaded to %s (%s). Nothing is lost; to upload it: %s",
            *(model, repo, _first_line(error)),
            f"hf upload {shlex.quote(repo)} {shlex.quote(str(model))} .",
        )
    else:
        logger.info("%s is uploaded: %s", model, commit.commit_url)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
