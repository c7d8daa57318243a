"""Transposes squares of pixels in vector registers, for compiled functions of numba.

LLVM does not vectorise a transposition that is written as loops. So numba's intrinsics
here emit LLVM's vector instructions themselves, which work on any processor. A row of
`SIDE` pixels is one vector of 32-bit words. Three stages of shuffles exchange words
between rows that are 1, 2 and 4 apart, as in a transposition by halves: first single
words, then pairs, then halves of rows.

numba caches compiled functions by their own file: after a change of this file, the
caches of files that import it are stale.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import extending, types

SIDE = 8  # pixels of a square's side
# numba's type of an intrinsic wants the typing context in calls, too.
intrinsic: Any = extending.intrinsic

BYTE, WORD = ir.IntType(8), ir.IntType(32)
PIXELS, PADDED = ir.VectorType(BYTE, 3 * SIDE), ir.VectorType(BYTE, 4 * SIDE)
WORDS = ir.VectorType(WORD, SIDE)
# (distance of two rows, lanes of the new first row, lanes of the new second row); lanes
# from SIDE on are those of the second row. Each shuffle is one instruction of AVX2:
# vpunpckldq and vpunpckhdq, vpunpcklqdq and vpunpckhqdq, and two of vperm2i128.
STAGES = (
    (1, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    (2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    (4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)
TRANSPOSED = (0, 2, 1, 3, 4, 6, 5, 7)  # order of the rows after the stages
ZERO = 3 * SIDE  # lane of zeros behind a row of pixels
TO_WORDS = [3 * i + j if j < 3 else ZERO for i in range(SIDE) for j in range(4)]
TO_PIXELS = [4 * i + j for i in range(SIDE) for j in range(3)]

# Types of the intrinsics' arguments: the address of a source, the bytes from one of its
# rows to the next, and the same two of a target. A square has SIDE rows of SIDE pixels.
SQUARES = types.void(types.intp, types.intp, types.intp, types.intp)


@intrinsic
def transpose_pixels(_: Any, source: Any, line: Any, target: Any, lanes: Any) -> Any:
    """Copies a square of pixels, 3 bytes each, to int32 words whose upper byte is 0."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        source, line, target, lanes = arguments
        rows = _load(builder, source, line, PIXELS)
        rows = [_shuffle(builder, r, ir.Constant(PIXELS, None), TO_WORDS) for r in rows]
        rows = [builder.bitcast(row, WORDS) for row in rows]
        _store(builder, _transpose(builder, rows), target, lanes)
        return context.get_dummy_value()

    return SQUARES, generate


@intrinsic
def transpose_words(_: Any, source: Any, lanes: Any, target: Any, line: Any) -> Any:
    """Copies the lower three bytes of a square of int32 words to pixels."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        source, lanes, target, line = arguments
        rows = _transpose(builder, _load(builder, source, lanes, WORDS))
        rows = [builder.bitcast(row, PADDED) for row in rows]
        rows = [_shuffle(builder, row, row, TO_PIXELS) for row in rows]
        _store(builder, rows, target, line)
        return context.get_dummy_value()

    return SQUARES, generate


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Transposes `SIDE` vectors of words."""
    for distance, first, second in STAGES:
        for i in range(SIDE):
            if not i & distance:
                one, two = rows[i], rows[i + distance]
                rows[i] = _shuffle(builder, one, two, first)
                rows[i + distance] = _shuffle(builder, one, two, second)
    return [rows[i] for i in TRANSPOSED]


def _shuffle(builder: Any, one: Any, two: Any, lanes: Sequence[int]) -> Any:
    """Selects lanes of two vectors, counted through both."""
    mask = ir.Constant(ir.VectorType(WORD, len(lanes)), [WORD(lane) for lane in lanes])
    return builder.shuffle_vector(one, two, mask)


def _load(builder: Any, address: Any, stride: Any, vector: Any) -> list[Any]:
    pointers = _pointers(builder, address, stride, vector)
    return [builder.load(pointer, align=1) for pointer in pointers]


def _store(builder: Any, rows: list[Any], address: Any, stride: Any) -> None:
    pointers = _pointers(builder, address, stride, rows[0].type)
    for row, pointer in zip(rows, pointers, strict=True):
        builder.store(row, pointer, align=1)


def _pointers(builder: Any, address: Any, stride: Any, vector: Any) -> list[Any]:
    """Returns pointers to `SIDE` vectors that are `stride` bytes apart."""
    offsets = [builder.mul(stride, stride.type(i)) for i in range(SIDE)]
    addresses = [builder.add(address, offset) for offset in offsets]
    return [builder.inttoptr(each, vector.as_pointer()) for each in addresses]
