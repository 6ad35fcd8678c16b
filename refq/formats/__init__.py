"""One number: rows of formats, exact values, rounding and overflow rules, the codec, lookup by name."""
