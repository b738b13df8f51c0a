"""Upload of a trained model to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from visurf_ray.errors import UserError, short


def check_upload(name: str | None) -> None:
    """Check before a run whether its export can be uploaded as train.push_to_hub says; None uploads nothing.

    Raises:
        UserError: the name is no owner/name, HF_HUB_OFFLINE forbids it, or there is no token.
    """
    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"train.push_to_hub={short(name)}: {short(error)}. Write owner/name, or null") from error
    if "/" not in name:
        raise UserError(f"train.push_to_hub={name} must be owner/name, such as your-name/{name}, or null")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"train.push_to_hub={name}: HF_HUB_OFFLINE forbids it: unset this variable, or set null")
    if get_token() is None:
        raise UserError(
            f"train.push_to_hub={name}: there is no token for the hub: set HF_TOKEN to one that may write, run "
            "`hf auth login`, or set null"
        )


def upload(folder: Path, name: str, endpoint: str | None = None) -> str:
    """Upload a folder to the repository owner/name, which is created as a private one if there is none.

    Args:
        endpoint: the hub's address; None: that of the environment (HF_ENDPOINT).

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(name, private=True, exist_ok=True)
        found = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of a run of visurf_ray")
    except Exception as error:  # of several libraries: the connection, the hub's answer, the upload of large files
        raise UserError(
            f"train.push_to_hub={name}: {short(' '.join(str(error).split()), 400)}. The run itself is complete: "
            f"upload it with `hf upload {name} {folder} --private`"
        ) from error
    return found.commit_url
