"""refq: bit-exact number formats, block-scaled quantisation, golden vectors and conformance checks."""

from refq.blocks.gguf import gguf_decode, gguf_encode, gguf_type
from refq.blocks.packing import Packed, pack, unpack
from refq.blocks.quantize import Quantized, dequantize, fake_quantize, quantize
from refq.blocks.rotation import rotate, unrotate
from refq.blocks.rows import data_type
from refq.errors import InputError
from refq.formats.codec import convert, decode, encode
from refq.formats.names import number_format
from refq.version import __version__

__all__ = [
    "InputError", "Packed", "Quantized", "convert", "data_type", "decode", "dequantize", "encode",
    "fake_quantize", "gguf_decode", "gguf_encode", "gguf_type", "number_format", "pack", "quantize",
    "quantize_model", "rotate", "unpack", "unrotate", "__version__",
]


def __getattr__(name):
    """quantize_model loads onnx, so it is imported when it is first asked for."""
    if name == "quantize_model":
        from refq.models.quantize import quantize_model
        return quantize_model
    raise AttributeError(f"module 'refq' has no attribute {name!r}")
