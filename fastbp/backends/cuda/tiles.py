"""Sizes of the tiles that products are made of."""

from __future__ import annotations

from dataclasses import dataclass

PAD = 4  # elements behind each line of a tile: keeps 16-byte alignment, and sets lines apart by banks


@dataclass(frozen=True)
class Tile:
    """Sizes of a block's tile and of a thread's part of it; all parts are multiples of 4."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)

    def shared_bytes(self, itemsize: int) -> int:
        """What the two stages of A and B need, or a strip of finished sums."""
        stages = 2 * self.bk * (self.bm + self.bn + 2 * PAD)
        strip = self.bm // (self.tm // 4) * (self.bn + PAD)
        return itemsize * max(stages, strip)


LARGE = Tile(128, 128, 8, 8, 8)  # 64 multiply-adds for 16 numbers read from shared memory
SMALL = Tile(64, 64, 16, 4, 4)  # for products with few tiles, for float64, and for one block that does everything
