"""Upload of a trained model to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from visurf_ray.errors import UserError, short


def check_upload(repo_id: str | None) -> None:
    """Check what can be checked of train.push_to_hub without asking the hub. None is fine: nothing is uploaded.

    Whether the token may write to the repository shows at the upload.

    Raises:
        UserError: the id is not owner/name, HF_HUB_OFFLINE forbids the upload, or there is no token.
    """
    if repo_id is None:
        return
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"train.push_to_hub={short(repo_id)}: {short(error)}. Write owner/name, or null") from error
    if "/" not in repo_id:
        raise UserError(f"train.push_to_hub={repo_id} must be owner/name, such as your-name/{repo_id}, or null")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"train.push_to_hub={repo_id}: HF_HUB_OFFLINE forbids the upload: unset this variable, or set "
            "train.push_to_hub=null"
        )
    if get_token() is None:
        raise UserError(
            f"train.push_to_hub={repo_id}: there is no token for the hub: set HF_TOKEN to one that may write, run "
            "`hf auth login`, or set train.push_to_hub=null"
        )


def upload(folder: Path, repo_id: str, endpoint: str | None = None) -> str:
    """Upload a folder to a repository, owner/name. If it does not exist, it is created as a private one.

    Args:
        endpoint: the hub's address. None: HF_ENDPOINT, or huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        UserError: the upload fails for any reason. The message has the command that uploads the folder later.
    """
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export of a run of visurf_ray")
    except Exception as error:  # several libraries raise: for the connection, the hub's answer, large files
        raise UserError(
            f"train.push_to_hub={repo_id}: {short(' '.join(str(error).split()), 400)}. The run itself is complete: "
            f"upload it with `hf upload {repo_id} {folder} --private`"
        ) from error
    return commit.commit_url
