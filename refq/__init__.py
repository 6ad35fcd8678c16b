"""refq: bit-exact number formats, block-scaled quantisation, golden vectors and conformance checks."""

from importlib import import_module

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
    "Diffused", "Gram", "InputError", "Packed", "Quantized", "compare_models", "convert", "data_type", "decode",
    "dequantize", "diffuse", "diffuse_gram", "encode", "fake_quantize", "gguf_decode", "gguf_encode",
    "gguf_type", "number_format", "pack", "quantize", "quantize_model", "rotate", "unpack", "unrotate",
    "__version__",
]


# What few calls need is imported when it is first asked for; the models load onnx.
_LATER = {"quantize_model": "refq.models.quantize", "compare_models": "refq.models.compare",
          **dict.fromkeys(("Diffused", "Gram", "diffuse", "diffuse_gram"), "refq.diffusion.diffuse")}


def __getattr__(name):
    """The names of _LATER."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'refq' has no attribute {name!r}")
