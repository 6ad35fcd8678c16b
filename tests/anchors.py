"""Facts about the number formats, typed by hand from published tables, never computed.

values: stored code -> value, as `a`, `2^b` or `a*2^b` (a decimal). one: code of 1.0. nan: every such code, as
inclusive ranges; inf: every such code. finite: how many distinct finite values. None where there is none.
"""

from fractions import Fraction
from typing import NamedTuple


class Anchor(NamedTuple):
    """Facts of one row and where they were read."""

    source: str
    one: int | None
    max: str
    min_normal: str | None
    min_subnormal: str | None
    values: dict[int, str]
    nan: tuple = ()
    inf: tuple = ()
    minus_zero: int | None = None
    finite: int | None = None


def value(text) -> Fraction:
    """The exact value of `a`, `2^b` or `a*2^b`."""
    factor, _, power = (text if "*" in text else f"1*{text}" if "^" in text else f"{text}*2^0").partition("*")
    return Fraction(factor) * Fraction(2) ** int(power.removeprefix("2^"))


ANCHORS = {
    "binary64": Anchor(
        "IEEE 754-2019 3.6", 0x3FF0000000000000, "9007199254740991*2^971", "2^-1022", "2^-1074",
        {0x0000000000000001: "2^-1074", 0x0010000000000000: "2^-1022",
         0x7FEFFFFFFFFFFFFF: "9007199254740991*2^971",
         0x4000000000000000: "2", 0x3FF8000000000000: "1.5", 0xC024000000000000: "-10"},
        nan=((0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF), (0xFFF0000000000001, 0xFFFFFFFFFFFFFFFF)),
        inf=(0x7FF0000000000000, 0xFFF0000000000000), minus_zero=0x8000000000000000),
    "binary32": Anchor(
        "IEEE 754-2019 3.6", 0x3F800000, "16777215*2^104", "2^-126", "2^-149",
        {0x00000001: "2^-149", 0x007FFFFF: "8388607*2^-149", 0x00800000: "2^-126",
         0x7F7FFFFF: "16777215*2^104",
         0x40490FDB: "13176795*2^-22", 0xC0000000: "-2", 0x43E80000: "464", 0x3DCCCCCD: "13421773*2^-27"},
        nan=((0x7F800001, 0x7FFFFFFF), (0xFF800001, 0xFFFFFFFF)), inf=(0x7F800000, 0xFF800000),
        minus_zero=0x80000000),
    "binary16": Anchor(
        "IEEE 754-2019 3.6; formats.md 1", 0x3C00, "65504", "2^-14", "2^-24",
        {0x0001: "2^-24", 0x03FF: "1023*2^-24", 0x0400: "2^-14", 0x7BFF: "65504", 0x3555: "1365*2^-12",
         0xC000: "-2"},
        nan=((0x7C01, 0x7FFF), (0xFC01, 0xFFFF)), inf=(0x7C00, 0xFC00), minus_zero=0x8000, finite=63487),
    "bfloat16": Anchor(
        "formats.md 1; OFP8 4.1", 0x3F80, "255*2^120", "2^-126", "2^-133",
        {0x0001: "2^-133", 0x007F: "127*2^-133", 0x0080: "2^-126", 0x7F7F: "255*2^120", 0x4049: "3.140625",
         0xC000: "-2"},
        nan=((0x7F81, 0x7FFF), (0xFF81, 0xFFFF)), inf=(0x7F80, 0xFF80), minus_zero=0x8000, finite=65279),
    "tf32": Anchor(
        "formats.md 1; CUTLASS tfloat32.h", 0x3F800000, "2047*2^117", "2^-126", "2^-136",
        {0x00002000: "2^-136", 0x00800000: "2^-126", 0x7F7FE000: "2047*2^117", 0x3F802000: "1.0009765625",
         0x3F801FFF: "1", 0xC0000000: "-2"},
        nan=((0x7F802000, 0x7FFFFFFF), (0xFF802000, 0xFFFFFFFF)), inf=(0x7F800000, 0xFF800000),
        minus_zero=0x80000000),
    "e5m2": Anchor(
        "OFP8 tables 1 and 2", 0x3C, "57344", "2^-14", "2^-16",
        {0x00: "0", 0x01: "2^-16", 0x03: "0.75*2^-14", 0x04: "2^-14", 0x3D: "1.25", 0x7B: "57344",
         0xFB: "-57344"},
        nan=((0x7D, 0x7F), (0xFD, 0xFF)), inf=(0x7C, 0xFC), minus_zero=0x80, finite=247),
    "e4m3fn": Anchor(
        "OFP8 tables 1 and 2", 0x38, "448", "2^-6", "2^-9",
        {0x00: "0", 0x01: "2^-9", 0x07: "0.875*2^-6", 0x08: "2^-6", 0x39: "1.125", 0x7E: "448", 0xFE: "-448",
         0x7D: "416"},
        nan=((0x7F, 0x7F), (0xFF, 0xFF)), minus_zero=0x80, finite=253),
    "e4m3ieee": Anchor(
        "ml_dtypes float8_e4m3", 0x38, "240", "2^-6", "2^-9",
        {0x01: "2^-9", 0x07: "0.875*2^-6", 0x08: "2^-6", 0x77: "240", 0xF7: "-240"},
        nan=((0x79, 0x7F), (0xF9, 0xFF)), inf=(0x78, 0xF8), minus_zero=0x80, finite=239),
    "e3m4": Anchor(
        "ml_dtypes float8_e3m4", 0x30, "15.5", "2^-2", "2^-6",
        {0x01: "2^-6", 0x0F: "15*2^-6", 0x10: "2^-2", 0x6F: "15.5", 0xEF: "-15.5"},
        nan=((0x71, 0x7F), (0xF1, 0xFF)), inf=(0x70, 0xF0), minus_zero=0x80, finite=223),
    "e4m3fnuz": Anchor(
        "ONNX float8; ml_dtypes", 0x40, "240", "2^-7", "2^-10",
        {0x00: "0", 0x01: "2^-10", 0x07: "0.875*2^-7", 0x08: "2^-7", 0x7F: "240", 0xFF: "-240",
         0x81: "-1*2^-10"},
        nan=((0x80, 0x80),), finite=255),
    "e5m2fnuz": Anchor(
        "ONNX float8; ml_dtypes", 0x40, "57344", "2^-15", "2^-17",
        {0x00: "0", 0x01: "2^-17", 0x03: "0.75*2^-15", 0x04: "2^-15", 0x7F: "57344", 0xFF: "-57344"},
        nan=((0x80, 0x80),), finite=255),
    "e4m3b11fnuz": Anchor(
        "ml_dtypes float8_e4m3b11fnuz", 0x58, "30", "2^-10", "2^-13",
        {0x00: "0", 0x01: "2^-13", 0x07: "0.875*2^-10", 0x08: "2^-10", 0x7F: "30", 0xFF: "-30"},
        nan=((0x80, 0x80),), finite=255),
    "e3m2": Anchor(
        "OCP MX 5.3.2 (by way of ml_dtypes, StableHLO)", 0x0C, "28", "0.25", "0.0625",
        {0x00: "0", 0x01: "0.0625", 0x03: "0.1875", 0x04: "0.25", 0x1F: "28", 0x3F: "-28", 0x1E: "24"},
        minus_zero=0x20, finite=63),
    "e2m3": Anchor(
        "OCP MX 5.3.2 (by way of ml_dtypes, StableHLO)", 0x08, "7.5", "1", "0.125",
        {0x00: "0", 0x01: "0.125", 0x07: "0.875", 0x08: "1", 0x1F: "7.5", 0x3F: "-7.5", 0x10: "2"},
        minus_zero=0x20, finite=63),
    "e2m1": Anchor(
        "ONNX float4; ml_dtypes", 0x2, "6", "1", "0.5",
        {0x0: "0", 0x1: "0.5", 0x2: "1", 0x3: "1.5", 0x4: "2", 0x5: "3", 0x6: "4", 0x7: "6",
         0x9: "-0.5", 0xF: "-6"},
        minus_zero=0x8, finite=15),
    "e8m0": Anchor(
        "OCP MX 5.4.1 (by way of ml_dtypes, ONNX, CUDA)", 0x7F, "2^127", "2^-127", None,
        {0x00: "2^-127", 0x01: "2^-126", 0x7F: "1", 0x80: "2", 0xFE: "2^127"},
        nan=((0xFF, 0xFF),), finite=255),
    "ue4m3": Anchor(
        "CUTLASS float_ue4m3_t", 0x38, "448", "2^-6", "2^-9",
        {0x00: "0", 0x01: "2^-9", 0x07: "0.875*2^-6", 0x08: "2^-6", 0x7E: "448"},
        nan=((0x7F, 0x7F),), finite=127),
    "ue5m3": Anchor(
        "CUDA 13.5 cuda_fp8.h", 0x78, "114688", "2^-14", "2^-17",
        {0x00: "0", 0x01: "2^-17", 0x07: "0.875*2^-14", 0x08: "2^-14", 0xFE: "114688"}, nan=((0xFF, 0xFF),),
        finite=255),
    "binary8p4se": Anchor(
        "P3109 v4.0 4.2", 0x40, "224", "2^-7", "2^-10",
        {0x00: "0", 0x01: "2^-10", 0x07: "0.875*2^-7", 0x08: "2^-7", 0x7E: "224", 0xFE: "-224",
         0x81: "-1*2^-10"},
        nan=((0x80, 0x80),), inf=(0x7F, 0xFF), finite=253),
    "binary8p3se": Anchor(
        "P3109 v4.0 4.2", 0x40, "49152", "2^-15", "2^-17",
        {0x00: "0", 0x01: "2^-17", 0x03: "0.75*2^-15", 0x04: "2^-15", 0x7E: "49152", 0xFE: "-49152"},
        nan=((0x80, 0x80),), inf=(0x7F, 0xFF), finite=253),
    "binary4p2sf": Anchor(
        "P3109 v4.0 4.2", 0x4, "3", "0.5", "0.25",
        {0x0: "0", 0x1: "0.25", 0x2: "0.5", 0x3: "0.75", 0x4: "1", 0x5: "1.5", 0x6: "2", 0x7: "3",
         0x9: "-0.25", 0xF: "-3"},
        nan=((0x8, 0x8),), finite=15),
    "binary8p1uf": Anchor(
        "P3109 v4.0 4.2", 0x80, "2^126", "2^-127", None,
        {0x00: "0", 0x01: "2^-127", 0x80: "1", 0x81: "2", 0xFE: "2^126"}, nan=((0xFF, 0xFF),), finite=255),
    "mxint8": Anchor(
        "TOSA; OCP MX 5.3.4 (secondary)", 0x40, "1.984375", None, None,
        {0x00: "0", 0x01: "0.015625", 0x40: "1", 0x7F: "1.984375", 0x80: "-2", 0x81: "-1.984375",
         0xFF: "-0.015625"},
        finite=256),
    "int8": Anchor("two's complement", 0x01, "127", None, None,
                   {0x00: "0", 0x01: "1", 0x7F: "127", 0x80: "-128", 0xFF: "-1"}, finite=256),
    "int4": Anchor("two's complement", 0x1, "7", None, None,
                   {0x0: "0", 0x7: "7", 0x8: "-8", 0xF: "-1"}, finite=16),
    "int1": Anchor("two's complement", None, "0", None, None, {0x0: "0", 0x1: "-1"}, finite=2),
    "uint4": Anchor("unsigned", 0x1, "15", None, None, {0x0: "0", 0x8: "8", 0xF: "15"}, finite=16),
    "smint4": Anchor("sign and magnitude", 0x1, "7", None, None, {0x0: "0", 0x7: "7", 0x9: "-1", 0xF: "-7"},
                     minus_zero=0x8, finite=15),
}

# P3109 v4.0 formats that are not rows of the table (formats.md 5.1): name -> largest value, code of one
P3109 = {
    "binary8p1se": ("2^62", 0x40), "binary8p2se": ("2^31", 0x40), "binary8p3sf": ("57344", 0x40),
    "binary8p4sf": ("240", 0x40), "binary8p5se": ("15", 0x40), "binary8p5sf": ("15.5", 0x40),
    "binary8p6se": ("3.875", 0x40), "binary8p7se": ("1.96875", 0x40), "binary8p4ue": ("53248", 0x80),
    "binary8p4uf": ("57344", 0x80),
}
