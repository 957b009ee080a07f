"""Networks for sequences and patches: recurrent layers, attention by layers and by hand, a vision transformer, a mixer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TwoWayLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


class GRU(nn.Module):
    """Reads time first, and answers from the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x.transpose(0, 1))
        return self.head(last[-1])


class RNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 6, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(states.mean(dim=1))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021: patches, a class token, learnt places, torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.place
        return self.head(self.norm(self.encoder(x))[:, 0])


class Attention(nn.Module):
    """Attention written out: matrix products, a scale, a causal mask, a softmax."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("mask", torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1), persistent=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (part.view(n, length, 2, width // 2).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // 2)
        weights = scores.masked_fill(self.mask, float("-inf")).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).contiguous().view(n, length, width))
        return self.head(x[:, -1])


class EinsumAttention(nn.Module):
    """Attention by einsum, with tokens looked up by their place."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.places = nn.Embedding(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(torch.arange(6, device=x.device))
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = torch.softmax(torch.einsum("bid,bjd->bij", q, k) * 8**-0.5, dim=2)
        return self.head(torch.einsum("bij,bjd->bid", weights, v).sum(dim=1))


class _MixerBlock(nn.Module):
    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(places, 8), nn.GELU(), nn.Linear(8, places))
        self.within = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.blocks = nn.Sequential(_MixerBlock(16, 8), _MixerBlock(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(0, 2, 1)
        return self.head(self.blocks(x).mean(1))
