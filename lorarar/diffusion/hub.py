"""A base model that is named, not shipped: `model.yaml` says where on the hub, or in which folder, its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lorarar.errors import UserError

NAME = "model.yaml"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class Source(BaseModel):
    """The content of `model.yaml`.

    Parameters
    ----------
    hub : name of a StableDiffusionXLPipeline on the hub.
    revision : commit of it. A branch such as main works, too, but what it stands for may change.
    variant : of its files of weights, such as fp16.
    folder : in place of all that, a pipeline's folder on this machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str | None = None
    revision: str = "main"
    variant: str | None = None
    folder: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.folder is None):
            raise ValueError("needs either hub or folder")
        return self

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a `model.yaml`; raises `UserError` if it is none."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            details = error.errors()[0]
            key = ".".join(map(str, details["loc"]))
            message = details["msg"].removeprefix("Value error, ")
            raise UserError(f"{path}: {key + ': ' if key else ''}{message}; see docs/full-scale.md") from None
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it from git") from None


def locate(base: Path | str, download: bool = False) -> tuple[Path, str | None]:
    """The pipeline's folder that stands behind a base's, and the variant of its files.

    A folder without `model.yaml` is a pipeline's itself.

    Parameters
    ----------
    download : fetch what is not in the hub's cache.

    Raises
    ------
    UserError
        It is not on this machine, or cannot be fetched.
    """
    path = Path(base) / NAME
    if not path.exists():
        return Path(base), None
    source = Source.read(path)
    if source.folder:
        return path.parent / source.folder, source.variant
    weights = f"*.{source.variant}.safetensors" if source.variant else "*.safetensors"
    wanted = ["model_index.json", "*/*.json", "*/*.txt", *(f"{part}/{weights}" for part in PARTS)]
    others = None if source.variant else ["*.fp16.*", "*.non_ema.*"]
    options = {"allow_patterns": wanted, "ignore_patterns": others}
    return snapshot(str(source.hub), source.revision, fetch_command(base), download, **options), source.variant


def fetch_command(base: Path | str) -> str:
    """The command that fetches a base of data/<name>/base."""
    return f"`lorarar doctor --base {Path(base).resolve().parent.name} --download`"


def snapshot(name: str, revision: str, command: str, download: bool, **patterns: Any) -> Path:
    """Folder of a hub's model in its cache.

    Parameters
    ----------
    command : what would fetch it, for the message.

    Raises
    ------
    UserError
        It is not there, or cannot be fetched: one line says why.
    """
    from huggingface_hub import constants, errors, snapshot_download

    where, again = f"{name} at {revision}", f"fetch it by {command}"
    if download and constants.HF_HUB_OFFLINE:
        raise UserError(f"{where}: cannot be fetched, as HF_HUB_OFFLINE is set; unset it")
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=not download, **patterns))
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{name}"
        raise UserError(f"{where}: wants its terms accepted; do so at {page}, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{where}: the hub has no such model, or hides it from you; check the name") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: the hub has no such revision of it; check the commit") from None
    except errors.LocalEntryNotFoundError:
        state = "the hub cannot be reached" if download else "not whole in the hub's cache on this machine"
        raise UserError(f"{where}: {state}; {'try again' if download else again}") from None
    except Exception as error:  # each library has its own network errors; the next attempt continues
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: cannot be fetched ({reason}); try again") from None
