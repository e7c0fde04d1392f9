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
# For products with few tiles, for float64, and for one block that does everything. As much of K at a time as fits what
# a block may have without leave: with few blocks, most of a step's time goes by waiting for the next numbers.
SMALL, SMALL_DOUBLE = Tile(64, 64, 32, 4, 4), Tile(64, 64, 16, 4, 4)


# For products with so few tiles that most of a card is idle: more blocks, each with less to do.
TINY = Tile(32, 32, 32, 4, 4)


def small_tile(item: int) -> Tile:
    """By bytes of a number."""
    return SMALL if item == 4 else SMALL_DOUBLE


STRIP = 8  # words behind a row of finished sums


@dataclass(frozen=True)
class TensorTile:
    """Sizes of a block's tile, its warps down and across, and whether products are of bf16."""

    bm: int
    bn: int
    warps_m: int
    warps_n: int
    bf16: bool

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def tall(self) -> int:
        """Words from line to line of a tile that lies along K."""
        return 20 if self.bf16 else 36

    def wide(self, size: int) -> int:
        """Words from line to line of a tile that lies across K."""
        return size // 2 + 4 if self.bf16 else size + 8

    def shared_bytes(self, itemsize: int = 4) -> int:
        """What the two stages of A and B need; a strip of finished sums needs less."""
        return itemsize * 2 * (self.bm + self.bn) * self.tall


LARGE_TF32 = TensorTile(128, 128, 2, 4, False)
LARGE_BF16 = TensorTile(128, 128, 2, 4, True)
SMALL_TF32 = TensorTile(64, 64, 2, 2, False)  # for products with few tiles, and for one block that does everything
SMALL_BF16 = TensorTile(64, 64, 2, 2, True)
TENSOR_TILES = {  # by precision: few tiles, many tiles
    "tf32": (SMALL_TF32, LARGE_TF32),
    "bf16": (SMALL_BF16, LARGE_BF16),
}
