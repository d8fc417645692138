"""Cost of training and sampling from a base model's shapes: work in TFLOP, sizes in GB."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Counts:
    """A base model in numbers.

    Attributes
    ----------
    parameters : of the UNet.
    lora_per_rank : numbers in a LoRA for each of its ranks.
    forward, encode, decode : TFLOP of one picture: a forward pass of the UNet, encoding and decoding by the VAE.
    """

    parameters: int
    lora_per_rank: int
    forward: float = 0.0
    encode: float = 0.0
    decode: float = 0.0

    def scaled(self, area: float) -> Counts:
        """For pictures of other sizes: `area` is theirs, in areas of those that were counted."""
        return replace(self, forward=self.forward * area, encode=self.encode * area, decode=self.decode * area)

    def training(self, steps: int, batch_size: int, checkpointing: bool, pictures: int = 0) -> float:
        """TFLOP of DreamBooth, after encoding so many pictures.

        A step on a picture is a forward and a backward pass, whose weights are frozen, and with checkpointing another
        forward pass.
        """
        return steps * batch_size * (2 + checkpointing) * self.forward + pictures * self.encode

    def fitting(self, steps: int, batch_size: int, checkpointing: bool, relative: bool) -> float:
        """TFLOP of minimising Eq. 3 on content and style, which adds the adapters' own predictions.

        A `relative` fidelity also wants those of the base alone.
        """
        return steps * batch_size * 2 * (3 + checkpointing + relative) * self.forward

    def sampling(self, steps: int, guidance: float) -> float:
        """TFLOP of one image; guidance above 1 asks the model twice a step."""
        return steps * (2 if guidance > 1 else 1) * self.forward + self.decode

    def lora(self, rank: int) -> float:
        """GB of a LoRA's file, in float32."""
        return self.lora_per_rank * rank * 4 / 1e9

    def training_memory(self, rank: int, width: int, eight_bit_adam: bool) -> float:
        """GB of weights of `width` bytes each, and of a LoRA's factors with gradients and AdamW's state."""
        return (self.parameters * width + self.lora_per_rank * rank * (10 if eight_bit_adam else 16)) / 1e9
