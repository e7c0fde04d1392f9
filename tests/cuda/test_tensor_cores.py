"""Products on tensor cores in Numba's simulator: shapes, layouts, pieces of K, what is not a number, rounding."""

from __future__ import annotations

from functools import cache

import fake_cupy
import numpy as np
import pytest
from numba import cuda

from fastbp.backends.cuda import simulator, tensor_cores, tiles, twins
from fastbp.backends.cuda.codes import CODES
from fastbp.backends.cuda.device import address_of, at, shared, sync, thread, threads
from fastbp.backends.cuda.table import (
    CODE,
    COL,
    NONE,
    OFFSET,
    OPERANDS,
    OUT,
    PIECE,
    PIECES,
    ROW,
    SLOT,
    THEN,
    WIDTH,
    A,
    B,
    K,
    M,
    N,
    Y,
)
from fastbp.backends.cuda.tensor_cores import product_on_tensor_cores
from fastbp.checks import relative_error

KINDS = {"tf32": tiles.SMALL_TF32, "bf16": tiles.SMALL_BF16}
LIMITS = {"tf32": 1e-3, "bf16": 1e-2}
GLOBAL, ANYWHERE = np.int32(0), True
BEFORE = 4  # numbers before an operand that is aligned


@pytest.fixture(autouse=True)
def order(monkeypatch):
    """Not the first thread goes first between barriers, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", "backward")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@cache
def over_grid(tile):
    product = product_on_tensor_cores(tile)

    def kernel(words, slots, one):
        d, addresses = at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL)
        product(d, addresses, cuda.blockIdx.x, cuda.gridDim.x, one, GLOBAL)

    return cuda.jit(kernel)


@cache
def with_a_in_shared_memory(tile):
    """One block, whose A it has taken to behind the tiles before."""
    product = product_on_tensor_cores(tile)

    def kernel(words, slots, one):
        d, addresses = at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL)
        source, memory = at(addresses[A], one, GLOBAL), shared(one)
        behind = tile.shared_bytes() // 4
        for e in range(thread(), BEFORE + d[M] * d[OPERANDS + 4 * A + ROW], threads()):
            memory[behind + e] = source[e]
        sync()
        if thread() == 0:
            addresses[A] = address_of(memory) + tile.shared_bytes()
        sync()
        product(d, addresses, 0, 1, one, ANYWHERE)

    return cuda.jit(kernel)


def placed(x, transposed, odd):
    """x on the device, maybe transposed; if ``odd``, not on multiples of 16 bytes. Its memory, offset, strides."""
    stored = np.array(x.T if transposed else x, np.float32)
    lines, count = stored.shape
    apart = count + 3 if odd else -(-count // 4) * 4
    whole = np.full(BEFORE + lines * apart, np.nan, np.float32)  # what is around it must not be read
    first = 1 if odd else BEFORE
    whole[first : first + lines * apart].reshape(lines, apart)[:, :count] = stored
    return fake_cupy.asarray(whole), 4 * first, (1, apart) if transposed else (apart, 1)


def product(a, b, tile, ta=False, tb=False, odd=False, piece=None, y=None, blocks=1, extra=0, kernel=over_grid):
    """A B by the kernel, (M, N); the sums of each piece of K, (pieces, M, N), if ``piece`` is given."""
    (m, k), n = a.shape, b.shape[1]
    operands = {A: placed(a, ta, odd), B: placed(b, tb, odd)}
    words = np.zeros(WIDTH, np.int64)
    words[[CODE, THEN]] = NONE
    words[[M, N, K, PIECE]] = m, n, k, piece or k
    words[PIECES] = -(-k // piece) if piece else 1
    out = fake_cupy.empty((words[PIECES], m, n), np.float32)
    operands[OUT] = out, 0, (n, 1)
    operands[Y] = out, 0, (0, 0)
    if y is not None:
        words[CODE], words[THEN] = CODES["add"], CODES["tanh"]
        operands[Y] = placed(y, False, False)
    slots = np.zeros(8, np.int64)
    for which, (memory, offset, (row, col)) in operands.items():
        slots[which] = memory.data.ptr
        words[OPERANDS + 4 * which + np.array([SLOT, OFFSET, ROW, COL])] = which, offset, row, col
    on_device, addresses = fake_cupy.asarray(words), fake_cupy.asarray(slots)
    size = tile.shared_bytes() + (4 * operands[A][0].size if kernel is with_a_in_shared_memory else 0)
    kernel(tile)[blocks, tile.threads + extra, 0, size](on_device.data.ptr, addresses.data.ptr, np.float32(1.0))
    found = out.get()
    return found if piece else found[0]


def whole_numbers(shape, seed):
    """Numbers whose products and sums are exact in every precision."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float64)


SHAPES = [(1, 1, 1), (17, 67, 31), (65, 5, 33), (2, 3, 0)]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("ta", "tb"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_layouts(shape, ta, tb, odd, kind):
    m, n, k = shape
    a, b = whole_numbers((m, k), 0), whole_numbers((k, n), 1)
    np.testing.assert_array_equal(product(a, b, KINDS[kind], ta, tb, odd), a @ b)


@pytest.mark.parametrize("tile", [tiles.LARGE_TF32, tiles.LARGE_BF16], ids=["tf32", "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_large_tiles(tile, transposed):
    a, b = whole_numbers((129, 37), 0), whole_numbers((37, 127), 1)
    np.testing.assert_array_equal(product(a, b, tile, transposed, transposed), a @ b)


def test_a_tile_of_eight_warps(kind):
    """What a block of 256 threads may take for small products."""
    a, b = whole_numbers((64, 33), 0), whole_numbers((33, 60), 1)
    tile = tiles.TensorTile(64, 64, 2, 4, kind == "bf16")
    np.testing.assert_array_equal(product(a, b, tile), a @ b)


@pytest.mark.parametrize("blocks", [1, 3])
def test_tiles_in_groups(blocks, kind, monkeypatch):
    """More rows of tiles than are walked together, by one block and by some."""
    monkeypatch.setattr(tensor_cores, "GROUP", 2)
    a, b = whole_numbers((2 * 64 + 1, 3), 0), whole_numbers((3, 65), 1)
    found = product(a, b, KINDS[kind], blocks=blocks, kernel=over_grid.__wrapped__)
    np.testing.assert_array_equal(found, a @ b)


@pytest.mark.parametrize("piece", [7, 16, 34])
@pytest.mark.parametrize("transposed", [False, True])
def test_pieces_of_k(piece, transposed, kind):
    """Each piece has its own sums, also where pieces do not begin on multiples of four."""
    a, b = whole_numbers((5, 35), 0), whole_numbers((35, 6), 1)
    found = product(a, b, KINDS[kind], transposed, not transposed, piece=piece)
    for p, sums in enumerate(found):
        part = slice(p * piece, (p + 1) * piece)
        np.testing.assert_array_equal(sums, a[:, part] @ b[part])


def test_epilogue(kind):
    a, b, row = whole_numbers((7, 9), 0) / 16, whole_numbers((9, 5), 1) / 16, whole_numbers((1, 5), 2)
    found = product(a, b, KINDS[kind], y=np.tile(row, (7, 1)))
    np.testing.assert_allclose(found, np.tanh(a @ b + row), rtol=1e-6)


@pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, True)])
def test_more_threads_than_a_tile_needs(ta, tb, kind):
    a, b = whole_numbers((9, 40), 0), whole_numbers((40, 70), 1)
    np.testing.assert_array_equal(product(a, b, KINDS[kind], ta, tb, extra=128), a @ b)


@pytest.mark.parametrize(("k", "odd"), [(36, False), (39, False), (39, True)])
def test_an_operand_in_shared_memory(k, odd, kind):
    a, b = whole_numbers((10, k), 0), whole_numbers((k, 20), 1)
    np.testing.assert_array_equal(product(a, b, KINDS[kind], odd=odd, kernel=with_a_in_shared_memory), a @ b)


@pytest.mark.parametrize("shape", [(33, 20, 150), (20, 33, 47)], ids=str)
def test_error(shape, kind):
    m, n, k = shape
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, k)), rng.normal(size=(k, n))
    error = relative_error(product(a, b, KINDS[kind]), a @ b)
    assert LIMITS[kind] / 100 < error < LIMITS[kind]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_not_finite_stays_where_it_belongs(value, transposed, kind):
    """Ragged tiles: an infinity never meets padding, in A's last column, B's last row, and elsewhere."""
    a, b = whole_numbers((5, 35), 0), whole_numbers((35, 6), 1)
    a[a == 0], b[b == 0] = 1, 1  # 0 · ∞ is NaN
    a[4, 34] = a[0, 3] = value
    b[34, 5] = b[7, 0] = value
    with np.errstate(invalid="ignore"):
        expected = a @ b
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(product(a, b, KINDS[kind], transposed, not transposed), expected)


def test_products_do_not_depend_on_the_tile(kind):
    """A row's bits are the same in any batch, and in tiles of either size."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(66, 50)), rng.normal(size=(50, 7))
    found = product(a, b, KINDS[kind])
    large = {"tf32": tiles.LARGE_TF32, "bf16": tiles.LARGE_BF16}[kind]
    np.testing.assert_array_equal(product(a[64:], b, large), found[64:])
    np.testing.assert_array_equal(product(a[65:], b, KINDS[kind]), found[65:])


def test_strips_of_finished_sums_fit():
    """They take the place of the stages."""
    for tile in (tiles.LARGE_TF32, tiles.LARGE_BF16, tiles.SMALL_TF32, tiles.SMALL_BF16):
        assert 4 * (tile.bm // tile.warps_m) * (tile.bn + tiles.STRIP) <= tile.shared_bytes() <= 99 << 10


# ---- the twins that are new here ------------------------------------------------------------------------------------

BF16 = [
    (1.0, 0x3F80),
    (1.00390625, 0x3F80),  # halfway, to even
    (1.01171875, 0x3F82),  # halfway, to even
    (1.00390637, 0x3F81),
    (-0.0, 0x8000),
    (3.4e38, 0x7F80),
    (np.inf, 0x7F80),
    (-np.inf, 0xFF80),
    (np.nan, 0x7FFF),
]
TF32 = [
    (1.0, 1.0),
    (1.00048828125, 1.0009765625),  # halfway, away from zero
    (-1.00048828125, -1.0009765625),
    (1.0004882, 1.0),
    (np.inf, np.inf),
    (np.nan, np.nan),
]


@pytest.mark.parametrize(("x", "bits"), BF16, ids=str)
def test_rounding_to_bf16(x, bits):
    assert int(twins.pack_bf16(np.float32(x), np.float32(1.0))) == bits | 0x3F80 << 16
    assert int(twins.pack_bf16(np.float32(1.0), np.float32(x))) == bits << 16 | 0x3F80


@pytest.mark.parametrize(("x", "rounded"), TF32, ids=str)
def test_rounding_to_tf32(x, rounded):
    np.testing.assert_equal(twins.to_tf32(np.float32(x).view(np.uint32)).view(np.float32), np.float32(rounded))
