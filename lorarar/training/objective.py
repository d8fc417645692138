"""The merging loss, Eq. 3 of LoRA.rar, which ZipLoRA first proposed: written once, for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lorarar.lora.adapter import Adapter

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone
    from lorarar.training.references import Draw

Fidelity = Literal["norm", "mse", "relative"]
Orthogonality = Literal["dot", "cosine"]


class MergingLoss(NamedTuple):
    """The loss and its three terms, scalars; `orthogonality` is before lambda."""

    total: Tensor
    content: Tensor
    style: Tensor
    orthogonality: Tensor

    def detach(self) -> MergingLoss:
        """The same numbers without their history."""
        return MergingLoss(*(term.detach() for term in self))


@contextmanager
def merging_loss(
    backbone: Backbone,
    content: Adapter,
    style: Adapter,
    merged: Adapter,
    coefficients: Mapping[str, tuple[Tensor, Tensor]],
    content_draw: Draw,
    style_draw: Draw,
    *,
    weight: float = 0.01,
    fidelity: Fidelity = "norm",
    orthogonality: Orthogonality = "dot",
) -> Iterator[MergingLoss]:
    """Eq. 3: the merged model predicts as the content model on content, as the style model on style.

        |(D + L_m)(x_c, p_c) - (D + L_c)(x_c, p_c)|
        + |(D + L_m)(x_s, p_s) - (D + L_s)(x_s, p_s)| + lambda |m_c . m_s|

    Gradients flow through `merged` and `coefficients` only. Call backward() inside the `with` block:
    gradient checkpointing repeats the forward pass and needs `merged` applied.

    Parameters
    ----------
    merged
        L_m, made of `content` and `style` with `coefficients`.
    coefficients
        The learned (m_c, m_s) alone: constants have no part in the last term.
    weight
        lambda.
    fidelity
        "norm", the paper's L2 norm of the difference: taken over each image's prediction, then averaged over
        the batch, so that the loss does not depend on batch size. "mse": mean squared error, as in the
        released code. "relative", which is ours: the norm as a share of what the adapter itself changes,
        |(D + L)(x, p) - D(x, p)|, so that the adapter that changes more does not outweigh the other.
    orthogonality
        "dot", the paper's |m_c . m_s|; "cosine", the same of the normalised vectors, as in the released code.
        Either way summed over layers.
    """
    both = (
        torch.cat([content_draw.latents, style_draw.latents]),
        torch.cat([content_draw.timesteps, style_draw.timesteps]),
        content_draw.conditioning + style_draw.conditioning,
    )
    with torch.no_grad():
        with backbone.applied(content):
            content_target = backbone.predict(content_draw.latents, content_draw.timesteps, content_draw.conditioning)
        with backbone.applied(style):
            style_target = backbone.predict(style_draw.latents, style_draw.timesteps, style_draw.conditioning)
        targets = torch.cat([content_target, style_target])
        effects = targets - backbone.predict(*both) if fidelity == "relative" else targets
    with backbone.applied(merged):
        differences = backbone.predict(*both) - targets
        sizes = len(content_target), len(style_target)
        content_term, style_term = map(_FIDELITY[fidelity], differences.split(sizes), effects.split(sizes))
        overlap = torch.stack([_OVERLAP[orthogonality](m_c, m_s) for m_c, m_s in coefficients.values()]).sum()
        yield MergingLoss(content_term + style_term + weight * overlap, content_term, style_term, overlap)


_FIDELITY: dict[Fidelity, Callable[[Tensor, Tensor], Tensor]] = {
    "norm": lambda difference, _: difference.flatten(1).norm(dim=1).mean(),
    "mse": lambda difference, _: difference.square().mean(),
    "relative": lambda difference, effect: (difference.flatten(1).norm(dim=1) / effect.flatten(1).norm(dim=1)).mean(),
}
_OVERLAP: dict[Orthogonality, Callable[[Tensor, Tensor], Tensor]] = {
    "dot": lambda m_c, m_s: (m_c @ m_s).abs(),
    "cosine": lambda m_c, m_s: cosine_similarity(m_c, m_s, dim=0).abs(),
}
