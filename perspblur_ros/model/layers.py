"""What the transformers of this package share: attention, feed-forward, and the blocks made of them (pre-norm)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of queries (B, N, d) to memory (B, M, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = split_heads(self.query(x), self.heads)
        k, v = self.key_value(memory).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(q, split_heads(k, self.heads), split_heads(v, self.heads))
        return self.out(join_heads(attended))


class FeedForward(nn.Sequential):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class SelfBlock(nn.Module):
    """Self-attention and feed-forward: (B, N, d) → (B, N, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        return x + self.feed(self.feed_norm(x))


class CrossBlock(nn.Module):
    """Attention to a memory (B, M, d) and feed-forward: (B, N, d) → (B, N, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.memory_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x), self.memory_norm(memory))
        return x + self.feed(self.feed_norm(x))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, d) → (B, heads, N, d / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d / heads) → (B, N, d)."""
    return x.transpose(1, 2).flatten(2)
