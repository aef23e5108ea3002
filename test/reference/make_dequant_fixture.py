"""Random blocks of each weight storage type and their values as the gguf package dequantises them.

    python test/reference/make_dequant_fixture.py test/fixtures/dequant

Each <TYPE>.bin holds ROWS rows of COLUMNS weights as stored, then the same weights in fp32, both little-endian.
"""

from __future__ import annotations

import pathlib
import sys

import gguf
import numpy as np

ROWS, COLUMNS = 2, 768
# Where the fp16 scales lie in a block.
SCALE_OFFSETS = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}


def random_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    for offset in SCALE_OFFSETS[name]:
        scales = (rng.standard_normal(len(blocks)) * 10.0 ** rng.integers(-4, 2, len(blocks))).astype(np.float16)
        scales[0] = np.float16(3e-7)  # a subnormal
        scales[1] = np.float16(-0.0)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def random_scalars(name: str, rng: np.random.Generator) -> np.ndarray:
    values = (rng.standard_normal((ROWS, COLUMNS)) * 10.0 ** rng.integers(-6, 4, (ROWS, COLUMNS))).astype(np.float32)
    if name == "F32":
        return values.view(np.uint8)
    if name == "F16":
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(["F32", "F16", "BF16", *SCALE_OFFSETS]):
        rng = np.random.default_rng(index)
        stored = random_blocks(name, rng) if name in SCALE_OFFSETS else random_scalars(name, rng)
        with np.errstate(over="ignore", invalid="ignore"):
            values = gguf.dequantize(stored, gguf.GGMLQuantizationType[name]).astype(np.float32)
        assert values.shape == (ROWS, COLUMNS) and not np.isnan(values).any()
        (folder / f"{name}.bin").write_bytes(stored.tobytes() + values.tobytes())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
