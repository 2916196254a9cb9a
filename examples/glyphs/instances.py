"""Drawings varied at random: turned, scaled, sheared, shifted, thicker or thinner, on paper with noise."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """The largest of each change; each image draws its own."""

    turn: float = 12.0  # degrees
    scale: float = 0.15  # up or down
    shear: float = 0.2
    shift: float = 0.1  # of half the image, in each direction


AUGMENTATION = Affine(
    turn=8.0, scale=0.1, shear=0.1, shift=0.08
)  # of a training image, in addition, at each step


def instances(drawings: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, 1, 24, 24]`, most values in [0, 1], of drawings `[N, 48, 48]`: one image each."""
    count = len(drawings)
    x = affine(drawings[:, None], draws, Affine())  # [N, 1, 48, 48]
    x = F.avg_pool2d(thickness(x, draws), 2)  # [N, 1, 24, 24]
    gain = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=draws)
    paper = 0.4 * torch.rand(count, 1, 3, 3, generator=draws)
    paper = F.interpolate(paper, size=x.shape[-1], mode="bilinear", align_corners=True)  # [N, 1, 24, 24]
    x = paper + x * gain * (1 - paper)
    noise = 0.12 * torch.rand(count, 1, 1, 1, generator=draws)
    return x + noise * torch.randn(x.shape, generator=draws)


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, 1, H, W]` turned, scaled, sheared and shifted by a little more, with some noise."""
    x = affine(images, draws, AUGMENTATION)
    return x + 0.05 * torch.randn(x.shape, generator=draws)


def affine(images: Tensor, draws: torch.Generator, most: Affine) -> Tensor:
    """Images `[N, 1, H, W]`, each under an affine map of its own."""
    turn, wide, high, shear, right, down = torch.rand(6, len(images), generator=draws) * 2 - 1  # [N] each
    angle = turn * math.radians(most.turn)
    wide, high, shear = 1 + most.scale * wide, 1 + most.scale * high, most.shear * shear
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * wide, (shear - sin) * high, most.shift * right], 1),
        torch.stack([sin * wide, cos * high, most.shift * down], 1),
    ]
    maps = torch.stack(rows, 1)  # [N, 2, 3]
    return F.grid_sample(
        images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False
    )


def thickness(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, 1, H, W]`, each interpolated towards its dilation or its erosion by one pixel."""
    amount = torch.rand(len(images), 1, 1, 1, generator=draws) * 2 - 1
    thicker, thinner = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    images = images + amount.clamp(min=0) * (thicker - images)
    return images + 0.6 * (-amount).clamp(min=0) * (thinner - images)
