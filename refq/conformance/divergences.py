"""THE table of known divergences between stacks that concern blocks, each shown by two recipes (Spec: REC-24).

`markdown` writes the tables of spec/divergences.md, with the smallest tile that tells the two apart, as
differences.py finds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from refq.conformance.diff_report import side, values
from refq.conformance.differences import Difference, Witness, diff
from refq.errors import InputError


@dataclass(frozen=True)
class Divergence:
    """One row: who says what, and two recipes that show it on a data type.

    kind: the beginning of the kind of difference that is meant (differences.py), "" for the smallest of all.
    mark: how it is known, as in spec/sources.md.
    """

    number: int
    topic: str
    dtype: str
    a: str
    b: str
    who: str
    mark: str
    kind: str = ""


DIVERGENCES = [
    Divergence(40, "scale rule", "mxfp4", "ocp", "ocp,rule=rceil", "floor: OCP, torchao FLOOR, microxcaling, Triton "
               "ROUND_DOWN, GGML, oneDNN. rceil: cuBLAS, TE, cuDNN, torchao RCEIL, Triton ROUND_UP, ModelOpt", "P, C"),
    Divergence(41, "scale rule", "mxfp8_e4m3", "torchao_ceil", "torchao_even",
               "ceil: Intel, torchao CEIL. even: torchao EVEN, Quark, Meta", "C, X"),
    Divergence(42, "whose half in rule even", "mxfp8_e4m3", "torchao_even", "compressed_tensors_mx",
               "of the element: torchao. Of E2M1 for every element: compressed-tensors, Quark", "C, X",
               "the scale of an ordinary"),
    Divergence(43, "amax on the midpoint", "mxfp4", "tensorcast_midmax", "tensorcast_triton_midmax",
               "no bump: TensorCast's torch code. Bump: its Triton kernel, TOSA for all but E4M3", "C, P",
               "the scale of an ordinary"),
    Divergence(44, "float32 logarithm below a power of two", "mxfp4", "ocp", "microxcaling",
               "exact: exponent bits. One too large just below 250 of 254 powers of two: microxcaling (torch), "
               "GGML, universal", "X", "the scale of an ordinary"),
    Divergence(45, "float32 logarithm above a power of two", "mxfp4", "cudnn_mx", "torchao_rceil",
               "exact: cuBLAS' conversion. One too small just above: torchao RCEIL (eager), ModelOpt", "X",
               "the scale of an ordinary"),
    Divergence(46, "zero tile, scale code", "mxfp4", "ocp", "tensorcast",
               "00: torchao, TE, Triton, TOSA, GGML, ModelOpt. 127 − 23 − emax: TensorCast", "C, X",
               "the scale of a tile of zeros"),
    Divergence(47, "zero tile, scale code", "mxint8", "tosa", "microxcaling", "00: most. 01: microxcaling", "X",
               "the scale of a tile of zeros"),
    Divergence(48, "NaN in a tile", "mxfp4", "torchao_floor", "tensorcast",
               "scale NaN: torchao, TOSA, Triton down. The element alone: TensorCast", "X",
               "the scale of a tile with a NaN"),
    Divergence(49, "NaN in a tile", "mxfp4", "triton_up", "triton_down",
               "00, a carry out of the exponent field: Triton up. FF: Triton down", "X",
               "the scale of a tile with a NaN"),
    Divergence(50, "infinity in a tile", "mxfp8_e4m3", "te_mxfp8", "tosa", "FE: TE. FF: TOSA, cuDNN", "C, P",
               "the scale of a tile with an infinity"),
    Divergence(51, "infinity in a tile", "mxfp8_e4m3", "torchao_floor", "tosa",
               "255 − emax: torchao FLOOR, CEIL, EVEN. FF: TOSA", "X", "the scale of a tile with an infinity"),
    Divergence(52, "tile below the smallest scale", "mxfp4", "torchao_floor", "ggml_mxfp4",
               "clamped: torchao, microxcaling, TOSA. Wraps modulo 256: GGML", "X",
               "the scale of a tile below"),
    Divergence(53, "tile below the smallest scale", "mxfp4", "torchao_floor", "tensorcast",
               "clamped: torchao. A negative code, which is none: TensorCast", "X", "refusal"),
    Divergence(54, "what scale code 00 divides by", "mxfp4", "tosa", "torchao_floor",
               "2^−127: TOSA. 2^−126: torchao FLOOR, CEIL, EVEN. 1: torchao RCEIL, TE", "X, C", "the code"),
    Divergence(55, "element ties", "mxfp4", "ocp", "microxcaling",
               "to even: OCP. Away: microxcaling's default", "C, X", "the code of a number"),
    Divergence(56, "element ties", "mxfp4", "ocp", "ggml_mxfp4", "to even: OCP. Toward zero: GGML, ModelOpt MXFP4",
               "X", "the code of a number"),
    Divergence(57, "E2M1 just above 0.25", "mxfp4", "cudnn_mx", "triton_up",
               "0.5: everyone but Triton, which gives 0 up to three numbers above", "X",
               "the code of a number of an ordinary"),
    Divergence(58, "+0 elements", "mxfp4", "torchao_rceil", "modelopt_mxfp4",
               "code 0: everyone but ModelOpt MXFP4, which gives 8", "X", "the code of a zero"),
    Divergence(59, "−2 in `mxint8`", "mxint8", "ocp", "ocp,overflow=satsym",
               "a value: TOSA, gfloat. Unused: microxcaling, TensorCast", "C, X", "the code of a number"),
    Divergence(60, "largest tiles", "mxfp4", "torchao_even", "compressed_tensors_mx",
               "a number: torchao. NaN from 1.75 · 2^127 on: compressed-tensors", "X", "the scale of an ordinary"),
    Divergence(70, "order of operations", "nvfp4", "te_nvfp4", "torchao_nvfp4",
               "x·(1/(s·S)): TE. x·((1/g)/s): torchao. Element codes differ in 0.09 % to 0.27 % of cases", "X",
               "the code of a number"),
    Divergence(71, "order of operations", "nvfp4", "modelopt_nvfp4", "compressed_tensors_nvfp4",
               "x/(s·g): ModelOpt. x/(s/g): compressed-tensors", "X", "the code of a number"),
    Divergence(72, "order of operations", "nvfp4", "exact", "torchao_nvfp4",
               "exact quotients, one rounding: refq. float32: every stack", "X", "the code of a number"),
    Divergence(73, "rounding of block scales", "e2m1_ue4m3_t16", "torchao_nvfp4", "cudnn_nvfp4",
               "to nearest even: TE, torchao, ModelOpt, compressed-tensors. Up: cuDNN's text", "P, C",
               "the scale of an ordinary"),
    Divergence(74, "rounding of block scales", "e2m1_ue4m3_t16", "torchao_nvfp4", "ggml_nvfp4",
               "to nearest even: most. Half up: GGML", "X", "the scale of an ordinary"),
    Divergence(75, "zero tile, scale code", "nvfp4", "te_nvfp4", "torchao_nvfp4",
               "00: TE, GGML. 08: torchao", "X, C", "the scale of a tile of zeros"),
    Divergence(76, "zero tile, scale code", "nvfp4", "modelopt_nvfp4", "compressed_tensors_nvfp4",
               "38: ModelOpt. 20: compressed-tensors", "X", "the scale of a tile of zeros"),
    Divergence(77, "smallest scale", "nvfp4", "te_nvfp4", "modelopt_nvfp4",
               "0, the block vanishes: TE. 2^−9: ModelOpt, universal", "X, C", "the scale of a tile below"),
    Divergence(78, "smallest scale", "nvfp4", "torchao_nvfp4", "compressed_tensors_nvfp4",
               "2^−6: torchao. 2^−3 where it would vanish: compressed-tensors", "X", "the scale of a tile below"),
    Divergence(79, "−0 elements", "nvfp4", "torchao_nvfp4", "te_nvfp4",
               "kept: torchao, CUDA. +0: TE's reference, ModelOpt, compressed-tensors", "X, C",
               "the code of a zero"),
    Divergence(80, "stored tensor scale", "nvfp4", "torchao_nvfp4", "compressed_tensors_nvfp4",
               "multiplier amax/2688: ModelOpt, torchao. Divisor 2688/amax: compressed-tensors, TE", "C",
               "the tensor scale"),
]


def find(row: Divergence) -> tuple[Difference, Witness]:
    """The difference of a row's recipes, and the witness that the row means.

    Raises InputError where the recipes do not differ as the row says.
    """
    found = _diff(row.a, row.b, row.dtype)
    meant = [witness for witness in found.witnesses if witness.kind.startswith(row.kind)]
    if not meant:
        kinds = ", ".join(witness.kind for witness in found.witnesses) or "nothing"
        raise InputError(f"divergence {row.number}: {row.a} and {row.b} differ on {row.dtype} by {kinds}, "
                         f"not by {row.kind}")
    return found, meant[0]


@lru_cache(maxsize=64)
def _diff(a: str, b: str, dtype: str) -> Difference:
    return diff(a, b, dtype)


def markdown() -> str:
    """The table, one row a divergence."""
    head = "| # | topic | who says what | mark | `refq diff` | tile | first | second |"
    return "\n".join([head, "|" + "---|" * 8, *map("| {} |".format, map(" | ".join, _cells()))])


def _cells() -> Iterator[tuple[str, ...]]:
    for row in DIVERGENCES:
        _, witness = find(row)
        yield (str(row.number), row.topic, row.who, row.mark, f"`{row.a}` `{row.b}` on `{row.dtype}`",
               f"`{values(witness)}`", f"`{side(witness.a)}`", f"`{side(witness.b)}`")
