"""What bitsandbytes makes of numbers of every kind: NF4, FP4, double quantisation, 8-bit blocks and their maps, 8-bit rows.

    python test/reference/make_bitsandbytes_fixture.py test/fixtures

Needs the versions of requirements.txt. Writes
  dequant/NF4.bin, FP4.bin, INT8.bin
                                rows of lowrank's block types, then their values, as make_dequant_fixture.py does;
  bitsandbytes.safetensors      `x.<kind>`: numbers; `<kind>.<type>.<block>.<what>`: what becomes of them.
"""

from __future__ import annotations

import pathlib
import sys

import bitsandbytes.functional as F
import numpy as np
import torch
from fixture_files import single_threaded, write_arrays
from make_dequant_fixture import COLUMNS, ROWS

BLOCK = 64  # of the block types
BLOCKS = [64, 128, 256, 512, 1024, 2048, 4096]


def bit_patterns(rng: np.random.Generator, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Any finite number of a type, each pattern of bits as likely as the others."""
    size = np.uint32 if dtype == torch.float32 else np.uint16
    bits = torch.from_numpy(rng.integers(0, np.iinfo(size).max, n, dtype=size, endpoint=True).view(size))
    values = bits.view(dtype)
    return torch.where(torch.isfinite(values), values, torch.zeros_like(values))


def numbers() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(6)
    normal = lambda n: torch.from_numpy(rng.standard_normal(n).astype(np.float32))  # noqa: E731
    zeros = normal(333)
    zeros[64:128] = 0
    zeros[200:] = 0
    return {
        "normal": normal(5003),
        "single": bit_patterns(rng, 1101, torch.float32),
        "half": bit_patterns(rng, 1101, torch.float16),
        "brain": bit_patterns(rng, 1101, torch.bfloat16),
        "zeros": zeros,
        "huge": normal(333).clamp(-3, 3) * 1e38,
        "denormal": normal(333) * 1e-39,
        "tiniest": normal(70) * 1e-43,
        "one": normal(1),
        "many": (normal(17003) * (1 + torch.arange(17003) % 1000 / 300)).to(torch.float16),
    }


def four_bit(kind: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    arrays = {}
    for quant_type in ("nf4", "fp4"):
        for block in BLOCKS if kind == "normal" else [64, 512]:
            packed, state = F.quantize_4bit(x, blocksize=block, quant_type=quant_type)
            name = f"{kind}.{quant_type}.{block}"
            arrays[f"{name}.packed"] = packed.flatten()
            arrays[f"{name}.absmax"] = state.absmax
            if x.numel() <= 333:
                state.dtype = torch.float32
                arrays[f"{name}.values"] = F.dequantize_4bit(packed, state).flatten()
    return arrays


def nested(kind: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    _, state = F.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    name = f"{kind}.nested.64"
    return {
        f"{name}.absmax": state.absmax,
        f"{name}.nested_absmax": state.state2.absmax,
        f"{name}.offset": state.offset.reshape(1),
        f"{name}.values": F.dequantize_blockwise(state.absmax, state.state2) + state.offset,
    }


def eight_bit(kind: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    arrays = {}
    for signed in (True, False):
        code = F.create_dynamic_map(signed)
        for block in (256, 4096) if kind == "normal" else (64,):
            codes, state = F.quantize_blockwise(x, code=code, blocksize=block)
            name = f"{kind}.{'signed' if signed else 'unsigned'}.{block}"
            arrays[f"{name}.codes"] = codes
            arrays[f"{name}.absmax"] = state.absmax
            if x.numel() <= 333:
                state.dtype = torch.float32
                arrays[f"{name}.values"] = F.dequantize_blockwise(codes, state)
    return arrays


def eight_bit_rows(kind: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of 37."""
    rows = x[: x.numel() // 37 * 37].reshape(-1, 37)
    codes, absmax, _ = F.int8_vectorwise_quant(rows.float())
    name = f"{kind}.rows"
    return {f"{name}.codes": codes, f"{name}.absmax": absmax, f"{name}.values": F.int8_vectorwise_dequant(codes, absmax)}


def int8_rows(seed: int) -> bytes:
    """The magnitude of a row in each of its blocks; values as MatMul8bitFp multiplies with them."""
    rng = np.random.default_rng(seed)
    absmax = (rng.random(ROWS) * 10.0 ** rng.integers(-6, 4, ROWS)).astype(np.float32)
    codes = rng.integers(-127, 128, (ROWS, COLUMNS), dtype=np.int8)
    values = torch.from_numpy(codes).float().mul_(torch.from_numpy(absmax).unsqueeze(1).mul(1.0 / 127.0)).numpy()
    blocks = [np.concatenate([absmax[:, None].view(np.uint8), codes[:, at : at + BLOCK].view(np.uint8)], axis=1) for at in range(0, COLUMNS, BLOCK)]
    return np.concatenate(blocks, axis=1).tobytes() + values.tobytes()


def block_rows(quant_type: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    blocks = ROWS * COLUMNS // BLOCK
    absmax = (rng.random(blocks) * 10.0 ** rng.integers(-6, 4, blocks)).astype(np.float32)
    absmax[:3] = [0, 1e-30, 3e38]  # products flush denormals
    codes = rng.integers(0, 256, (blocks, BLOCK // 2), dtype=np.uint8)
    state = F.QuantState(torch.from_numpy(absmax), torch.Size([ROWS * COLUMNS]), None, BLOCK, quant_type, torch.float32)
    values = F.dequantize_4bit(torch.from_numpy(codes.reshape(-1, 1)), state).numpy()
    return np.concatenate([absmax.view(np.uint8).reshape(-1, 4), codes], axis=1).tobytes() + values.tobytes()


def main(folder: pathlib.Path) -> None:
    single_threaded()
    for seed, quant_type in enumerate(("nf4", "fp4")):
        (folder / "dequant" / f"{quant_type.upper()}.bin").write_bytes(block_rows(quant_type, seed))
    (folder / "dequant" / "INT8.bin").write_bytes(int8_rows(2))
    arrays = {"map.signed": F.create_dynamic_map(True), "map.unsigned": F.create_dynamic_map(False)}
    for quant_type in ("nf4", "fp4"):
        arrays[f"codes.{quant_type}"] = F.get_4bit_type(quant_type, device="cpu")
    for kind, x in numbers().items():
        arrays[f"x.{kind}"] = x
        if kind != "many":
            arrays |= four_bit(kind, x) | eight_bit(kind, x)
        if x.numel() >= 37:
            arrays |= eight_bit_rows(kind, x)
    arrays |= nested("many", numbers()["many"]) | nested("zeros", numbers()["zeros"]) | nested("one", numbers()["one"])
    write_arrays(folder / "bitsandbytes.safetensors", arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
