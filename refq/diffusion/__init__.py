"""Weight arrays into codes: direct cast, error diffusion and the methods it is compared with. Knows no ONNX."""
