"""Weight arrays into codes: direct cast, error diffusion, the methods it is compared with. Knows no ONNX."""
