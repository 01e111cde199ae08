"""Mobile nets for benchmarks, with random weights: MobileNetV3-small and EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Activation = type[nn.Module]


def conv(
    n_in: int, n_out: int, kernel: int, act: Activation | None, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    layers = [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class Excitation(nn.Module):
    """Squeeze and excitation by convolutions."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.act, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


class Inverted(nn.Module):
    """Inverted residual block: widened, convolved by channel, narrowed again."""

    def __init__(
        self, n_in: int, inner: int, n_out: int, kernel: int, act: Activation, *, stride: int, excited: bool
    ) -> None:
        super().__init__()
        self.adds = stride == 1 and n_in == n_out
        self.block = nn.Sequential(
            *([conv(n_in, inner, 1, act)] if inner != n_in else []),
            conv(inner, inner, kernel, act, stride=stride, groups=inner),
            *([Excitation(inner, (inner // 4 + 7) // 8 * 8)] if excited else []),
            conv(inner, n_out, 1, None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.adds else y


class Mobile(nn.Module):
    """A stem, inverted blocks, a last convolution, and a classifier."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], last: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.last, self.head = stem, nn.Sequential(*blocks), last, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def mobilenet_v3_small() -> Mobile:
    """Howard et al. 2019, table 2."""
    relu, swish = nn.ReLU, nn.Hardswish
    rows = (
        (3, 16, 16, True, relu, 2), (3, 72, 24, False, relu, 2), (3, 88, 24, False, relu, 1),
        (5, 96, 40, True, swish, 2), (5, 240, 40, True, swish, 1), (5, 240, 40, True, swish, 1),
        (5, 120, 48, True, swish, 1),
        (5, 144, 48, True, swish, 1), (5, 288, 96, True, swish, 2), (5, 576, 96, True, swish, 1),
        (5, 576, 96, True, swish, 1),
    )  # fmt: skip
    blocks, width = [], 16
    for kernel, inner, n_out, excited, act, stride in rows:
        blocks.append(Inverted(width, inner, n_out, kernel, act, stride=stride, excited=excited))
        width = n_out
    head = nn.Sequential(nn.Linear(576, 1024), swish(), nn.Dropout(0.2), nn.Linear(1024, 1000))
    return Mobile(conv(3, 16, 3, swish, stride=2), blocks, conv(width, 576, 1, swish), head)


def efficientnet_lite0() -> Mobile:
    """EfficientNet-B0 (Tan and Le 2019) without excitation and with ReLU6."""
    rows = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
            (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))  # fmt: skip
    blocks, width = [], 32
    for widen, kernel, stride, n_out, repeats in rows:
        for i in range(repeats):
            step = stride if i == 0 else 1
            blocks.append(Inverted(width, widen * width, n_out, kernel, nn.ReLU6, stride=step, excited=False))
            width = n_out
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))
    return Mobile(conv(3, 32, 3, nn.ReLU6, stride=2), blocks, conv(width, 1280, 1, nn.ReLU6), head)
