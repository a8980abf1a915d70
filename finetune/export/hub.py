"""Folders in the layout of the Hugging Face hub: config.json, model.safetensors, README.md; and their upload, when asked."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alliance.checkpoint import find_export, load_decoder, load_encoder, save_encoder
from alliance.errors import InputError
from alliance.files import replace_file, require_empty
from alliance.hub import ID
from finetune.export.card import encoder_card, network_card, read_run
from finetune.export.graphs import network_folder, open_trained
from finetune.model_files import read_model_weights, read_record, write_model

YAML = (".yaml", ".yml")


def write_folder(path: str, out: Path, *, licence: str | None = None, push: str | None = None) -> None:
    """Write an encoder or a trained network with its model card.

    Args:
        path: as of `open_exportable`.
        licence: for the card; None: none is claimed.
        push: id on the hub that the card names.
    Raises:
        InputError: nothing to load there, damaged files, a folder that is not empty, or a network that needs a file of
            this machine.
    """
    require_empty(out)
    name, folder = push or out.resolve().name, network_folder(path)
    if folder is None:
        encoder, source = load_encoder(path), find_export(path)
        card = encoder_card(encoder, read_run(source), licence, name)
        save_encoder(encoder, out, decoder=load_decoder(path))
    else:
        record = _portable(read_record(folder), folder)
        inputs = open_trained(folder).inputs
        card = network_card(inputs, record["task"], read_run(folder), licence, name)
        write_model(out, record, read_model_weights(folder))
    replace_file(out / "README.md", card.encode())


def check_id(repository: str) -> None:
    """Refuse what is no id of a repository.

    Raises:
        InputError: it is none.
    """
    if ID.fullmatch(repository) is None or "@" in repository:
        raise InputError(f"--push {repository!r} is no id of the hub; give owner/name")


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder into a repository of the hub, which is made if need be; its address.

    Raises:
        InputError: huggingface_hub is not installed, the hub cannot be reached, or it refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"--push needs huggingface_hub; {folder} is complete: pip install 'alliance-rs[hub]'"
        ) from error
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights and model card")
    except (HfHubHTTPError, OSError, ValueError, *_connection_errors()) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder} is complete, but {repository} cannot be written on the hub ({reason:.200}); see that you are logged "
            f"in (hf auth login) and may write there, then upload the folder: hf upload {repository} {folder}"
        ) from error
    return f"https://huggingface.co/{repository}"


def _connection_errors() -> tuple[type[Exception], ...]:
    """What a hub that cannot be reached raises, by the library that huggingface_hub sends with: requests' are OSErrors."""
    senders = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(sender.HTTPError for sender in senders)


def _portable(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The record of a network without its format; places on this machine lose their folders.

    Raises:
        InputError: it reads a sensor from a file, which would not be there.
    """
    for role, image in (record.get("inputs") or {}).items():
        if str(image.get("sensor") or "").endswith(YAML):
            raise InputError(
                f"the network in {folder} reads the sensor of its {role} image from {image['sensor']}, which others do not "
                f"have; put that file into alliance/sensors/, and its name into config.json"
            )
    return {name: _without_folders(value) for name, value in record.items() if name != "format"}


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and "/" in value and value.endswith(YAML) else value
