"""Architectures for benchmarks that no installed package has: networks in which many branches are concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(n_out), nn.SiLU()
    )


class DenseLayer(nn.Module):
    """Bottleneck layer of a DenseNet over the concatenation of all layers before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """DenseNet (Huang et al. 2017): 121 with blocks (6, 12, 24, 16), 201 with (6, 12, 48, 32)."""

    def __init__(self, blocks: tuple[int, ...], growth: int = 32) -> None:
        super().__init__()
        width = 64
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, n in enumerate(blocks):
            self.blocks.append(nn.ModuleList(DenseLayer(width + j * growth, growth) for j in range(n)))
            width += n * growth
            if i < len(blocks) - 1:
                self.transitions.append(
                    nn.Sequential(
                        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)
                    )
                )
                width //= 2
        self.norm, self.classifier = nn.BatchNorm2d(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = torch.cat(features, 1)
            if i < len(self.transitions):
                x = self.transitions[i](x)
        return self.classifier(torch.relu(self.norm(x)).mean((2, 3)))


class Inception(nn.Module):
    """Four branches, concatenated, as in GoogLeNet."""

    def __init__(self, n_in: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = widths
        self.branches = nn.ModuleList(
            [
                conv(n_in, a, 1),
                nn.Sequential(conv(n_in, b // 2, 1), conv(b // 2, b)),
                nn.Sequential(conv(n_in, c // 2, 1), conv(c // 2, c), conv(c, c)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(n_in, d, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Nine inception blocks (Szegedy et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        plan = [(64, 128, 32, 32), (128, 192, 96, 64), (192, 208, 48, 64), (160, 224, 64, 64), (128, 256, 64, 64),
                (112, 288, 64, 64), (256, 320, 128, 128), (256, 320, 128, 128), (384, 384, 128, 128)]  # fmt: skip
        layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), conv(64, 192), nn.MaxPool2d(3, 2, 1)]
        width = 192
        for i, widths in enumerate(plan):
            if i in (2, 7):
                layers.append(nn.MaxPool2d(3, 2, 1))
            layers.append(Inception(width, widths))
            width = sum(widths)
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class UNetPlusPlus(nn.Module):
    """UNet++ (Zhou et al. 2018): every decoder node sees all nodes of its row and the one below."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.depth = len(widths)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.nodes = nn.ModuleDict()
        for column in range(self.depth):
            for row in range(self.depth - column):
                if column == 0:
                    n_in = 3 if row == 0 else widths[row - 1]
                else:
                    n_in = widths[row] * column + widths[row + 1]
                self.nodes[f"{row}{column}"] = nn.Sequential(conv(n_in, widths[row]), conv(widths[row], widths[row]))
        self.head = nn.Conv2d(widths[0], 19, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: dict[tuple[int, int], Tensor] = {}
        for column in range(self.depth):
            for row in range(self.depth - column):
                if column == 0:
                    inputs = x if row == 0 else self.pool(found[row - 1, 0])
                else:
                    row_before = [found[row, c] for c in range(column)]
                    inputs = torch.cat([*row_before, self.up(found[row + 1, column - 1])], 1)
                found[row, column] = self.nodes[f"{row}{column}"](inputs)
        return self.head(found[0, self.depth - 1])


class C2f(nn.Module):
    """The block of YOLOv8: split, a chain of bottlenecks, concatenate everything."""

    def __init__(self, n_in: int, n_out: int, n: int, *, add: bool) -> None:
        super().__init__()
        self.half, self.add = n_out // 2, add
        self.first, self.last = conv(n_in, n_out, 1), conv((2 + n) * self.half, n_out, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(conv(self.half, self.half), conv(self.half, self.half)) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).split((self.half, self.half), 1))
        for block in self.chain:
            y = block(parts[-1])
            parts.append(parts[-1] + y if self.add else y)
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """A detector in the manner of YOLOv8-s: C2f backbone, pyramid neck up and down, three heads."""

    def __init__(self, w: tuple[int, ...] = (32, 64, 128, 256, 512), n_outputs: int = 144) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, w[0], 3, 2), conv(w[0], w[1], 3, 2), C2f(w[1], w[1], 1, add=True))
        self.p3 = nn.Sequential(conv(w[1], w[2], 3, 2), C2f(w[2], w[2], 2, add=True))
        self.p4 = nn.Sequential(conv(w[2], w[3], 3, 2), C2f(w[3], w[3], 2, add=True))
        self.p5 = nn.Sequential(conv(w[3], w[4], 3, 2), C2f(w[4], w[4], 1, add=True))
        self.up = nn.Upsample(scale_factor=2)
        self.n4, self.n3 = C2f(w[4] + w[3], w[3], 1, add=False), C2f(w[3] + w[2], w[2], 1, add=False)
        self.d4, self.d5 = conv(w[2], w[2], 3, 2), conv(w[3], w[3], 3, 2)
        self.m4, self.m5 = C2f(w[2] + w[3], w[3], 1, add=False), C2f(w[3] + w[4], w[4], 1, add=False)
        self.heads = nn.ModuleList(
            nn.Sequential(conv(n, 64), conv(64, 64), nn.Conv2d(64, n_outputs, 1)) for n in (w[2], w[3], w[4])
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        m4 = self.m4(torch.cat([self.d4(n3), n4], 1))
        m5 = self.m5(torch.cat([self.d5(m4), p5], 1))
        return [head(level) for head, level in zip(self.heads, (n3, m4, m5), strict=True)]
