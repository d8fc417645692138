"""Updates of other kinds than up @ down, as LyCORIS and peft write them, read into plain factors.

LoHa, LoKr and full differences need only the file. GLoRA, (IA)^3 and DoRA change the base's weights by a rule that
has these weights in it, so they need a base model too; the factors are then for this base.
Each formula is written with W, the weight of the base, and s = alpha / rank.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import base_models
from lorarar.lora.checkpoint_file import Checkpoint
from lorarar.lora.factors import Factors, Layers, finite
from lorarar.lora.products import Cut, Product, added, cut, dense, hadamard, relative, single
from lorarar.parallel import map_layers

Parts = Mapping[str, Tensor]
"""The tensors of one layer by the ends of their keys."""


@dataclass(frozen=True)
class Reading:
    """How updates of other kinds become plain factors.

    Attributes
    ----------
    rank, energy
        The largest rank, and the share of |dW|_F^2 to keep: see `products.cut`.
    base
        The base model, for kinds that need its weights.
    """

    rank: int | None = None
    energy: float | None = None
    base: Checkpoint | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank {self.rank}: give a number from 1 on")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(f"energy {self.energy}: give a share above 0 and up to 1, such as 0.99")


def unused(reading: Reading | None) -> list[str]:
    """Notes to users whose files are all plain LoRAs: what they gave for other kinds changes nothing."""
    given = reading not in (None, Reading())
    return ["--rank, --energy and --base change nothing here: every layer is a plain LoRA"] if given else []


class Kind(NamedTuple):
    """A kind of update.

    Attributes
    ----------
    name
        What messages call it.
    part
        A pattern of the ends of its keys.
    read
        (parts, weight of the base or None) -> the update. Raises `ValueError` or `RuntimeError` if they do not fit.
    """

    name: str
    part: str
    read: Callable[[Parts, Tensor | None], Product]
    needs_base: bool = False


def _loha(parts: Parts, weight: Tensor | None) -> Product:
    """dW = s (w1_a w1_b) * (w2_a w2_b), entry by entry; of Tucker's form each side is w_a^T t w_b."""
    sides = []
    for side in "12":
        up, down = parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"]
        tucker = "hada_t1" in parts or "hada_t2" in parts
        sides.append(_tucker(up, parts[f"hada_t{side}"], down) if tucker else _pair(up, down))
    return single(_scaled(hadamard(*sides), parts, len(parts["hada_w1_b"])))


def _lokr(parts: Parts, weight: Tensor | None) -> Product:
    """dW = s w1 (x) w2, where each side is a matrix or factors; of two matrices s = 1, whatever alpha says."""

    def side(name: str, core: str = "") -> Factors:
        if name in parts:
            _fit(not {f"{name}_a", f"{name}_b", core} & parts.keys())
            return dense(parts[name].flatten(1))
        up, down = parts[f"{name}_a"], parts[f"{name}_b"]
        return _tucker(up, parts[core], down) if core in parts else _pair(up, down)

    first, second = side("lokr_w1"), side("lokr_w2", "lokr_t2")
    factored = next((parts[f"{name}_b"] for name in ("lokr_w2", "lokr_w1") if name not in parts), None)
    return Product(first, second if factored is None else _scaled(second, parts, len(factored)))


def _full(parts: Parts, weight: Tensor | None) -> Product:
    """dW = diff."""
    return single(dense(parts["diff"].flatten(1)))


def _glora(parts: Parts, weight: Tensor | None) -> Product:
    """dW = s (W a1 a2 + b1 b2); of a convolution, a1 a2 acts on the input channels.

    LyCORIS first wrote the factors the other way round: dW = s (W a2 a1 + b2 b1).
    """
    assert weight is not None
    a1, a2, b1, b2 = (parts[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    rank = min(a1.shape)
    if a1.shape[0] == a1.shape[1]:
        raise ValueError("the order of the factors cannot be told")
    if len(a1) == rank:
        a1, a2, b1, b2 = a2, a1, b2, b1
    through = torch.einsum("oi...,ir->or...", weight, a1)  # (m_out, r, h, w)
    places = through[0, 0].numel()  # h w: the rank is r for each of them
    down = torch.einsum("ri,kl->rkil", a2, torch.eye(places)).reshape(len(a2) * places, -1)
    other = _tucker(b1.T, parts["bm.weight"], b2) if "bm.weight" in parts else _pair(b1, b2)
    return single(_scaled(added(Factors(down, through.flatten(1)), other), parts, rank))


def _ia3(parts: Parts, weight: Tensor | None) -> Product:
    """dW = W diag(w) if it is trained on the input, else diag(w) W."""
    assert weight is not None
    scale = parts["weight"].flatten()
    axis = 1 if bool(parts["on_input"]) else 0
    _fit(len(scale) == weight.shape[axis])
    return single(dense((weight * scale.reshape(*(-1 if i == axis else 1 for i in range(weight.ndim)))).flatten(1)))


def _dora(update: Factors, scale: Tensor, weight: Tensor) -> Factors:
    """dW = m (W + D) / |W + D| - W, norms of rows or, where m has the shape (1, n_in, ...), of input channels."""
    _fit(len(update.up) == len(weight))
    whole = weight + update.delta.reshape(weight.shape)
    axis = 1 if scale.ndim > 1 and len(scale) == 1 and scale.shape[1] == weight.shape[1] else 0
    _fit(scale.numel() == weight.shape[axis])
    others = [place for place in range(weight.ndim) if place != axis]
    norm = torch.linalg.vector_norm(whole, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
    return dense((whole * (scale.reshape(norm.shape) / norm) - weight).flatten(1))


def _tucker(up: Tensor, core: Tensor, down: Tensor) -> Factors:
    """Factors (r, n_in h w) and (m_out, r) of up^T core down: up (r, m_out), core (r, r', h, w), down (r', n_in)."""
    return _pair(up.T.contiguous(), torch.einsum("ijhw,jn->inhw", core, down).flatten(1))


def _pair(up: Tensor, down: Tensor) -> Factors:
    _fit(up.ndim == down.ndim == 2 and up.shape[1] == len(down) > 0)
    return Factors(down, up)


def _scaled(factors: Factors, parts: Parts, rank: int) -> Factors:
    return Factors(factors.down, factors.up * (float(parts["alpha"]) / rank)) if "alpha" in parts else factors


def _fit(condition: bool) -> None:
    if not condition:
        raise ValueError("parts do not fit")


KINDS = (
    Kind("LoHa", r"hada_(?:w[12]_[ab]|t[12])", _loha),
    Kind("LoKr", r"lokr_(?:w[12](?:_[ab])?|t2)", _lokr),
    Kind("full difference", "diff", _full),
    Kind("GLoRA", r"(?:a1|a2|b1|b2|bm)\.weight", _glora, needs_base=True),
    Kind("(IA)^3", "on_input", _ia3, needs_base=True),
)
MAGNITUDE = "dora_scale"
_DORA = rf"{MAGNITUDE}|lora_magnitude_vector(?:\.default)?(?:\.weight)?"
ADDED = ("diff_b", "w_norm", "b_norm")
"""Differences of biases and of norms, for which a LoRA has no place."""
KIND, ERROR = "lorarar.kind", "lorarar.kind_error"
"""Metadata: the kinds that were read, and the relative error of the plain factors."""
_KEY = re.compile(rf"(?P<stem>.+)\.(?P<part>{'|'.join([*(kind.part for kind in KINDS), *ADDED, _DORA])})")


def without_kind(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of the plain LoRA that becomes of a file: the module of LyCORIS and its arguments are no longer true."""
    kept = {key: value for key, value in metadata.items() if key != "ss_network_args"}
    return kept | ({"ss_network_module": "networks.lora"} if "ss_network_module" in kept else {})


def take(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The tensors that are part of plain LoRAs, and those of other kinds by the beginnings of their keys."""
    updates: dict[str, dict[str, Tensor]] = defaultdict(dict)
    plain = dict(tensors)
    for key in tensors:
        if match := _KEY.fullmatch(key):
            parts, part = updates[match["stem"]], match["part"]
            part = MAGNITUDE if re.fullmatch(_DORA, part) else part
            if part in parts:
                raise UserError(f"{source}: {key} is the second magnitude of its layer; the file is damaged")
            parts[part] = plain.pop(key)
    for stem, parts in updates.items():
        for part in ("alpha", *(["weight"] if "on_input" in parts else [])):
            if parts.keys() - {MAGNITUDE, *ADDED} and f"{stem}.{part}" in plain:
                parts[part] = plain.pop(f"{stem}.{part}")
    return plain, dict(updates)


def plain_keys(stems: Iterable[str]) -> list[str]:
    """The keys that the updates will have as plain LoRAs."""
    return [key for stem in stems for key in _keys(stem)]


class Expansion:
    """The updates of a file, expanded to plain factors under the keys of plain LoRAs.

    Parameters
    ----------
    plain, updates
        As `take` gives them.
    parse
        Tensors under the file's keys -> layers: what its format makes of them.
    source
        Names the file in messages.

    Attributes
    ----------
    tensors : those of plain LoRAs, the expanded ones among them.

    Raises
    ------
    UserError
        An update is damaged, has no place in a LoRA, or needs the weights of a base that is not given.
    """

    def __init__(
        self,
        plain: Mapping[str, Tensor],
        updates: Mapping[str, dict[str, Tensor]],
        parse: Callable[[Mapping[str, Tensor]], Layers],
        reading: Reading,
        source: str,
    ) -> None:
        self._reading, self._source = reading, source
        updates = {stem: left for stem, parts in updates.items() if (left := self._with_a_place(stem, parts))}
        kinds = {stem: self._kind(stem, parts) for stem, parts in updates.items()}
        based = {
            stem: kind.name if kind and MAGNITUDE not in updates[stem] else "DoRA"
            for stem, kind in kinds.items()
            if MAGNITUDE in updates[stem] or (kind and kind.needs_base)
        }
        names = self._names(based, parse) if based else {}
        own = [(stem, kind, updates[stem], names.get(stem)) for stem, kind in kinds.items() if kind]
        with torch.no_grad():
            cuts = map_layers(self._expanded, own)
        self.tensors = dict(plain)
        self._kernels: dict[int, tuple[int, ...] | None] = {}
        self._done: list[tuple[str, str, Cut]] = []  # where, kind, result
        for (stem, kind, parts, _), found in zip(own, cuts, strict=True):
            for key, factor in zip(_keys(stem), found.factors, strict=True):
                if key in plain:
                    raise UserError(f"{source}: {stem} has two updates; the file is damaged, make it again")
                self.tensors[key] = factor
            self._kernels[id(found.factors.down)] = _kernel(parts)
            if MAGNITUDE not in parts:
                self._done.append((stem, kind.name, found))
        self._scales = {
            names[stem]: (f"{kind.name} with DoRA" if kind else "DoRA", updates[stem][MAGNITUDE])
            for stem, kind in kinds.items()
            if MAGNITUDE in updates[stem]
        }

    def finish(self, layers: Layers) -> tuple[Layers, dict[str, str], str]:
        """The layers of `tensors`, convolutions in shape and magnitudes applied; metadata and a note on their kinds."""
        if lone := self._scales.keys() - layers.keys():
            raise UserError(f"{self._source}: layer {min(lone)} has a magnitude (DoRA) without factors; make it again")
        linear = {
            layer.removeprefix("unet."): factors
            for layer, factors in layers.items()
            if layer.startswith("unet.") and factors.down.ndim == 2
        }
        old = base_models.possible(linear) == ["Stable Diffusion 1.5"]
        shaped = {layer: self._shaped(layer, factors, old) for layer, factors in layers.items()}
        with torch.no_grad():
            cuts = map_layers(
                self._decomposed, [(layer, shaped[layer], scale) for layer, (_, scale) in self._scales.items()]
            )
        for (layer, (kind, _)), found in zip(self._scales.items(), cuts, strict=True):
            self._done.append((layer, kind, found))
            kernel = tuple(shaped[layer].down.shape[1:])
            shaped[layer] = found.factors.convolution(kernel) if len(kernel) > 1 else found.factors
        return shaped, *self._told()

    def _told(self) -> tuple[dict[str, str], str]:
        """What was read and the relative error of it, for the metadata and as a note."""
        if not self._done:
            return {}, ""
        kinds = ", ".join(sorted({kind for _, kind, _ in self._done}))
        exact, kept = ([found.exact for *_, found in self._done], [found.factors.rank for *_, found in self._done])
        error = relative(sum(found.lost for *_, found in self._done), sum(found.total for *_, found in self._done))
        text = f"{kinds}: {len(exact)} layer{'s' if len(exact) > 1 else ''} of exact rank {_range(exact)}"
        if exact == kept:
            text += ", kept whole"
        else:
            where, _, worst = max(self._done, key=lambda one: one[2].error)
            text += f", cut to {_range(kept)}; relative error {error:.3g}, at most {worst.error:.3g} ({where})"
        return {KIND: kinds, ERROR: f"{error:.6g}"}, text

    def _with_a_place(self, stem: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts without differences of biases and norms, which have to be zero."""
        lone = [part for part in parts if part in ADDED or (part == "diff" and parts[part].ndim < 2)]
        for part in lone:
            if parts[part].is_complex() or parts[part].float().any():
                raise UserError(
                    f"{self._source}: {stem}.{part} changes a bias or a norm, for which a LoRA has no place; "
                    "bake it into a checkpoint, or train without it"
                )
        left = {part: tensor for part, tensor in parts.items() if part not in lone}
        return {} if left.keys() <= {"alpha"} else left

    def _kind(self, stem: str, parts: Parts) -> Kind | None:
        """The kind of an update; None if it is a plain LoRA with a magnitude."""
        for part, tensor in parts.items():
            number = part in ("alpha", "on_input")
            if tensor.is_complex() or not (number or tensor.is_floating_point()):
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{self._source}: {stem}.{part} is of {dtype}, not real numbers; convert it first")
            if number and tensor.numel() != 1:
                raise UserError(f"{self._source}: {stem}.{part} is no number; the file is damaged, make it again")
            if not finite(tensor):
                raise UserError(f"{self._source}: {stem}.{part} holds NaN or infinity; train it again")
        kinds = [kind for kind in KINDS if any(re.fullmatch(kind.part, part) for part in parts)]
        if len(kinds) > 1:
            names = " and ".join(kind.name for kind in kinds)
            raise UserError(f"{self._source}: {stem} is {names} at once; the file is damaged, make it again")
        return kinds[0] if kinds else None

    def _names(self, based: Mapping[str, str], parse: Callable[[Mapping[str, Tensor]], Layers]) -> dict[str, str]:
        """Stem -> layer of updates that need the base's weights; `based` has their kinds."""
        if self._reading.base is None:
            stem, kind = next(iter(based.items()))
            raise UserError(
                f"{self._source}: {stem} is {kind}, which depends on the base's weights; give them with --base FILE"
            )
        # Factors of rank 0 stay as they are, so that each tells which stem its layer has.
        blanks = {stem: torch.empty(0, 0) for stem in based}
        keys = {stem: _keys(stem) for stem in based}
        downs = {keys[stem][0]: blank for stem, blank in blanks.items()}
        try:
            known = parse(downs | {up: torch.empty(0, 0) for _, up in keys.values()})
        except UserError as error:
            stem, kind = next(iter(based.items()))
            raise UserError(f"{error}; its update is {kind}, whose layer has to be known without its shape") from None
        layers = {id(factors.down): layer for layer, factors in known.items()}
        for stem, blank in blanks.items():
            if id(blank) not in layers:
                raise UserError(f"{self._source}: {stem} is {based[stem]} of several layers in one, which is not read")
        return {stem: layers[id(blank)] for stem, blank in blanks.items()}

    def _expanded(self, stem: str, kind: Kind, parts: Parts, layer: str | None) -> Cut:
        """The plain factors of an update; whole if a magnitude comes on top, because the cut is made after it."""
        weight = self._weight(layer) if kind.needs_base and layer else None
        try:
            _fit(all(tensor.ndim in (0, 1, 2, 4) and tensor.numel() for tensor in parts.values()))
            product = kind.read({part: tensor.float() for part, tensor in parts.items()}, weight)
            _fit(weight is None or product.shape == (len(weight), weight[0].numel()))
        except KeyError as error:
            raise UserError(
                f"{self._source}: {stem} ({kind.name}) has no {error.args[0]}; the file is incomplete, make it again"
            ) from None
        except (ValueError, RuntimeError, IndexError):
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(parts.items()))
            of_base = f" and the base's weight {tuple(weight.shape)}" if weight is not None else ""
            raise UserError(
                f"{self._source}: parts of {stem} ({kind.name}) do not fit ({shapes}{of_base}); make it again"
            ) from None
        return cut(product, energy=1) if MAGNITUDE in parts else self._cut(stem, product)

    def _decomposed(self, layer: str, factors: Factors, scale: Tensor) -> Cut:
        """The plain factors of DoRA, from those of its inner update."""
        weight = self._weight(layer)
        try:
            product = single(_dora(factors.matrix.to(torch.float32), scale.float(), weight))
        except (ValueError, RuntimeError, IndexError):
            shapes = f"magnitude {tuple(scale.shape)}, up {tuple(factors.up.shape)}, down {tuple(factors.down.shape)}"
            raise UserError(
                f"{self._source}: layer {layer} is DoRA ({shapes}) that does not fit the base's weight "
                f"{tuple(weight.shape)}; give the base model it was trained on"
            ) from None
        return self._cut(layer, product)

    def _cut(self, where: str, product: Product) -> Cut:
        try:
            return cut(product, self._reading.rank, self._reading.energy)
        except torch.linalg.LinAlgError:
            raise UserError(f"{self._source}: the update of {where} overflows float32; train it again") from None

    def _weight(self, layer: str) -> Tensor:
        """The base's weight of a layer in float32."""
        assert self._reading.base is not None
        name = _in_base(layer)
        if name not in self._reading.base.layers:
            raise UserError(
                f"{self._reading.base.path}: has no weight of layer {layer}; give the base of {self._source}"
            )
        return self._reading.base.weight(name).float()

    def _shaped(self, layer: str, factors: Factors, old: bool) -> Factors:
        """Expanded factors in the shape of their layer; `old`: Stable Diffusion 1, whose `proj_in` is a convolution."""
        if id(factors.down) not in self._kernels or factors.down.ndim != 2:
            return factors
        kernel, base, columns = self._kernels[id(factors.down)], self._reading.base, factors.down.shape[1]
        if base is not None and _in_base(layer) in base.layers:
            shape = base.layers[_in_base(layer)].shape
            if (len(factors.up), columns) != (shape[0], prod(shape[1:])):
                raise UserError(
                    f"{self._source}: layer {layer} has an update {len(factors.up)} x {columns}, and the base's weight "
                    f"the shape {tuple(shape)}; give the base model it was trained on"
                )
            kernel = tuple(shape[2:])
        elif kernel is None:  # the file does not tell, only the module that the layer is
            kernel = next((size for name, size in _CONVOLUTIONS.items() if re.search(name, layer)), ())
            kernel = (1, 1) if old and re.search(r"^unet\..*\.proj_(?:in|out)$", layer) else kernel
        if not kernel:
            return factors
        places = kernel[0] * kernel[1]
        if columns % places:
            raise UserError(f"{self._source}: layer {layer} has {columns} inputs, no multiple of its {places}; damaged")
        return factors.convolution((columns // places, *kernel))


def _in_base(layer: str) -> str:
    """The layer's name in `Checkpoint.layers`."""
    return layer.removeprefix("unet.").removeprefix("transformer.")


_CONVOLUTIONS = {r"\.conv(?:[12]|_in|_out)?$": (3, 3), r"\.conv_shortcut$": (1, 1)}


def _kernel(parts: Parts) -> tuple[int, ...] | None:
    """(h, w) of a convolution, () of a linear layer, None if the parts do not tell."""
    for part in ("diff", "lokr_w2", "lokr_t2", "hada_t1", "bm.weight", "b2.weight"):
        if part in parts and parts[part].ndim == 4:
            return tuple(parts[part].shape[2:])
    return () if "diff" in parts else None


def _keys(stem: str) -> tuple[str, str]:
    """The keys of plain factors under a beginning; the dotted ones are those of diffusers and peft."""
    down, up = ("lora_A", "lora_B") if "." in stem else ("lora_down", "lora_up")
    return f"{stem}.{down}.weight", f"{stem}.{up}.weight"


def _range(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"
