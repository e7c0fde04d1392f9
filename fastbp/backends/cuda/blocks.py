"""Tables for blocks of their own: each runs many instructions one after the other, with barriers in between.

Two things are done so, by the same kernel (see kernels.py):

* **Depth first.** Of a narrow network with many rows, a block takes CHUNK rows through all layers, forward and
  backward, while their activations lie in shared memory, then the next ones; what it sums over rows (gradients, losses)
  adds up in a slot of its own, and the slots are added in order by a COMBINE. How rows are cut depends on their number
  alone.
* **Whole steps.** A network so small that a launch an instruction costs more than the work is trained by one block:
  all instructions of many steps in one launch. Networks of one shape can be trained at once, a block each.

Instructions are bound as for a grid, but a block reaches its buffers through slots of its own, made anew before every
step: see BLOCK_HEAD in table.py. Temps lie in shared memory as far as they fit, the smallest first; else behind each
other in the workspace, a part for each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastbp.backends.cuda import table
from fastbp.backends.cuda.chain_table import Part, Place, Work, parts
from fastbp.backends.cuda.rows import ALIGNMENT, WORKSPACE, Cut, Rows, Slots
from fastbp.backends.cuda.tiles import SMALL, SMALL_BF16, SMALL_DOUBLE, SMALL_TF32, TensorTile, Tile
from fastbp.backends.division import Division
from fastbp.program import Instruction, Program, place

# By precision: the kernel and the tile of its products.
KERNELS: Mapping[str, tuple[str, Tile | TensorTile]] = {
    "highest": ("blocks", SMALL),
    "tf32": ("blocks_tf32", SMALL_TF32),
    "bf16": ("blocks_bf16", SMALL_BF16),
}
# Bytes of shared memory that a block takes at most: what the cards that have the least allow, and half of what large
# ones have, so that two blocks are at work there at a time. One that runs whole steps may have it all.
SHARED = 96 << 10
OPERATION = 40 << 10  # of them for a tile, or a chain's registers
MOST_COMPARED = 100  # temps for which a place in shared memory is looked for

WIDEST = 128  # of layers that go depth first
CHUNK = 64  # rows: the height of a tile
FEWEST_ROWS = 4096  # that go depth first; not measured yet
MOST_PIECES = 264  # twice the multiprocessors of an H100: two blocks on each at a time

WHOLE_OPERATIONS = 4 << 20  # of a step that one block does; not measured yet

_TEMPS, _OWN = range(2)  # slots of a block: temps in shared memory, its own part of the workspace; others follow


@dataclass(frozen=True)
class Chunks:
    """How many rows a chunk has, and a piece: a whole number of chunks."""

    rows: int
    piece: int


def chunks_for(program: Program, division: Division, n: int) -> Chunks | None:
    """Chunks for n rows, or None where a launch an instruction is as good."""
    products = [i for i in division.body if i.op == "matmul"]
    if not products or n < FEWEST_ROWS:
        return None
    widths = {
        size.fixed
        for i in products
        for b in (*i.ins[:2], i.outs[0])
        for size in program.buffers[b].shape
        if not size.per_row
    }
    if max(widths) > WIDEST:
        return None
    count = -(-n // CHUNK)
    return Chunks(CHUNK, CHUNK * -(-count // MOST_PIECES))


@dataclass(frozen=True)
class Blocks:
    """What blocks of their own need.

    Attributes:
        words: the table.
        threads, shared: of a block, and its bytes of shared memory.
        workspace: bytes: of all pieces that go depth first, or of each block that runs whole steps.
    """

    words: list[int]
    kernel: str
    threads: int
    shared: int
    workspace: int


def bind_chunks(
    program: Program,
    division: Division,
    chunks: Chunks,
    n: int,
    item: int,
    precision: str,
    where: Mapping[int, Place],
    scratch: Place,
) -> tuple[Blocks, dict[int, Place]]:
    """The table by which a block a piece takes n rows through the body of a Program.

    Args:
        where: places of the buffers that blocks do not keep to themselves.
        scratch: the workspace, from where it is free.

    Returns:
        The table, and for what is summed over rows where it lies: a sum a piece, one behind the other.
    """
    made, pieces = _Table(item, precision, SHARED), -(-n // chunks.piece)
    sums, added, end = {}, {}, scratch.offset
    for index in division.sums:
        size = program.size(index, n) * item
        sums[index] = Place(WORKSPACE, end)
        added[index] = made.slot(sums[index], by_step=size)
        end += _ceil(pieces * size)
    places = {}
    for index in _touched(program, division.body):
        buffer = program.buffers[index]
        if index in where and index not in division.rows:
            moves = buffer.shape[0].per_row and buffer.kind != "data"
            bytes_ = buffer.shape[1].fixed * (8 if buffer.dtype == "int" else item)
            places[index] = made.slot(where[index], by_position=moves * bytes_)
    masked = {i.domain[1].fixed for i in division.body if any(s.code == "dropout_mask" for s in i.steps)}
    before = {cols: made.slot(Place(table.COUNTED, 0), by_position=cols).slot for cols in masked}
    part = Program(program.buffers, division.body, {}, program.kept)
    sizes = list(dict.fromkeys(size for size in (min(n, chunks.rows), n % chunks.rows) if size))
    temps, own = made.temps(part, sizes[0], division.rows), 0
    for size in sizes:
        rows = _InBlock(part, size, made, places | temps.places, temps.own)
        rows.added, rows.before = added, before
        if not made.scripts:
            for index, place_ in added.items():
                rows.clear(place_, *program.shape(index, n))
            made.scripts.append(rows.script)
            rows.script = []
        for instruction in division.body:
            rows.emit(instruction)
        made.scripts.append(rows.script)
        own = max(own, _ceil(rows.scratch.offset + rows.scratch_bytes))
    made.slots[_OWN] = [WORKSPACE, end, 0, own]
    steps = []
    for piece in range(pieces):
        mine = [(0, 0, piece)]  # clears the sums
        for position in range(piece * chunks.piece, min(n, (piece + 1) * chunks.piece), chunks.rows):
            whole = n - position >= sizes[0]
            mine.append((1 if whole else 2, position, piece))
        steps.append(mine)
    end += pieces * own
    return made.blocks(end - scratch.offset, steps=steps), sums


def suits_one_block(program: Program, sizes: Iterable[int]) -> bool:
    """Whether one block should do whole steps of so many rows."""
    return max(program.operations(n) for n in sizes) <= WHOLE_OPERATIONS


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


def _touched(program: Program, instructions: Sequence[Instruction]) -> list[int]:
    """The buffers that instructions read or write, in order; of parts those that they are parts of."""
    found: dict[int, None] = {}
    for i in instructions:
        for index in (*i.outs, *i.ins):
            base = program.buffers[index].base
            found[index if base is None else base] = None
    return list(found)


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

    def blocks(
        self,
        workspace: int,
        steps: Sequence[Sequence[tuple[int, int, int]]] = (),
        steps_slot: int = table.NONE,
        apart: int = 0,
    ) -> Blocks:
        """The table; ``steps`` for each block, (script, position, number), unless they come by a slot."""
        operation = -(-self.operation // 16) * 16
        temps_at = operation + self._addresses
        self.slots[_TEMPS][table.BYTES] = temps_at
        index_at = table.BLOCK_HEAD + table.SLOT_WIDTH * len(self.slots)
        scripts_at = [index_at + len(self.scripts)]
        for script in self.scripts:
            scripts_at.append(scripts_at[-1] + 1 + len(script))
        rows_at = scripts_at.pop()
        steps_at = rows_at + len(self.rows)
        words = [len(self.slots), index_at, steps_at, steps_slot, operation, apart]
        words += [word for slot in self.slots for word in slot] + scripts_at
        for script in self.scripts:
            words += [len(script), *(rows_at + row for row in script)]
        words += self.rows
        begin = 0
        for mine in steps:
            words += [begin, begin + len(mine)]
            begin += len(mine)
        words += [word for mine in steps for step in mine for word in step]
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

    def clear(self, at: Place, rows: int, cols: int) -> None:
        """Zeros."""
        self.move(replace(at, row=0, col=0), replace(at, row=cols, col=1), (rows, cols), 0, 0)
