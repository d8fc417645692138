"""The folder with the miniature: this clone of the repository, or the installed package of data `lorarar-pocket`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lorarar.errors import UserError


def root() -> Path:
    """The folder that holds `data/pocket` and `examples/pocket`.

    Raises
    ------
    UserError : the current folder is no clone of the repository, and the package of data is not installed.
    """
    if Path("data/pocket/base").is_dir():
        return Path()
    spec = find_spec("lorarar_pocket")
    if spec is None or spec.origin is None:
        raise UserError(
            "the miniature is not here: run this in a clone of the repository, or install 'lorarar[pocket]'"
        )
    return Path(spec.origin).parent


def base(name: str) -> Path:
    """A base model by its name, which is that of a folder `data/<name>/base`, or else by its path."""
    if name == "pocket":
        return root() / "data/pocket/base"
    named = Path("data", name, "base")
    return named if Path(name).name == name and named.is_dir() else Path(name)


def examples() -> dict[str, Path]:
    """LoRAs of pocket's test subjects and styles by name, which no hypernetwork was trained on; none if not here."""
    try:
        folder = root() / "examples/pocket"
    except UserError:
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.safetensors")) if path.stem != "hypernet"}
