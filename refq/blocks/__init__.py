"""Many numbers sharing a scale: data types, scale rules, the quantiser, packing."""
