"""refq: bit-exact reference for low-precision number formats, block-scaled quantisation and golden vectors."""

from refq.errors import InputError
from refq.formats.codec import convert, decode, encode
from refq.formats.names import number_format

__version__ = "0.1.0"

__all__ = ["InputError", "convert", "decode", "encode", "number_format", "__version__"]
