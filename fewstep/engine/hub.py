"""The Hugging Face hub: folders of students are fetched into its cache, and uploaded."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.console import command
from fewstep.errors import FewstepError, first_line, need

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name


def fetched(name: str, key: str = "student") -> Path:
    """The local folder of ``owner/name`` or of ``owner/name/folder``: from the cache, which is brought up to date where
    the hub can be reached.

    Args:
        key: what the user names it by, for the message.

    Raises:
        FewstepError: there is no such repository, or no way to it.
    """
    hub, errors = need("huggingface_hub"), need("huggingface_hub.errors")
    repository, inner = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    need("huggingface_hub.utils.logging").set_verbosity_error()  # no line for each retry
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=f"{inner}/*" if inner else None))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = first_line(error)
        raise FewstepError(f"{key} {repository!r}: no such folder, and not to be had from the hub: {reason}") from None
    return folder / inner


def upload(folder: Path, repository: str, message: str, private: bool = False) -> None:
    """Make the repository where there is none, and put the files of a folder there.

    Raises:
        FewstepError: no network, no token, or one that may not write there; what to do with the folder then.
    """
    hub = need("huggingface_hub")
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # no network, no token, no right, no space: a class for each, also of the HTTP client
        raise FewstepError(
            f"{repository}: not uploaded: {first_line(error)}. The folder is kept: {folder}. Log in with "
            f"`hf auth login`, then: {upload_command(folder, repository)}"
        ) from error


def upload_command(folder: Path, repository: str) -> str:
    """What uploads a folder as it is, for the user to copy."""
    return command("hf", "upload", repository, folder, ".")
