"""Networks for words, waves, points, graphs and tables, and networks that generate; as in `own`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.architectures.blocks import Apply, Beside, Places, Scale, Sum, attending, mlp, normal, of_kind, waves
from tests.architectures.trials import CLASSES, LENGTH, WORDS, Trial, classified, fitted, sentences, word_loss
from tests.architectures.zoo import own

_WORDS = Trial(lambda: (sentences(), sentences()), word_loss)
_LABELLED_TEXT = Trial(lambda: (sentences(), torch.randint(CLASSES, (8,))), functional.cross_entropy)
_PAIRED_TEXT = Trial(lambda: ((sentences(), sentences()), sentences()), word_loss)


class _First(nn.Module):
    """Keeps the first of what its body returns: the outputs of a recurrent network without its state."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[0]


@own(_WORDS)
def lstm_language_model() -> nn.Module:
    """Two layers whose head is the table of words itself, drawn between -0.1 and 0.1."""
    table, head = nn.Embedding(WORDS, 32), nn.Linear(32, WORDS)
    nn.init.uniform_(table.weight, -0.1, 0.1)
    head.weight = table.weight
    nn.init.zeros_(head.bias)
    return nn.Sequential(
        table, nn.Dropout(), _First(nn.LSTM(32, 32, 2, dropout=0.5, batch_first=True)), nn.Dropout(), head
    )


@own(_PAIRED_TEXT)
class gru_with_attention(nn.Module):  # noqa: N801 - registered by its name, as the functions are
    """Reads in both directions, writes looking back at what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 32)
        self.reader, self.writer = (
            nn.GRU(32, 16, batch_first=True, bidirectional=True),
            nn.GRU(32, 32, batch_first=True),
        )
        self.of_read, self.of_written, self.match = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 1)
        self.head = nn.Linear(64, WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        read, state = self.reader(self.table(source))
        written, _ = self.writer(self.table(target), state.movedim(0, 1).flatten(1).unsqueeze(0))
        pairs = self.of_read(read).unsqueeze(1) + self.of_written(written).unsqueeze(2)
        seen = self.match(pairs.tanh()).softmax(2)
        return self.head(torch.cat([written, (seen * read.unsqueeze(1)).sum(2)], dim=-1))


@own(_WORDS)
def transformer_language_model() -> nn.Module:
    """A decoder as GPT-2: spread of 0.02, less at the end of residual branches by the root of their number."""
    blocks = [attending(32, causal=True) for _ in range(3)]
    net = nn.Sequential(
        nn.Embedding(WORDS, 32), Places(LENGTH, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, WORDS, bias=False)
    )
    normal(net, std=0.02)
    for attention, feed in blocks:
        for last in (attention.body[-1].out, feed.body[-1]):
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * len(blocks)))
    net[-1].weight = net[0].weight
    return net


@own(_PAIRED_TEXT)
class encoder_decoder(nn.Module):  # noqa: N801
    """PyTorch's own transformer, in its own initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 32), nn.Linear(32, WORDS)
        self.body = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.register_buffer("places", waves(LENGTH, 32))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.head(self.body(self.table(source) + self.places, self.table(target) + self.places, tgt_mask=mask))


@own(_LABELLED_TEXT)
def text_cnn() -> nn.Module:
    """Kernels of several lengths over word vectors, and the largest answer of each."""

    def kernel(length: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(32, 16, length), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())

    turn = Apply(lambda x: x.transpose(1, 2))
    return nn.Sequential(
        nn.Embedding(WORDS, 32), turn, Beside(*map(kernel, (3, 4, 5))), nn.Dropout(), nn.Linear(48, CLASSES)
    )


class _Rezero(nn.Module):
    """PyTorch's own layer of an encoder with both branches behind one number that begins at zero, without norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.feed = nn.MultiheadAttention(width, 4, batch_first=True), mlp(width, 4 * width, width)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gain * self.attention(x, x, x, need_weights=False)[0]
        return x + self.gain * self.feed(x)


@own(_LABELLED_TEXT)
def rezero_transformer() -> nn.Module:
    """Every block begins as the identity."""
    body = [nn.Embedding(WORDS, 32), *(_Rezero(32) for _ in range(3))]
    return nn.Sequential(*body, Apply(lambda x: x.mean(1)), nn.Linear(32, CLASSES))


class _LowRank(nn.Module):
    """A frozen layer and a change of low rank beside it, whose second matrix begins at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(requires_grad=False)
        self.down, self.up = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=False),
        )
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@own(classified((16, 32)))
def low_rank_adaptation() -> nn.Module:
    """Linear layers that are frozen and adapted."""
    return nn.Sequential(
        _LowRank(nn.Linear(32, 64)), nn.ReLU(), _LowRank(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, CLASSES)
    )


class _Dilated(nn.Module):
    """A gated convolution with holes, that sees the past alone, and two ways out of it."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.past = nn.ConstantPad1d((dilation, 0), 0.0)
        self.both = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.onwards, self.out = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.both(self.past(x)).chunk(2, dim=1)
        told = value.tanh() * gate.sigmoid()
        return x + self.onwards(told), self.out(told)


@own(Trial(lambda: (torch.randn(4, 1, 64), torch.randint(16, (4, 64))), functional.cross_entropy))
class wavenet(nn.Module):  # noqa: N801
    """Ever wider holes, whose answers are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 1)
        self.layers = nn.ModuleList(_Dilated(16, 2**i) for i in range(5))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.Conv1d(16, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, told = self.first(x), []
        for layer in self.layers:
            x, out = layer(x)
            told.append(out)
        return self.last(torch.stack(told).sum(0))


@own(fitted((4, 8, 32), (4, 8, 32)))
def temporal_convolutions() -> nn.Module:
    """Convolutions with holes, drawn with a spread of 0.01 and normalised by their weights' length."""

    def layer(dilation: int) -> list[nn.Module]:
        conv = nn.Conv1d(8, 8, 3, dilation=dilation)
        nn.init.normal_(conv.weight, std=0.01)
        weighed = nn.utils.parametrizations.weight_norm(conv)
        return [nn.ConstantPad1d((2 * dilation, 0), 0.0), weighed, nn.ReLU(), nn.Dropout(0.2)]

    return nn.Sequential(*(Sum(nn.Sequential(*layer(2**i), *layer(2**i))) for i in range(3)), nn.Conv1d(8, 8, 1))


class _Sine(nn.Linear):
    """A linear layer and the sine of thirty times what it gives."""

    def __init__(self, inputs: int, outputs: int, *, is_first: bool = False) -> None:
        super().__init__(inputs, outputs)
        bound = 1 / inputs if is_first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * super().forward(x))


@own(Trial(lambda: (2 * torch.rand(256, 2) - 1, torch.randn(256, 1)), functional.mse_loss))
def siren() -> nn.Module:
    """A picture as a function of two coordinates."""
    last = nn.Linear(64, 1)
    nn.init.uniform_(last.weight, -math.sqrt(6 / 64) / 30, math.sqrt(6 / 64) / 30)
    return nn.Sequential(_Sine(2, 64, is_first=True), _Sine(64, 64), _Sine(64, 64), last)


@own(Trial(lambda: (2 * torch.rand(256, 3) - 1, torch.rand(256, 4)), functional.mse_loss))
def nerf() -> nn.Module:
    """Sines and cosines of coordinates, eight layers, and the input once more in their middle."""

    def waved(x: Tensor) -> Tensor:
        angles = (x.unsqueeze(-1) * 2.0 ** torch.arange(4) * math.pi).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], dim=1)

    first, second = mlp(27, 64, 64, 64, 64), mlp(91, 64, 64, 64, 4)
    return nn.Sequential(Apply(waved), Beside(nn.Identity(), nn.Sequential(first, nn.ReLU())), second)


@own(classified((20, 16)))
class graph_convolutions(nn.Module):  # noqa: N801
    """Two layers that average over neighbours; the graph is a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(i, o)) for i, o in ((16, 32), (32, CLASSES))
        )
        self.biases = nn.ParameterList(torch.zeros(o) for o in (32, CLASSES))
        near = torch.eye(20) + torch.eye(20).roll(1, 0) + torch.eye(20).roll(-1, 0)
        self.register_buffer("neighbours", near / 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.neighbours @ x @ self.weights[0] + self.biases[0]).relu()
        return self.neighbours @ hidden @ self.weights[1] + self.biases[1]


@own(classified((8, 3, 50)))
def pointnet() -> nn.Module:
    """Points of a cloud, each on its own, and the largest answer of all."""
    each = [(3, 32), (32, 64)]
    layers = [part for i, o in each for part in (nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), mlp(64, 32, CLASSES))


@own(Trial(lambda: (torch.randint(50, (32, 4)), torch.rand(32, 1)), functional.binary_cross_entropy_with_logits))
class recommender(nn.Module):  # noqa: N801
    """Tables of people and things, and layers on what they have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, 16, mode="sum") for _ in range(4))
        for table in self.tables:
            nn.init.uniform_(table.weight, -math.sqrt(1 / 50), math.sqrt(1 / 50))
        self.layers = mlp(10, 32, 1)
        for layer in of_kind(self.layers, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / sum(layer.weight.shape)))
            nn.init.normal_(layer.bias, std=math.sqrt(1 / len(layer.bias)))

    def forward(self, x: Tensor) -> Tensor:
        told = torch.stack([table(column.unsqueeze(1)) for table, column in zip(self.tables, x.T, strict=True)], dim=1)
        rows, columns = torch.triu_indices(4, 4)
        return self.layers((told @ told.transpose(1, 2))[:, rows, columns])


@own(fitted((16, 8), (16, 5)))
def actor_and_critic() -> nn.Module:
    """Orthogonal layers with tanh, a policy that begins nearly even, and a value beside it."""

    def part(outputs: int, gain: float) -> nn.Module:
        net = mlp(8, 64, 64, outputs, act=nn.Tanh)
        for layer in of_kind(net, nn.Linear):
            nn.init.orthogonal_(layer.weight, math.sqrt(2) if layer is not net[-1] else gain)
            nn.init.zeros_(layer.bias)
        return net

    return Beside(part(4, 0.01), part(1, 1.0))


@own(classified((32, 32)))
def self_normalising() -> nn.Module:
    """Linear layers that keep their own variance, drawn after LeCun."""
    layers = [part for _ in range(6) for part in (nn.Linear(32, 32), nn.SELU(), nn.AlphaDropout(0.05))]
    net = nn.Sequential(*layers, nn.Linear(32, CLASSES))
    for layer in of_kind(net, nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(layer.bias)
    return net


@own(classified((32, 32)))
def highway() -> nn.Module:
    """Layers that begin by letting their input through."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.constant_(self.gate.bias, -2.0)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate(x).sigmoid()
            return gate * self.change(x).relu() + (1 - gate) * x

    return nn.Sequential(*(Layer() for _ in range(5)), nn.Linear(32, CLASSES))


def _reconstruction(told: tuple[Tensor, Tensor, Tensor], image: Tensor) -> Tensor:
    pixels, mean, log_variance = told
    apart = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
    return functional.binary_cross_entropy_with_logits(pixels, image, reduction="none").sum(1).mean() + apart


def _pixels() -> tuple[Tensor, Tensor]:
    image = torch.rand(16, 64).round()
    return image, image


@own(Trial(_pixels, _reconstruction))
class variational_autoencoder(nn.Module):  # noqa: N801
    """Codes with a mean and a variance, from which a sample is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 48, 2 * 8), mlp(8, 48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


class _Coupling(nn.Module):
    """One half of its input stays as it is and says how the other is moved and stretched; it begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp(width // 2, 32, 32, width)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        still, moved = x.chunk(2, dim=1)
        shift, stretch = self.net(still).chunk(2, dim=1)
        return torch.cat([moved * stretch.tanh().exp() + shift, still], dim=1)


@own(Trial(lambda: (torch.randn(32, 8), torch.zeros(32, 8)), lambda code, _: code.square().sum(1).mean() / 2))
def coupling_flow() -> nn.Module:
    """Steps that can be gone back."""
    return nn.Sequential(*(_Coupling(8) for _ in range(4)), Scale(8))


@own(Trial(lambda: ((torch.randn(8, 3, 16, 16), torch.rand(8)), torch.randn(8, 3, 16, 16)), functional.mse_loss))
class denoiser(nn.Module):  # noqa: N801
    """Tells the noise of an image from how noisy it is; each block and the last convolution begin at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.of_time, self.first = mlp(32, 64, 32, act=nn.SiLU), nn.Conv2d(3, 32, 3, padding=1)
        self.before = nn.ModuleList(nn.Sequential(*self._part()) for _ in range(2))
        self.after = nn.ModuleList(nn.Sequential(*self._part()) for _ in range(2))
        self.last = nn.Sequential(nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))
        for last in (*(after[-1] for after in self.after), self.last[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @staticmethod
    def _part() -> list[nn.Module]:
        return [nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)]

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        x, told = self.first(image), self.of_time(waves(1000, 32)[(time * 999).long()])
        for before, after in zip(self.before, self.after, strict=True):
            x = x + after(before(x) + told[:, :, None, None])
        return self.last(x)
