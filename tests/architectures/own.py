"""Networks for images, written after their papers, in small, and initialised as the papers or PyTorch do it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.architectures.blocks import (
    Apply,
    Beside,
    Places,
    Scale,
    Sum,
    Weighed,
    attending,
    conv_bn,
    conv_relu,
    he,
    head,
    mlp,
    normal,
    of_kind,
)
from tests.architectures.trials import SIDE, classified, fitted
from tests.architectures.zoo import own

_PHOTOS = classified((8, 3, SIDE, SIDE))


@own(_PHOTOS)
def alexnet() -> nn.Module:
    """Five convolutions with overlapping pools, three linear layers with dropout."""
    maps = [(3, 16, 5), (16, 32, 5), (32, 48, 3), (48, 32, 3), (32, 32, 3)]
    parts = [
        part for i, o, k in maps for part in (nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    ]
    dense = mlp(32, 64, 64, 10)
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(), *dense[:2], nn.Dropout(), *dense[2:])


def _vgg(*, normalised: bool) -> nn.Module:
    parts: list[nn.Module] = []
    for i, o in ((3, 16), (16, 16), (16, 32), (32, 32)):
        parts += conv_relu(i, o) if normalised else [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if i == o else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), mlp(128, 64, 10))


@own(_PHOTOS)
def vgg() -> nn.Module:
    """Pairs of small convolutions, in PyTorch's own initialisation."""
    return _vgg(normalised=False)


@own(_PHOTOS)
def vgg_he() -> nn.Module:
    """The same, drawn after He."""
    return he(_vgg(normalised=False), "fan_in")


@own(_PHOTOS)
def vgg_bn() -> nn.Module:
    """The same with batch normalisation."""
    return he(_vgg(normalised=True))


def _basic(i: int, o: int) -> nn.Module:
    body = nn.Sequential(conv_relu(i, o, stride=o // i), conv_bn(o, o))
    return nn.Sequential(Sum(body, conv_bn(i, o, 1, stride=o // i) if o > i else None), nn.ReLU())


def _bottleneck(i: int, o: int, groups: int = 1) -> nn.Module:
    body = nn.Sequential(conv_relu(i, o // 4, 1), conv_relu(o // 4, o // 4, groups=groups), conv_bn(o // 4, o, 1))
    return nn.Sequential(Sum(body, conv_bn(i, o, 1) if o != i else None), nn.ReLU())


@own(_PHOTOS)
def resnet_basic() -> nn.Module:
    """Residual blocks of two convolutions."""
    return he(nn.Sequential(conv_relu(3, 16), _basic(16, 16), _basic(16, 32), _basic(32, 32), head(32)))


@own(_PHOTOS)
def resnet_bottleneck() -> nn.Module:
    """Blocks of three convolutions, each of which begins as nothing: its last normalisation multiplies by zero."""
    net = he(nn.Sequential(conv_relu(3, 16), _bottleneck(16, 64), _bottleneck(64, 64), head(64)))
    for block in of_kind(net, Sum):
        nn.init.zeros_(block.body[-1][1].weight)
    return net


@own(_PHOTOS)
def resnext() -> nn.Module:
    """Blocks whose middle convolution is cut into groups."""
    return he(nn.Sequential(conv_relu(3, 16), _bottleneck(16, 64, 4), _bottleneck(64, 64, 4), head(64)))


@own(_PHOTOS)
def wide_resnet_preactivated() -> nn.Module:
    """Normalisation and ReLU before each convolution, dropout between the two."""

    def block(width: int) -> nn.Module:
        before = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        after = [nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        return Sum(nn.Sequential(*before, *after))

    stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    return he(nn.Sequential(stem, block(32), block(32), nn.BatchNorm2d(32), nn.ReLU(), head(32)))


@own(_PHOTOS)
def densenet() -> nn.Module:
    """Each layer sees what all before it have made."""

    def layer(width: int) -> nn.Module:
        norm = [nn.BatchNorm2d(width), nn.ReLU()]
        return Beside(
            nn.Identity(), nn.Sequential(*norm, conv_relu(width, 32, 1), nn.Conv2d(32, 8, 3, padding=1, bias=False))
        )

    narrow = [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)]
    grown = [layer(16 + 8 * i) for i in range(3)]
    regrown = [layer(20 + 8 * i) for i in range(3)]
    return he(
        nn.Sequential(conv_relu(3, 16), *grown, *narrow, *regrown, nn.BatchNorm2d(44), nn.ReLU(), head(44)), "fan_in"
    )


@own(_PHOTOS)
def inception() -> nn.Module:
    """Kernels of several sizes beside each other."""

    def block(i: int) -> nn.Module:
        small = nn.Sequential(conv_relu(i, 16, 1), conv_relu(16, 16))
        large = nn.Sequential(conv_relu(i, 8, 1), conv_relu(8, 16, 5))
        pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_relu(i, 16, 1))
        return Beside(conv_relu(i, 16, 1), small, large, pooled)

    net = nn.Sequential(conv_relu(3, 16, stride=2), block(16), nn.MaxPool2d(2), block(64), nn.Dropout(0.4), head(64))
    for layer in of_kind(net, nn.Conv2d, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
    return net


@own(_PHOTOS)
def squeezenet() -> nn.Module:
    """Narrow layers that feed wide ones, without any normalisation; the last convolution gives the classes."""

    def fire(i: int, narrow: int, wide: int) -> nn.Module:
        squeeze = nn.Sequential(nn.Conv2d(i, narrow, 1), nn.ReLU())
        ones, threes = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1)
        return nn.Sequential(squeeze, Beside(ones, threes), nn.ReLU())

    stem = [nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    net = he(nn.Sequential(*stem, fire(32, 8, 16), fire(32, 8, 16), fire(32, 12, 24), nn.Dropout(0.5)), "fan_in")
    last = nn.Conv2d(48, 10, 1)
    nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(net, last, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@own(_PHOTOS)
def mobilenet_v2() -> nn.Module:
    """Inverted residuals: wide in the middle, one kernel for each map, nothing non-linear at the narrow ends."""

    def block(i: int, o: int) -> nn.Module:
        wide = [*conv_bn(i, 6 * i, 1), nn.ReLU6(), *conv_bn(6 * i, 6 * i, groups=6 * i), nn.ReLU6()]
        body = nn.Sequential(*wide, *conv_bn(6 * i, o, 1))
        return Sum(body) if i == o else body

    stem, last = [*conv_bn(3, 16, stride=2), nn.ReLU6()], [*conv_bn(24, 64, 1), nn.ReLU6(), nn.Dropout(0.2), head(64)]
    net = he(nn.Sequential(*stem, block(16, 16), block(16, 24), block(24, 24), *last))
    nn.init.normal_(net[-1][-1].weight, std=0.01)
    return net


def _squeeze_and_excite(width: int, narrow: int) -> nn.Module:
    to_weights = [nn.Conv2d(width, narrow, 1), nn.SiLU(), nn.Conv2d(narrow, width, 1), nn.Sigmoid()]
    return Weighed(nn.Sequential(nn.AdaptiveAvgPool2d(1), *to_weights))


@own(_PHOTOS)
def efficientnet() -> nn.Module:
    """Inverted residuals that weigh their maps, with SiLU."""

    def block(i: int, o: int) -> nn.Module:
        wide = [*conv_bn(i, 4 * i, 1), nn.SiLU(), *conv_bn(4 * i, 4 * i, 5, groups=4 * i), nn.SiLU()]
        body = nn.Sequential(*wide, _squeeze_and_excite(4 * i, 4), *conv_bn(4 * i, o, 1))
        return Sum(body) if i == o else body

    last = [*conv_bn(24, 64, 1), nn.SiLU(), nn.Dropout(0.2), head(64)]
    return he(nn.Sequential(*conv_bn(3, 16, stride=2), nn.SiLU(), block(16, 16), block(16, 24), block(24, 24), *last))


@own(_PHOTOS)
def shufflenet() -> nn.Module:
    """Convolutions in groups, whose maps are mixed between them."""

    def mixed(x: Tensor) -> Tensor:
        return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)

    def block(width: int) -> nn.Module:
        narrow = width // 4
        first = [*conv_relu(width, narrow, 1, groups=4), Apply(mixed), *conv_bn(narrow, narrow, groups=narrow)]
        return nn.Sequential(Sum(nn.Sequential(*first, *conv_bn(narrow, width, 1, groups=4))), nn.ReLU())

    return he(nn.Sequential(conv_relu(3, 64, stride=2), block(64), block(64), block(64), head(64)))


class _MapNorm(nn.LayerNorm):
    """Normalises over the maps at each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@own(_PHOTOS)
def convnext() -> nn.Module:
    """Large kernels for each map, layer normalisation, and residual branches that begin at a millionth."""

    def block(width: int) -> nn.Module:
        each = nn.Conv2d(width, width, 7, padding=3, groups=width)
        mix = [nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)]
        return Sum(nn.Sequential(each, _MapNorm(width), *mix, Scale(width, 1, 1, begin=1e-6)))

    parts = [
        nn.Conv2d(3, 16, 4, 4),
        _MapNorm(16),
        block(16),
        _MapNorm(16),
        nn.Conv2d(16, 32, 2, 2),
        block(32),
        block(32),
    ]
    net = nn.Sequential(*parts, head(32))
    for layer in of_kind(net, nn.Conv2d, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return net


def _patches(width: int, side: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, side, side), nn.Flatten(2), Apply(lambda x: x.transpose(1, 2)))


@own(_PHOTOS)
def mlp_mixer() -> nn.Module:
    """Linear layers across places and across units, in turns."""

    def across(size: int, wide: int) -> list[nn.Module]:
        return [nn.Linear(size, wide), nn.GELU(), nn.Linear(wide, size)]

    def block(places: int, width: int) -> nn.Module:
        turn = Apply(lambda x: x.transpose(1, 2))
        of_places = Sum(nn.Sequential(nn.LayerNorm(width), turn, *across(places, 32), turn))
        return nn.Sequential(of_places, Sum(nn.Sequential(nn.LayerNorm(width), *across(width, 64))))

    net = nn.Sequential(
        _patches(32), block(16, 32), block(16, 32), nn.LayerNorm(32), Apply(lambda x: x.mean(1)), nn.Linear(32, 10)
    )
    for layer in of_kind(net, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(net[-1].weight)  # the head begins at zero, as in the paper's code
    return net


@own(_PHOTOS)
def vision_transformer() -> nn.Module:
    """Patches as words, in PyTorch's own initialisation."""
    body = [_patches(32), Places(16, 32), attending(32), attending(32), nn.LayerNorm(32)]
    return nn.Sequential(*body, Apply(lambda x: x.mean(1)), nn.Linear(32, 10))


@own(fitted((4, 3, SIDE, SIDE), (4, 2, SIDE, SIDE)))
def unet() -> nn.Module:
    """Down and up again, where each level also goes straight across."""

    def level(i: int, wide: int, inner: nn.Module, below: int) -> nn.Module:
        down, up = [nn.MaxPool2d(2), inner], [nn.ConvTranspose2d(below, wide, 2, 2)]
        across = Beside(nn.Identity(), nn.Sequential(*down, *up))
        return nn.Sequential(_twice(i, wide), across, _twice(2 * wide, wide))

    net = level(3, 8, level(8, 16, _twice(16, 32), 32), 16)
    return he(nn.Sequential(net, nn.Conv2d(8, 2, 1)), "fan_in")


def _twice(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())


@own(fitted((8, 16, 1, 1), (8, 3, 16, 16)))
def dcgan_generator() -> nn.Module:
    """Noise becomes an image through transposed convolutions; all drawn with a spread of 0.02."""
    parts: list[nn.Module] = []
    for i, o, stride in ((16, 64, 1), (64, 32, 2)):
        parts += [nn.ConvTranspose2d(i, o, 4, stride, stride - 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    net = normal(nn.Sequential(*parts, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()), std=0.02)
    for norm in of_kind(net, nn.BatchNorm2d):
        nn.init.normal_(norm.weight, 1.0, 0.02)
    return net


@own(classified((8, 3, 16, 16), 2))
def dcgan_discriminator() -> nn.Module:
    """The way back, with leaky units."""
    first = [nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
    second = [nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)]
    net = normal(nn.Sequential(*first, *second, nn.Conv2d(64, 2, 4), nn.Flatten()), std=0.02)
    nn.init.normal_(net[3].weight, 1.0, 0.02)
    return net


@own(classified((8, 3, 16, 16), 2))
def spectral_discriminator() -> nn.Module:
    """Convolutions held to a largest singular value of one."""

    def held(i: int, o: int) -> list[nn.Module]:
        conv = nn.Conv2d(i, o, 4, 2, 1)
        nn.init.orthogonal_(conv.weight)
        return [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.1)]

    return nn.Sequential(*held(3, 16), *held(16, 32), nn.Flatten(), nn.Linear(512, 2))


@own(classified((4, 1, 8, 8), 2))
def pixelcnn() -> nn.Module:
    """Convolutions that see no pixel to come; what they may not see is masked at every call."""

    class Masked(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            rows, columns = self.kernel_size
            before = torch.arange(rows * columns) < rows * columns // 2 + (self.in_channels > 1)
            return self._conv_forward(x, self.weight * before.view(rows, columns), self.bias)

    layers = [Masked(1, 16, 5, padding=2), nn.ReLU(), Masked(16, 16, 3, padding=1), nn.ReLU(), Masked(16, 2, 1)]
    return nn.Sequential(*layers, Apply(lambda x: x.mean((2, 3))))
