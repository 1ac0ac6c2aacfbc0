"""The Hugging Face hub: downloading folders of students into its cache, and uploading them."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.console import command
from fewstep.errors import FewstepError, first_line, need

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name


def fetched(name: str, key: str = "student") -> Path:
    """The local folder of ``owner/name`` or ``owner/name/folder``, in the cache, which is updated if the hub can be
    reached.

    Args:
        key: the option or argument that names it, for the message.

    Raises:
        FewstepError: if there is no such repository, or neither hub nor cache has it.
    """
    hub, errors = need("huggingface_hub"), need("huggingface_hub.errors")
    repository, inner = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    need("huggingface_hub.utils.logging").set_verbosity_error()  # no line for each retry
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=f"{inner}/*" if inner else None))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = first_line(error)
        raise FewstepError(f"{key} {repository!r}: no such folder, and not available from the hub: {reason}") from None
    return folder / inner


def upload(folder: Path, repository: str, message: str, private: bool = False) -> None:
    """Create the repository if there is none, and upload the files of a folder.

    Raises:
        FewstepError: without a network or a token that may write there; it says what to do with the folder.
    """
    hub = need("huggingface_hub")
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's and its HTTP client's errors have no common base class
        raise FewstepError(
            f"{repository}: not uploaded: {first_line(error)}. The folder is kept: {folder}. Log in with "
            f"`hf auth login`, then: {upload_command(folder, repository)}"
        ) from error


def upload_command(folder: Path, repository: str) -> str:
    """The command that uploads a folder as it is, for the user to copy."""
    return command("hf", "upload", repository, folder, ".")
