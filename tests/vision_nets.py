"""Small vision nets, each with a way of writing code that the pruned copy of a class must live with.

They are written as such nets usually are: widths in attributes, sizes taken from ``x.shape`` in ``forward``, splits by
``chunk`` and slices, methods beside ``forward``, branches that run in training only. :data:`NETS` holds them by name;
``tests/hosts/torch/test_class_kept.py`` tries some of them, ``tools/proofs/class_kept.py`` all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_CLASSES = 5


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A convolution with its norm and activation."""
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), act())


class Classifier(nn.Module):
    """A stem, one body after the other, pooling and a head; ``features`` is a method of the user's own."""

    def __init__(self, *bodies: nn.Module, width: int = 16, out: int | None = None) -> None:
        super().__init__()
        self.stem = conv(3, width, 3, 2)
        self.bodies = nn.ModuleList(bodies)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(out or width, N_CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map."""
        x = self.stem(x)
        for body in self.bodies:
            x = body(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.features(x).mean((2, 3))))


class Bottleneck(nn.Module):
    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(c, hidden, 1), conv(hidden, c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Halves by ``chunk``, all intermediate results are joined."""

    def __init__(self, i: int, o: int, n: int = 2) -> None:
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = conv(i, 2 * self.c, 1), conv((2 + n) * self.c, o, 1)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))

    def forward_split(self, x: Tensor) -> Tensor:
        """The same by sizes, as exporters want it."""
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Csp(nn.Module):
    """Halves by ``split`` with a size from the tensor."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand = conv(c, c * 2, 1)
        self.block = nn.Sequential(Bottleneck(c, c), Bottleneck(c, c))
        self.join = conv(2 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        xs, xb = x.split(x.shape[1] // 2, dim=1)
        return self.join(torch.cat([xs, self.block(xb)], 1))


class C2psa(nn.Module):
    """Split by a list of attributes, attention on one half."""

    def __init__(self, c: int, heads: int = 4) -> None:
        super().__init__()
        self.c = c // 2
        self.cv1, self.cv2 = conv(c, 2 * self.c, 1), conv(2 * self.c, c, 1)
        self.attn = ConvAttention(self.c, heads)
        self.ffn = nn.Sequential(conv(self.c, self.c * 2, 1), conv(self.c * 2, self.c, 1, act=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        return self.cv2(torch.cat((a, b), 1))


class ConvAttention(nn.Module):
    """Attention over positions of a map; queries and keys are narrower than values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = conv(dim, dim + self.key_dim * num_heads * 2, 1, act=nn.Identity)
        self.proj, self.pe = conv(dim, dim, 1, act=nn.Identity), conv(dim, dim, 3, groups=dim, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(-1)
        x = (v @ attn.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(x)


class Res2Block(nn.Module):
    """Equal splits that are convolved one after the other."""

    def __init__(self, c: int, width: int = 8, scales: int = 4) -> None:
        super().__init__()
        self.width, self.scales = width, scales
        self.conv1, self.conv3 = conv(c, width * scales, 1), conv(width * scales, c, 1, act=nn.Identity)
        self.convs = nn.ModuleList(conv(width, width) for _ in range(scales - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.conv1(x), self.width, 1)
        sp, out = parts[0], []
        for i, each in enumerate(self.convs):
            sp = each(sp if i == 0 else sp + parts[i])
            out.append(sp)
        out.append(parts[self.scales - 1])
        return F.relu(x + self.conv3(torch.cat(out, 1)))


class SelectiveKernel(nn.Module):
    """Input halves for two kernels, weighed by a softmax over the branches."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.n = 2
        self.before = conv(c, c * 2, 1)
        self.paths = nn.ModuleList([conv(c, c * 2, 3), conv(c, c * 2, 5)])
        self.reduce, self.select = conv(c * 2, 8, 1), nn.Conv2d(8, c * 4, 1, bias=False)
        self.after = conv(c * 2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.chunk(self.before(x), self.n, 1)
        u = torch.stack([path(half) for path, half in zip(self.paths, halves, strict=True)], 1)
        a = self.select(self.reduce(u.sum(1).mean((2, 3), keepdim=True)))
        b, c, h, w = a.shape
        a = a.view(b, self.n, c // self.n, h, w).softmax(1)
        return x + self.after((u * a).sum(1))


class ShuffleUnit(nn.Module):
    """One half passes, channels are shuffled."""

    def __init__(self, c: int) -> None:
        super().__init__()
        half = c // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), conv(half, half, 3, groups=half, act=nn.Identity), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Elan(nn.Module):
    """Layers whose results are all joined; the first two from the same input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = conv(c, c // 2, 1), conv(c, c // 2, 1)
        self.c, self.d = conv(c // 2, c // 2), conv(c // 2, c // 2)
        self.join = conv(c * 2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.a(x), self.b(x)
        x3 = self.c(x2)
        return self.join(torch.cat([x1, x2, x3, self.d(x3)], 1))


class GElan(nn.Module):
    """As YOLOv9's: halves by ``chunk`` of the first layer."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c // 2
        self.cv1, self.cv2, self.cv3 = conv(c, c, 1), conv(c // 2, c // 2), conv(c // 2, c // 2)
        self.cv4 = conv(c * 2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in (self.cv2, self.cv3))
        return self.cv4(torch.cat(y, 1))


class SplitDepthwise(nn.Module):
    """EdgeNeXt's encoder: pieces by ``chunk``, then attention between channels."""

    def __init__(self, c: int, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scales = heads, 2
        width = max(math.ceil(c / 2), math.floor(c // 2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(1))
        self.norm = nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, c * 3), nn.Linear(c, c)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        spx = x.chunk(self.scales, dim=1)
        sp, out = spx[0], []
        for i, each in enumerate(self.convs):
            sp = each(sp if i == 0 else sp + spx[i])
            out.append(sp)
        x = torch.cat((*out, spx[-1]), 1)
        b, c, h, w = x.shape
        x = x.reshape(b, c, h * w).permute(0, 2, 1)
        x = x + self.attention(self.norm(x))
        x = x.reshape(b, h, w, c)
        return shortcut + self.mlp(x).permute(0, 3, 1, 2)

    def attention(self, x: Tensor) -> Tensor:
        """Between channels."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        x = (attn.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        return self.proj(x)


class RepBlock(nn.Module):
    """Three branches in training; ``fuse`` makes one convolution of them."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.groups = i, o, stride, 1
        self.large, self.small = conv(i, o, 3, stride, act=nn.Identity), conv(i, o, 1, stride, act=nn.Identity)
        self.same = nn.BatchNorm2d(i) if i == o and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x) + self.small(x)
        return F.relu(y if self.same is None else y + self.same(x))

    def fused(self) -> nn.Conv2d:
        """One convolution that computes the same in evaluation mode."""
        found = nn.Conv2d(self.in_channels, self.out_channels, 3, self.stride, 1, groups=self.groups)
        kernel, bias = torch.zeros_like(found.weight), torch.zeros(self.out_channels)
        eye = torch.zeros_like(found.weight)
        eye[range(self.out_channels), range(self.in_channels) if self.same is not None else 0, 1, 1] = 1
        for branch in (self.large, self.small, self.same):
            if branch is None:
                continue
            bn = branch if isinstance(branch, nn.BatchNorm2d) else branch[1]
            weight = eye if bn is branch else branch[0].weight
            t = bn.weight / (bn.running_var + bn.eps).sqrt()
            pad = (3 - weight.shape[-1]) // 2
            kernel += F.pad(weight * t[:, None, None, None], [pad] * 4)
            bias += bn.bias - bn.running_mean * t
        found.weight.data.copy_(kernel)
        found.bias.data.copy_(bias)
        return found


class Attention(nn.Module):
    """As in most vision transformers: the inner width goes back into the width of the input by ``reshape(B, N, C)``."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C)))


class FoldedAttention(nn.Module):
    """Heads beside the batch, three pieces of equal width by a number that the input gives."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        d = c // self.heads
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, d)).permute(2, 0, 3, 1, 4)
        q, k, v = (y.reshape(b * self.heads, n, d) for y in qkv)
        attn = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * d**-0.5, -1)
        return self.proj(torch.bmm(attn, v).view(b, self.heads, n, d).transpose(1, 2).reshape(b, n, c))


class BeitAttention(nn.Module):
    """A bias table for relative positions, a bias without one for keys, ``reshape(B, N, C)``."""

    def __init__(self, dim: int, num_heads: int = 4, n: int = 17) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.table = nn.Parameter(torch.randn(2 * n - 1, num_heads) * 0.1)
        index = torch.arange(n)
        self.register_buffer("index", index[:, None] - index[None, :] + n - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        qkv = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1)
        attn = (((q * self.scale) @ k.transpose(-2, -1)) + bias[None]).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class ClassAttention(nn.Module):
    """CaiT's: only the class token asks."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        k = self.k(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        v = self.v(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        x_cls = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x_cls.transpose(1, 2).reshape(B, 1, C))


class Block(nn.Module):
    """Attention and MLP with layer scales."""

    def __init__(self, dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(dim), nn.LayerNorm(dim), attn
        self.mlp = nn.Sequential(nn.Linear(dim, dim * 4), nn.GELU(), nn.Dropout(0.1), nn.Linear(dim * 4, dim))
        self.gamma = nn.Parameter(torch.ones(dim) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassBlock(Block):
    """The class token alone goes on."""

    def forward(self, x: Tensor) -> Tensor:
        cls = x[:, :1] + self.gamma * self.attn(self.norm1(x))
        return torch.cat((cls + self.mlp(self.norm2(cls)), x[:, 1:]), 1)


class Vit(nn.Module):
    """Patches, a class token, blocks."""

    def __init__(self, *blocks: nn.Module, dim: int = 32) -> None:
        super().__init__()
        self.embed_dim = self.num_features = dim
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 17, dim) * 0.1)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class SelfAttention(nn.Module):
    """torch's own attention layer, with and without weights."""

    def __init__(self, dim: int, *, need_weights: bool = False) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.mha = nn.MultiheadAttention(dim, 4, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=self.need_weights)[0]


class Decoder(nn.Module):
    """Learned queries that look at a feature map, as in DETR: sequence first, keys of another length."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, c, 3, 4), conv(c, c, 3, 2))
        layer = nn.TransformerDecoderLayer(c, 4, 64, dropout=0.1)
        self.decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(c))
        self.query, self.head = nn.Embedding(6, c), nn.Linear(c, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.stem(x).flatten(2).permute(2, 0, 1)
        query = self.query.weight.unsqueeze(1).repeat(1, x.shape[0], 1)
        return self.head(self.decoder(query, memory)).transpose(0, 1)


class DiT(nn.Module):
    """A diffusion transformer: sine embeddings of a time step, modulation by six pieces, unpatchify."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.frequency_size = 32
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.time = nn.Sequential(nn.Linear(self.frequency_size, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.attn, self.mod = Attention(dim), nn.Linear(dim, 6 * dim)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, dim * 4), nn.GELU(), nn.Linear(dim * 4, dim))
        self.last = nn.Linear(dim, 4 * 4 * 3)

    def embedding(self, t: Tensor) -> Tensor:
        """Of time steps."""
        half = self.frequency_size // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        args = t[:, None].float() * freqs[None]
        return torch.cat([args.cos(), args.sin()], -1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.patch(x).flatten(2).transpose(1, 2)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mod(F.silu(self.time(self.embedding(t)))).chunk(6, 1)
        x = x + gate1[:, None] * self.attn(self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None])
        x = x + gate2[:, None] * self.mlp(self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None])
        x = self.last(x).reshape(b, h // 4, w // 4, 4, 4, 3)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, 3, h, w)


class WaveNet(nn.Module):
    """Gated convolutions with skip paths; the last residual goes nowhere."""

    def __init__(self, c: int = 16, n: int = 3) -> None:
        super().__init__()
        self.residual_channels = c
        self.start = nn.Conv2d(3, c, 1)
        self.gates = nn.ModuleList(nn.Conv2d(c, 2 * c, 3, padding=1) for _ in range(n))
        self.outs = nn.ModuleList(nn.Conv2d(c, 2 * c, 1) for _ in range(n))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.start(x), []
        for gate, out in zip(self.gates, self.outs, strict=True):
            filtered, gated = gate(x).chunk(2, 1)
            residual, skip = out(torch.tanh(filtered) * torch.sigmoid(gated)).chunk(2, 1)
            x = (x + residual) / math.sqrt(2.0)
            skips.append(skip)
        return self.end(torch.stack(skips).sum(0))


class ConvNextBlock(nn.Module):
    """Channels last inside, a layer scale."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.gamma = nn.Parameter(1e-1 * torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pw2(F.gelu(self.pw1(y)))
        return x + y.permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """MobileNetV3's, with squeeze and excitation."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.use_res_connect = True
        self.expand, self.dw = conv(c, hidden, 1, act=nn.Hardswish), conv(hidden, hidden, 5, groups=hidden)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden // 4, 1), nn.ReLU(), nn.Conv2d(hidden // 4, hidden, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = conv(hidden, c, 1, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dw(self.expand(x))
        y = self.project(y * self.se(y))
        return x + y if self.use_res_connect else y


class Ghost(nn.Module):
    """Cheap features beside dear ones; what is too much is cut off."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.out_channels = o
        self.primary, self.cheap = conv(i, math.ceil(o / 2), 1), conv(math.ceil(o / 2), math.ceil(o / 2), 3, 1, o // 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], 1)[:, : self.out_channels]


class HighResolution(nn.Module):
    """Two resolutions that exchange features."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down = conv(c, 2 * c, 3, 2)
        self.high, self.low = Bottleneck(c, c), Bottleneck(2 * c, c)
        self.up = nn.Sequential(nn.Conv2d(2 * c, c, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(self.down(x))
        high = self.high(x)
        return F.relu(high + F.interpolate(self.up(low), size=high.shape[-2:], mode="nearest"))


class UNet(nn.Module):
    """Skips by concatenation, up by interpolation; an auxiliary output in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 32), conv(32, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.d, self.e = conv(64, 32), conv(48, 16)
        self.head, self.aux = nn.Conv2d(16, N_CLASSES, 1), nn.Conv2d(32, N_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        d = self.d(torch.cat([self.up(self.c(F.max_pool2d(b, 2))), b], 1))
        e = self.e(torch.cat([F.interpolate(d, scale_factor=2, mode="bilinear"), a], 1))
        return (self.head(e), self.aux(d)) if self.training else self.head(e)


class SuperResolution(nn.Module):
    """Residual blocks and a pixel shuffle in the middle."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.first, self.body = conv(3, c), nn.Sequential(Bottleneck(c, c), Bottleneck(c, c))
        self.up = nn.Sequential(nn.Conv2d(c, c * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(c))
        self.last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.up(x + self.body(x)))


class DenseBlock(nn.Module):
    """Every layer sees all before it."""

    def __init__(self, c: int, growth: int = 8, n: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c + i * growth), nn.ReLU(), nn.Conv2d(c + i * growth, growth, 3, padding=1))
            for i in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class WindowBlock(nn.Module):
    """Swin's: windows, a shift by ``roll``, a table of relative positions."""

    def __init__(self, dim: int, heads: int = 4, window: int = 4, shift: int = 2) -> None:
        super().__init__()
        self.dim, self.window, self.shift, self.num_heads = dim, window, shift, heads
        self.norm1, self.norm2, self.attn = nn.LayerNorm(dim), nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        s = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(B, H // s, s, W // s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, C)
        y = self.attn(y).view(B, H // s, W // s, s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Patch merging by strided slices."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Two stages of windows."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.stages = nn.Sequential(WindowBlock(dim, shift=0), WindowBlock(dim), Merging(dim), WindowBlock(2 * dim, 8))
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.patch(x).permute(0, 2, 3, 1))).mean((1, 2)))


class MixerBlock(nn.Module):
    """Tokens and channels are mixed in turn."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        self.channels = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class GatedMlp(nn.Module):
    """gMLP: one half gates the other, along the tokens."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)
        self.gate_norm, self.along = nn.LayerNorm(2 * dim), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.fc1(self.norm(x))).chunk(2, dim=-1)
        v = self.along(self.gate_norm(v).transpose(-1, -2)).transpose(-1, -2)
        return x + self.fc2(u * v)


class PoolBlock(nn.Module):
    """PoolFormer: average pooling in place of attention."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, c), nn.GroupNorm(1, c)
        self.pool, self.mlp = (
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.Sequential(conv(c, 4 * c, 1), nn.Conv2d(4 * c, c, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.pool(y) - y
        return x + self.mlp(self.norm2(x))


class Odd(nn.Module):
    """Attributes that equal widths by chance and are needed as they are, and one that must follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stride, self.num_classes, self.max_det, self.inner = 32, 32, 64, 64
        self.body = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64))
        self.head = nn.Linear(64 * 4, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.body(x), 2)
        return self.head(x.view(x.shape[0], self.inner * 4)) * self.stride

    def decode(self, scores: Tensor) -> Tensor:
        """So many of the best."""
        return scores.topk(min(self.max_det, self.num_classes), -1).indices


class GluConv(nn.Module):
    """A gated convolution, halves by slices of a known width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.inner, self.out = conv(c, 2 * c, 3, act=nn.Identity), conv(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        c = y.shape[1] // 2
        return x + self.out(torch.sigmoid(y[:, :c]) * y[:, c:] + F.relu(y[:, c:]))


class HalfMixed(nn.Module):
    """Halves by slices of a known width that go different ways."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand, self.left, self.right = conv(c, 2 * c, 1), conv(c, c), conv(c, c, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        n = y.shape[1] // 2
        return x + self.left(y[:, :n]) + self.right(y[:, n:])


class Sections(nn.Module):
    """Three pieces by ``tensor_split``, each with a kernel of its own."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand = conv(c, 3 * c, 1)
        self.paths = nn.ModuleList(conv(c, c, k) for k in (1, 3, 5))
        self.join = conv(3 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.tensor_split(self.expand(x), 3, dim=1)
        return x + self.join(torch.cat([path(part) for path, part in zip(self.paths, parts, strict=True)], 1))


class Encoder(nn.Module):
    """torch's own encoder layers."""

    def __init__(self, dim: int = 32, *, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


Made = tuple[nn.Module, tuple[Tensor, ...]]


def _image(net: nn.Module, size: int = 32) -> Made:
    return net, (torch.randn(1, 3, size, size),)


NETS: dict[str, Callable[[], Made]] = {
    "c2f": lambda: _image(Classifier(C2f(16, 32), C2f(32, 32), out=32)),
    "csp": lambda: _image(Classifier(Csp(16), Csp(16))),
    "c2psa": lambda: _image(Classifier(conv(16, 32, 3, 2), C2psa(32), out=32)),
    "res2net": lambda: _image(Classifier(Res2Block(16), Res2Block(16))),
    "sknet": lambda: _image(Classifier(SelectiveKernel(16), SelectiveKernel(16))),
    "shufflenet": lambda: _image(Classifier(conv(16, 32, 3, 2), ShuffleUnit(32), ShuffleUnit(32), out=32)),
    "elan": lambda: _image(Classifier(Elan(16), Elan(16))),
    "gelan": lambda: _image(Classifier(GElan(16), GElan(16))),
    "edgenext": lambda: _image(Classifier(conv(16, 32, 3, 2), SplitDepthwise(32), out=32)),
    "repvgg": lambda: _image(Classifier(RepBlock(16, 32, 2), RepBlock(32, 32), out=32)),
    "vit": lambda: _image(Vit(Block(32, Attention(32)), Block(32, Attention(32)))),
    "folded heads": lambda: _image(Vit(Block(32, FoldedAttention(32)), Block(32, FoldedAttention(32)))),
    "beit": lambda: _image(Vit(Block(32, BeitAttention(32)), Block(32, BeitAttention(32)))),
    "cait": lambda: _image(Vit(Block(32, Attention(32)), ClassBlock(32, ClassAttention(32)))),
    "multihead": lambda: _image(Vit(Block(32, SelfAttention(32)), Block(32, SelfAttention(32, need_weights=True)))),
    "encoder": lambda: _image(Vit(Encoder(), Encoder(norm_first=True))),
    "detr": lambda: _image(Decoder()),
    "dit": lambda: (DiT(), (torch.randn(1, 3, 16, 16), torch.tensor([7]))),
    "wavenet": lambda: _image(WaveNet(), 16),
    "convnext": lambda: _image(Classifier(ConvNextBlock(16), conv(16, 32, 2, 2), ConvNextBlock(32), out=32)),
    "mobilenet": lambda: _image(Classifier(InvertedResidual(16, 64), InvertedResidual(16, 64))),
    "ghost": lambda: _image(Classifier(Ghost(16, 32), Ghost(32, 32), out=32)),
    "hrnet": lambda: _image(Classifier(HighResolution(16), HighResolution(16))),
    "unet": lambda: _image(UNet()),
    "superres": lambda: _image(SuperResolution(), 16),
    "densenet": lambda: _image(Classifier(DenseBlock(16), conv(48, 24, 1), DenseBlock(24), out=56)),
    "swin": lambda: _image(Swin()),
    "mixer": lambda: _image(Vit(MixerBlock(32, 17), MixerBlock(32, 17))),
    "gmlp": lambda: _image(Vit(GatedMlp(32, 17), GatedMlp(32, 17))),
    "poolformer": lambda: _image(Classifier(PoolBlock(16), PoolBlock(16))),
    "odd": lambda: _image(Odd()),
    "glu": lambda: _image(Classifier(GluConv(16), GluConv(16))),
    "halves": lambda: _image(Classifier(HalfMixed(16), HalfMixed(16))),
    "sections": lambda: _image(Classifier(Sections(16), Sections(16))),
}
"""A net and its example inputs, by name."""


def made(name: str, seed: int = 0) -> Made:
    """A net with weights and statistics of norms that are not all alike, in evaluation mode."""
    torch.manual_seed(seed)
    net, inputs = NETS[name]()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return net.eval(), inputs


def train_step(net: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """One step on a batch of two; how many statistics of norms moved.

    Raises:
        ValueError: No parameter, or no statistic of a norm that has some, has moved.
    """
    batch = tuple(torch.cat([x, x.flip(-1) if x.ndim > 1 else x + 1]) for x in inputs)
    net.train()
    before = {name: value.clone() for name, value in (*net.named_parameters(), *net.named_buffers())}
    outputs = net(*batch)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if any(len(output) != 2 for output in outputs):
        raise ValueError(f"outputs of {[tuple(output.shape) for output in outputs]} for a batch of 2")
    sum(output.square().mean() for output in outputs).backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    after = dict((*net.named_parameters(), *net.named_buffers()))
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    norms = [f"{name}.running_var" for name, each in net.named_modules() if isinstance(each, nn.BatchNorm2d)]
    if not moved or (norms and not set(norms) & set(moved)):
        raise ValueError("nothing has moved in a training step")
    return len(set(norms) & set(moved))
