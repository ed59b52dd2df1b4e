"""Recurrent and temporal networks, plain `nn` transformers, several inputs and outputs, shared weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.language import tokens
from tests.architectures.libraries import images
from tests.architectures.registry import Build, Registry
from tests.networks import randomised


def _signal(length: int = 16, features: int = 12) -> Tensor:
    return torch.randn(2, length, features, generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """Stacked recurrent layers over time, the mean of their outputs and the last state of each layer into a head."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], features: int = 12, **settings: Any) -> None:
        super().__init__()
        self.body = kind(features, 32, batch_first=True, **settings)
        width = (settings.get("proj_size") or 32) * (2 if settings.get("bidirectional") else 1)
        self.head = nn.Linear(int(width), 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x)[0].mean(1))
        return found


class Tagger(nn.Module):
    """Embedding, a bidirectional LSTM, and a second one that starts from the first one's state."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 24)
        self.first = nn.LSTM(24, 32, num_layers=2, batch_first=True)
        self.second = nn.LSTM(32, 32, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, words: Tensor) -> Tensor:
        x, state = self.first(self.words(words))
        found: Tensor = self.head(self.norm(self.second(x, state)[0]))
        return found


class Translator(nn.Module):
    """Encoder and decoder LSTM with dot-product attention between them (Luong et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(64, 24), nn.Embedding(64, 24)
        self.encoder, self.decoder = nn.LSTM(24, 32, batch_first=True), nn.LSTM(24, 32, batch_first=True)
        self.align = nn.Linear(32, 32, bias=False)
        self.mix, self.head = nn.Linear(64, 32), nn.Linear(32, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target), state)
        weights = torch.softmax(x @ self.align(memory).transpose(1, 2), -1)
        found: Tensor = self.head(torch.tanh(self.mix(torch.cat([x, weights @ memory], -1))))
        return found


class Temporal(nn.Module):
    """Dilated causal convolutions with residuals (Bai et al., 2018)."""

    def __init__(self, weight_norm: bool) -> None:
        super().__init__()
        wrap = nn.utils.parametrizations.weight_norm if weight_norm else lambda layer: layer
        self.first = nn.ModuleList(wrap(nn.Conv1d(12 if i == 0 else 32, 32, 3, dilation=2**i)) for i in range(3))
        self.second = nn.ModuleList(wrap(nn.Conv1d(32, 32, 3, dilation=2**i)) for i in range(3))
        self.shortcut = nn.Conv1d(12, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            y = torch.relu(first(F.pad(x, (2 * 2**i, 0))))
            y = torch.relu(second(F.pad(y, (2 * 2**i, 0))))
            x = torch.relu(y + (self.shortcut(x) if i == 0 else x))
        found: Tensor = self.head(x[:, :, -1])
        return found


class Gated(nn.Module):
    """Gated dilated convolutions with skip connections, as WaveNet has them (van den Oord et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(12, 24, 1)
        self.filters = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**i) for i in range(3))
        self.outs = nn.ModuleList(nn.Conv1d(24, 24 + 32, 1) for _ in range(3))
        self.end1, self.end2 = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x.transpose(1, 2))
        skips = []
        for i, (gated, out) in enumerate(zip(self.filters, self.outs, strict=True)):
            value, gate = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            residual, skip = out(torch.tanh(value) * torch.sigmoid(gate)).split([24, 32], 1)
            x = x + residual
            skips.append(skip)
        found: Tensor = self.end2(torch.relu(self.end1(torch.relu(torch.stack(skips).sum(0)))))
        return found


class Conformer(nn.Module):
    """Half feed-forward, attention, convolution module, half feed-forward (Gulati et al., 2020)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.subsample = nn.Conv2d(1, 16, 3, 2, 1)
        self.enter = nn.Linear(16 * 6, width)
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 96), nn.SiLU(), nn.Linear(96, width)) for _ in range(2)
        )
        self.attention_norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.convolution_norm = nn.LayerNorm(width)
        self.pointwise1, self.pointwise2 = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise, self.batch_norm = nn.Conv1d(width, width, 7, 1, 3, groups=width), nn.BatchNorm1d(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.subsample(x.unsqueeze(1)))
        x = self.enter(y.transpose(1, 2).flatten(2))
        x = x + 0.5 * self.forwards[0](x)
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.pointwise1(self.convolution_norm(x).transpose(1, 2)), 1)
        x = x + self.pointwise2(F.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2)
        x = x + 0.5 * self.forwards[1](x)
        found: Tensor = self.head(self.norm(x))
        return found


class SpeechRecogniser(nn.Module):
    """Convolutions over a spectrum, a bidirectional GRU, one symbol a frame (Amodei et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, 3, (1, 2), 1),
            nn.BatchNorm2d(8),
            nn.Hardtanh(0, 20),
            nn.Conv2d(8, 16, 3, (1, 2), 1),
            nn.ReLU(),
        )
        self.body = nn.GRU(16 * 3, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolutions(x.unsqueeze(1)).permute(0, 2, 1, 3).flatten(2)
        found: Tensor = self.head(self.body(y)[0]).log_softmax(-1)
        return found


class SequenceToSequence(nn.Module):
    """`nn.TransformerEncoder` and `nn.TransformerDecoder` with a causal mask."""

    mask: Tensor

    def __init__(self, norm_first: bool, target_length: int = 7) -> None:
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(target_length))
        self.words = nn.Embedding(64, 48)
        settings: dict[str, Any] = {
            "dim_feedforward": 96,
            "batch_first": True,
            "norm_first": norm_first,
            "activation": "gelu",
        }
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(48, 4, **settings), 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(48, 4, **settings), 1)
        self.head = nn.Linear(48, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(self.words(source), src_key_padding_mask=source == 0)
        found: Tensor = self.head(self.decoder(self.words(target), memory, tgt_mask=self.mask, tgt_is_causal=True))
        return found


class EncoderOnly(nn.Module):
    """`nn.TransformerEncoder` over signals, sequence first, as its default wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 48)
        self.place = nn.Parameter(torch.zeros(16, 1, 48))
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 96), 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.enter(x.transpose(0, 1)) + self.place).mean(0))
        return found


class Detector(nn.Module):
    """Convolutions, a transformer over their positions, learnt queries, classes and boxes (Carion et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 7, 4, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1), nn.ReLU()
        )
        self.project = nn.Conv2d(32, 48, 1)
        self.row, self.column = nn.Parameter(torch.zeros(4, 24)), nn.Parameter(torch.zeros(4, 24))
        self.queries = nn.Parameter(torch.zeros(10, 48))
        self.transformer = nn.Transformer(48, 4, 1, 1, 96, batch_first=True)
        self.classes, self.boxes = nn.Linear(48, 6), nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.project(self.backbone(x))
        columns = self.column.unsqueeze(0).repeat(4, 1, 1)
        rows = self.row.unsqueeze(1).repeat(1, 4, 1)
        memory = torch.cat([columns, rows], -1).flatten(0, 1).unsqueeze(0) + y.flatten(2).permute(0, 2, 1)
        z = self.transformer(memory, self.queries.unsqueeze(0).expand(x.shape[0], -1, -1))
        return {"logits": self.classes(z), "boxes": self.boxes(z).sigmoid()}


class Captioner(nn.Module):
    """An image and words in; words out, and how well both fit."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1), nn.ReLU())
        self.enter = nn.Linear(32, 48)
        self.words = nn.Embedding(64, 48)
        self.body = nn.GRU(48, 48, batch_first=True)
        self.fit = nn.Bilinear(48, 48, 1)

    def forward(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.tanh(self.enter(self.see(image).mean((2, 3))))
        x, last = self.body(self.words(words), seen.unsqueeze(0).contiguous())
        return F.linear(x, self.words.weight), self.fit(seen, last[0])


class Shared(nn.Module):
    """A twin network: one body for both inputs, three outputs in a nested structure."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(64, 5)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, object]:
        a, b = self.body(first).mean(1), self.body(second).mean(1)
        return {
            "logits": self.head(torch.cat([a, (a - b).abs()], -1)),
            "near": [F.cosine_similarity(a, b), (a * b).sum(-1)],
        }


class MixtureOfExperts(nn.Module):
    """Every expert runs on every token; a softmax weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 4)
        self.first, self.second = nn.Parameter(torch.zeros(4, 12, 32)), nn.Parameter(torch.zeros(4, 32, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(torch.einsum("bti,eio->beto", x, self.first))
        y = torch.einsum("beti,eio->beto", y, self.second)
        found: Tensor = self.head(torch.einsum("beto,bte->bto", y, torch.softmax(self.gate(x), -1)).mean(1))
        return found


def _recurrent(kind: type[nn.LSTM | nn.GRU | nn.RNN], **settings: Any) -> Build:
    return lambda: (randomised(Recurrent(kind, **settings)), (_signal(),))


RECURRENT: Registry = {
    "lstm": _recurrent(nn.LSTM),
    "lstm_stacked": _recurrent(nn.LSTM, num_layers=3),
    "lstm_bidirectional": _recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm_projected": _recurrent(nn.LSTM, num_layers=2, proj_size=16),
    "lstm_projected_bidirectional": _recurrent(nn.LSTM, num_layers=2, proj_size=16, bidirectional=True),
    "gru": _recurrent(nn.GRU),
    "gru_bidirectional": _recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "rnn_tanh": _recurrent(nn.RNN, num_layers=2),
    "rnn_relu": _recurrent(nn.RNN, nonlinearity="relu"),
    "tagger": lambda: (randomised(Tagger()), (tokens(),)),
    "translator": lambda: (randomised(Translator()), (tokens(), tokens(7))),
    "temporal": lambda: (randomised(Temporal(weight_norm=False)), (_signal(),)),
    "temporal_weight_norm": lambda: (randomised(Temporal(weight_norm=True)), (_signal(),)),
    "wavenet": lambda: (randomised(Gated()), (_signal(),)),
    "conformer": lambda: (randomised(Conformer()), (_signal(),)),
    "speech_recogniser": lambda: (randomised(SpeechRecogniser()), (_signal(),)),
    "transformer": lambda: (randomised(SequenceToSequence(norm_first=False)), (tokens(), tokens(7))),
    "transformer_norm_first": lambda: (randomised(SequenceToSequence(norm_first=True)), (tokens(), tokens(7))),
    "transformer_encoder": lambda: (randomised(EncoderOnly()), (_signal(),)),
    "detr": lambda: (randomised(Detector()), (images(64),)),
    "captioner": lambda: (randomised(Captioner()), (images(32), tokens(7))),
    "siamese": lambda: (randomised(Shared()), (_signal(), _signal().flip(0).clone())),
    "mixture_of_experts": lambda: (randomised(MixtureOfExperts()), (_signal(),)),
}
