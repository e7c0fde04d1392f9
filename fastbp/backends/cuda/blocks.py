"""Tables for blocks of their own: each runs many instructions one after the other, with barriers in between.

Several small networks of one shape are trained at once, a block each: all instructions of many steps in one launch.

Instructions are bound as for a grid, but a block reaches its buffers through slots of its own, made anew before every
step: see BLOCK_HEAD in table.py. Temps lie in shared memory as far as they fit, the smallest first; else behind each
other in the workspace, a part for each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastbp.backends.cuda import table
from fastbp.backends.cuda.chain_table import Part, Place, Work, parts
from fastbp.backends.cuda.rows import ALIGNMENT, WORKSPACE, Cut, Rows, Slots
from fastbp.backends.cuda.tiles import SMALL, SMALL_BF16, SMALL_DOUBLE, SMALL_TF32, TensorTile, Tile
from fastbp.program import Program, place

# By precision: the kernel and the tile of its products.
KERNELS: Mapping[str, tuple[str, Tile | TensorTile]] = {
    "highest": ("blocks", SMALL),
    "tf32": ("blocks_tf32", SMALL_TF32),
    "bf16": ("blocks_bf16", SMALL_BF16),
}
# Bytes of shared memory that a block can have on every card; it takes all that its card gives.
SHARED = 96 << 10
OPERATION = 40 << 10  # of them for a tile, or a chain's registers
MOST_COMPARED = 100  # temps for which a place in shared memory is looked for

WHOLE_OPERATIONS = 4 << 20  # of a step that one block does

_TEMPS, _OWN = range(2)  # slots of a block: temps in shared memory, its own part of the workspace; others follow


@dataclass(frozen=True)
class Blocks:
    """What blocks of their own need.

    Attributes:
        words: the table.
        threads, shared: of a block, and its bytes of shared memory.
        workspace: bytes, of each block.
    """

    words: list[int]
    kernel: str
    threads: int
    shared: int
    workspace: int


def suits_one_block(program: Program, n: int) -> bool:
    """Whether one block should do whole steps of at most so many rows."""
    return program.operations(n) <= WHOLE_OPERATIONS


def bind_whole(
    program: Program,
    slots: Slots,
    sizes: Sequence[int],
    item: int,
    precision: str,
    consts: Sequence[Mapping[int, Place]],
    moving: Mapping[int, tuple[int, int]],
    shared: int = SHARED,
) -> Blocks:
    """The table by which a block runs whole steps; script k is for ``sizes[k]`` rows.

    Args:
        consts: for each size, where the numbers lie that instructions read.
        moving: slot -> bytes by which it moves with each position (of rows) and step.
        shared: bytes of shared memory that the block may have; results do not depend on it.
    """
    made = _Table(item, precision, shared)
    places = {index: made.slot(Place(slot, 0), *moving.get(slot, (0, 0))) for index, slot in slots.of.items()}
    numbers = [{index: made.slot(place_) for index, place_ in found.items()} for found in consts]
    most = 0
    for n, of_size in zip(sizes, numbers, strict=True):
        temps = made.temps(program, n, program.lifetimes)
        rows = _InBlock(program, n, made, places | of_size | temps.places, temps.own)
        for instruction in program.instructions:
            rows.emit(instruction)
        made.scripts.append(rows.script)
        most = max(most, rows.scratch.offset + rows.scratch_bytes)
    made.slots[_OWN] = [WORKSPACE, 0, 0, 0]
    return made.blocks(_ceil(max(1, most)), steps_slot=slots.steps, apart=slots.count)


def _ceil(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Temps:
    """Places of temps, and where a block's own part of the workspace is free behind them."""

    places: dict[int, Place]
    own: int


class _Table:
    """The words of a table, except for what is not known until all its instructions are.

    Attributes:
        rows: words of the instructions' rows, which lie behind slots and scripts.
        scripts: for each the places of its rows in ``rows``.
    """

    def __init__(self, item: int, precision: str, shared: int) -> None:
        self.item = item
        self.shared = shared
        self.kernel, tile = KERNELS[precision]
        self.tile = SMALL_DOUBLE if item == 8 else tile
        self.rows: list[int] = []
        self.scripts: list[list[int]] = []
        self.slots = [[table.NONE, 0, 0, 0], [WORKSPACE, 0, 0, 0]]
        self.operation = 0  # bytes of shared memory that an instruction takes, at most
        self._temps = 0

    def slot(self, outer: Place, by_position: int = 0, by_step: int = 0) -> Place:
        """A place by a slot of its own."""
        self.slots.append([outer.slot, outer.offset, by_position, by_step])
        return Place(len(self.slots) - 1, 0)

    @property
    def _addresses(self) -> int:
        return -(-8 * len(self.slots) // 16) * 16

    def temps(self, program: Program, n: int, indices: Iterable[int]) -> _Temps:
        """Places for temps: in shared memory, the smallest first, as far as they fit; when all slots are there."""
        room = self.shared - OPERATION - self._addresses
        temps = [index for index in indices if index in program.lifetimes]
        temps.sort(key=lambda index: (program.size(index, n), program.lifetimes[index]))
        inside: dict[int, int] = {}
        for index in temps[:MOST_COMPARED]:
            found, size = place(program, n, self.item, 16, {*inside, index})
            if size <= room:
                inside = found
                self._temps = max(self._temps, size)
        outside, own = place(program, n, self.item, ALIGNMENT, set(temps) - set(inside))
        places = {index: Place(_TEMPS, offset) for index, offset in inside.items()}
        places |= {index: Place(_OWN, offset) for index, offset in outside.items()}
        return _Temps(places, _ceil(own))

    def blocks(self, workspace: int, steps_slot: int, apart: int) -> Blocks:
        """The table; steps come by a slot, and each block has so many outer slots for itself."""
        operation = -(-self.operation // 16) * 16
        temps_at = operation + self._addresses
        self.slots[_TEMPS][table.BYTES] = temps_at
        index_at = table.BLOCK_HEAD + table.SLOT_WIDTH * len(self.slots)
        scripts_at = [index_at + len(self.scripts)]
        for script in self.scripts:
            scripts_at.append(scripts_at[-1] + 1 + len(script))
        rows_at = scripts_at.pop()
        words = [len(self.slots), index_at, steps_slot, operation, apart]
        words += [word for slot in self.slots for word in slot] + scripts_at
        for script in self.scripts:
            words += [len(script), *(rows_at + row for row in script)]
        words += self.rows
        return Blocks(words, self.kernel, self.tile.threads, temps_at + self._temps, workspace)


class _InBlock(Rows):
    """Rows that a block does one after the other.

    Attributes:
        script: where they begin.
    """

    def __init__(self, program: Program, n: int, made: _Table, places: Mapping[int, Place], own: int) -> None:
        super().__init__(program, n, made.item, made.rows, places, Place(_OWN, own))
        self.made = made
        self.script: list[int] = []

    def launch(self, op: int, kernel: str, row: int, blocks: int, threads: int, shared: int) -> None:
        self.script.append(row)
        self.made.operation = max(self.made.operation, shared)

    def cut(self, m: int, n: int, k: int) -> Cut:
        """In one piece."""
        return Cut("", self.made.tile, -(-max(1, k) // 32) * 32)

    def cut_chain(self, work: Work) -> tuple[int, list[Part]] | None:
        threads = self.made.tile.threads
        made = parts(work, self.scratch, self.item, threads, alone=True)
        return (threads, made) if max(self.registers_of(part, threads) for part in made) <= OPERATION else None
