"""The demo network: a ResNet-20 for Fashion-MNIST, trained by `tools/demo/train.py` to be prunable.

This file holds the architecture, the input convention and the loader of the weights beside it; the training
and its group-lasso penalty live in `tools/demo/train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from graphprune.demo import PIXEL_MEAN, PIXEL_STD

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STAGE_WIDTHS: Final = (16, 32, 64)
BLOCKS_PER_STAGE: Final = 3
N_CLASSES: Final = 10
WEIGHTS_PATH: Final = Path(__file__).with_name("demo_net.safetensors")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, after He et al. 2016 (arXiv:1512.03385, section 4.2, option B).

    The shortcut is the identity where the shapes agree and a 1x1 convolution with BN where they do not.
    """

    def __init__(self, n_in: int, n_out: int, *, stride: int) -> None:
        """Build the block.

        Args:
            n_in: Channels read from the residual stream.
            n_out: Channels between the two convolutions and written to the residual stream.
            stride: Stride of the first convolution and of the projection.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(n_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `x: n ci h w` to `n co h/stride w/stride`."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class DemoNet(nn.Module):
    """A ResNet of depth 6n + 2 = 20 for 28x28 grey images; its stem has stride 2 to keep CPU runs short."""

    def __init__(self) -> None:
        """Build the network with fresh random weights."""
        super().__init__()
        self.stem = nn.Conv2d(1, STAGE_WIDTHS[0], 3, stride=2, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(STAGE_WIDTHS[0])
        self.stages = nn.Sequential()
        n_in = STAGE_WIDTHS[0]
        for width in STAGE_WIDTHS:
            stage = nn.Sequential()
            for _ in range(BLOCKS_PER_STAGE):
                stage.append(ResidualBlock(n_in, width, stride=1 if n_in == width else 2))
                n_in = width
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_in, N_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images `image: n 1 28 28` to logits `n 10`."""
        x = torch.relu(self.stem_bn(self.stem(image)))
        x = self.stages(x)
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def preprocess(images: npt.NDArray[np.uint8]) -> Tensor:
    """Turn `images: n 28 28` of bytes into the normalised float32 input `n 1 28 28` of the network."""
    pixels = torch.from_numpy(images).unsqueeze(1).float() / 255
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def load_demo_model() -> DemoNet:
    """Return the trained network in eval mode, with the weights of `demo_net.safetensors` beside this file."""
    model = DemoNet()
    model.load_state_dict(load_file(WEIGHTS_PATH))
    return model.eval()
