"""The hypernetwork of LoRA.rar, Eq. 1: predicts merging coefficients from the columns of two updates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorarar.device import gain_of_bfloat16
from lorarar.errors import UserError
from lorarar.lora import container
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.columns import Coefficients, aligned
from lorarar.parallel import Scratch, map_layers
from lorarar.randomness import seeded

Context = Literal["none", "mean", "attention"]
GUIDED = ("to_q", "to_out.0")
CONSTANTS = (0.5, 0.5)


class HyperNetwork(nn.Module):
    """One input layer for each layer width, ReLU, and one output layer shared by all (section 3.3, Fig. 4).

    A column of [dW_c; dW_s], 2 m numbers where m is the layer's output width, gives its own (m_c, m_s).

    Parameters
    ----------
    widths
        Output widths m of the guided layers; `input_1` takes the smallest, and so on.
    hidden
        Hidden units.
    guided
        Endings of the module paths whose coefficients are predicted: the paper's are query and output.
    constants
        (m_c, m_s) of all other projections, in training and in merging: the paper averages them, (0.5, 0.5); its
        released code sums them, (1, 1).
    initial
        Bias of the output layer before training. Columns of an update are small numbers, so an untrained
        network predicts about this for each of them: at 0.5 it starts from the average, as key and value are
        merged; at 0, close to PyTorch's own initialisation, the guided projections start unchanged.
    scale
        Factor on the columns before the input layer. Updates are small numbers, so that at 1 a short training
        mostly moves biases: one pair of constants for each width. It is folded into the weights when saved.
    context
        "none", as in the paper, treats each column separately; otherwise a mixture of all columns of the layer is added
        to each: their "mean", or one that "attention" weighs. The mixture is zero before training.
    seed
        The seed of the initial weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int = 128,
        guided: Sequence[str] = GUIDED,
        *,
        constants: tuple[float, float] = CONSTANTS,
        initial: float = 0.5,
        scale: float = 1.0,
        context: Context = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.constants = constants
        self.scale = scale
        self.widths = sorted(set(widths))
        self.guided = tuple(guided)
        with seeded(seed):
            for i, width in enumerate(self.widths, start=1):
                self.add_module(f"input_{i}", nn.Linear(2 * width, hidden))
            last = nn.Linear(hidden, 2)
            self.mixture = None if context == "none" else Mixture(hidden, attention=context == "attention")
        nn.init.constant_(last.bias, initial)
        self.output = nn.Sequential(nn.ReLU(), last)

    @classmethod
    def for_adapter(cls, adapter: Adapter, guided: Sequence[str] = GUIDED, **options: Any) -> HyperNetwork:
        """An untrained network with the input layers that adapters like this one need; `options` as above."""
        widths = [factors.up.shape[0] for path, factors in adapter.layers.items() if ends_with(path, guided)]
        if not widths:
            raise UserError(f"the adapter has no layer that ends in {' or '.join(guided)}: choose others to guide")
        return cls(widths, guided=guided, **options)

    def forward(self, content: Factors, style: Factors) -> tuple[Tensor, Tensor]:
        """Coefficients m_c, m_s (n_in,) of one layer, without forming its updates; see `factored`."""
        m_c, m_s = factored(self._weights(content.up.shape[0]), content, style)
        return m_c, m_s

    def coefficients(self, content: Adapter, style: Adapter) -> Coefficients:
        """(m_c, m_s) of every guided layer that both adapters have.

        On a CPU where float32 is faster, a bfloat16 network is converted first, except when gradients are recorded.

        Raises
        ------
        UserError
            A guided layer has a width this network was not made for, or there is none to guide.
        """
        first = self.output[1].bias
        slow = first.dtype == torch.bfloat16 and first.device.type == "cpu" and gain_of_bfloat16() < 1
        if slow and not torch.is_grad_enabled():
            return copy.deepcopy(self).float().coefficients(content, style)
        guided = {
            path: (c, s) for path, c, s in aligned(content, style) if c.rank and s.rank and ends_with(path, self.guided)
        }
        if not guided:
            raise UserError(f"the adapters share no layer that ends in {' or '.join(self.guided)}: nothing to guide")
        weights = {width: self._weights(width) for width in {c.up.shape[0] for c, _ in guided.values()}}
        scratch = None if torch.is_grad_enabled() else Scratch(next(self.parameters()))
        found = map_layers(lambda c, s: factored(weights[c.up.shape[0]], c, s, scratch), guided.values())
        return {path: (m_c, m_s) for path, (m_c, m_s) in zip(guided, found, strict=True)}

    def save(self, path: Path | str) -> None:
        """Write the state dict as safetensors, with the guided projections and the constants in its metadata."""
        inputs = {f"input_{i}.weight" for i in range(1, len(self.widths) + 1)}
        state = {key: self.scale * value if key in inputs else value for key, value in self.state_dict().items()}
        metadata = {"guided": ",".join(self.guided), "constants": ",".join(map(str, self.constants))}
        container.write_tensors(path, state, metadata)

    @classmethod
    def load(cls, path: Path | str, guided: Sequence[str] | None = None) -> HyperNetwork:
        """Read what `save` wrote, or a `.pth` state dict with the same keys, such as the paper's release.

        Parameters
        ----------
        guided
            Overrides the file's; a file without any guides the paper's projections, with the paper's constants.
        """
        if Path(path).suffix == ".safetensors":
            state, metadata = container.read_tensors(path)
        else:
            state, metadata = read_pickle(path), {}
        try:
            count = sum(key.startswith("input_") and key.endswith(".weight") for key in state)
            inputs = [state[f"input_{i}.weight"] for i in range(1, count + 1)]
            guided = guided or tuple(metadata["guided"].split(",") if "guided" in metadata else GUIDED)
            context: Context = "none"
            if "mixture.value.weight" in state:
                context = "attention" if "mixture.query.weight" in state else "mean"
            network = cls([weight.shape[1] // 2 for weight in inputs], inputs[0].shape[0], guided, context=context)
            if "constants" in metadata:
                m_c, m_s = map(float, metadata["constants"].split(","))
                network.constants = m_c, m_s
            network.load_state_dict(state)
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
            raise UserError(f"{path}: not the weights of a hypernetwork; train it again or give another file") from None
        return network

    def _weights(self, width: int) -> Weights:
        if width not in self.widths:
            known = ", ".join(map(str, self.widths))
            raise UserError(f"a guided layer is {width} wide, the hypernetwork knows {known}: train it for this base")
        first = cast(nn.Linear, self.get_submodule(f"input_{1 + self.widths.index(width)}"))
        last = cast(nn.Linear, self.output[1])
        weight = first.weight if self.scale == 1 else self.scale * first.weight
        content, style = weight.chunk(2, dim=1)
        return Weights(content, style, first.bias.unsqueeze(1), self.mixture, last.weight, last.bias.unsqueeze(1))


class Mixture(nn.Module):
    """A mixture of the hidden units of all columns of a layer; it is zero before training.

    Parameters
    ----------
    attention
        Give each column its own mixture by attention, instead of the mean of all columns.
    """

    def __init__(self, hidden: int, attention: bool) -> None:
        super().__init__()
        self.value = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.value.weight)
        if attention:
            self.query, self.key = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.attention = attention

    def forward(self, hidden: Tensor) -> Tensor:
        """(h, n_in) -> (h, n_in) or, alike for all columns, (h, 1)."""
        columns = hidden.T[None]
        mixed = columns.mean(1)
        if self.attention:
            mixed = F.scaled_dot_product_attention(self.query(columns), self.key(columns), columns)[0]
        return self.value(mixed).T


class Weights(NamedTuple):
    """The network's weights for one layer width m, with h hidden units."""

    content: Tensor  # (h, m)
    style: Tensor  # (h, m)
    bias: Tensor  # (h, 1)
    mixture: Mixture | None
    output: Tensor  # (2, h)
    output_bias: Tensor  # (2, 1)


def factored(weights: Weights, content: Factors, style: Factors, scratch: Scratch | None = None) -> Tensor:
    """(m_c, m_s) (2, n_in) of one layer from its factors, in the weights' dtype, without forming its updates.

    For dW = up @ down the input layer is W [dW_c; dW_s] = (W_c up_c) down_c + (W_s up_s) down_s.

    Parameters
    ----------
    scratch
        Memory to compute in, if no gradient is wanted.
    """
    to = scratch.cast if scratch else (lambda name, factor: factor.to(weights.bias.dtype))
    out = scratch("hidden", len(weights.bias), content.down.shape[1]) if scratch else None
    # Hidden units x columns throughout, summed in place: nothing is transposed, copied or allocated twice. There are
    # few calls, because threads that compute layers side by side wait for each other between calls.
    first = torch.mm(weights.content, to("up", content.up))
    hidden = torch.addmm(weights.bias, first, to("down", content.down), out=out)
    hidden.addmm_(torch.mm(weights.style, to("up", style.up)), to("down", style.down))
    if weights.mixture:
        hidden = hidden + weights.mixture(hidden)
    return torch.addmm(weights.output_bias, weights.output, hidden.relu_()).float()


def ends_with(path: str, names: Sequence[str]) -> bool:
    """True if the module path ends in one of the projection names."""
    return any(path.endswith(f".{name}") for name in names)


def read_pickle(path: Path | str) -> dict:
    """Read a file of `torch.save`: tensors and plain values only, never code. May raise `UserError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception:  # a damaged file may raise anything
        raise UserError(f"{path}: damaged or not a file of weights; delete it and make it again") from None
