"""A GGUF file requantised to what llama.cpp's Q4_K_M is made of, for timing: llama.cpp itself searches for better scales.

    python q4_k_m.py FILE.gguf OUTPUT.gguf

Q4_K, and Q6_K for the values and half of the down projections. Rows that are no multiple of 256 long fall back as llama.cpp's do: to Q5_0, and to Q8_0
where Q6_K was wanted.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type


def halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8).reshape(*values.shape, 2)


def q4_k(x: np.ndarray) -> np.ndarray:
    x = x.reshape(-1, 8, 32)
    minimum = np.maximum(-x.min(axis=2), 0)
    scale = (x.max(axis=2) + minimum) / 15
    d = (scale.max(axis=1) / 63).astype(np.float16)
    dmin = (minimum.max(axis=1) / 63).astype(np.float16)
    steps = lambda value, unit: np.rint(value / np.maximum(unit, 1e-12)[:, None]).clip(0, 63).astype(np.uint8)  # noqa: E731
    s, m = steps(scale, d.astype(np.float32)), steps(minimum, dmin.astype(np.float32))
    unit = (d.astype(np.float32)[:, None] * s)[..., None]
    offset = (dmin.astype(np.float32)[:, None] * m)[..., None]
    q = np.rint((x + offset) / np.maximum(unit, 1e-12)).clip(0, 15).astype(np.uint8)
    scales = np.concatenate([s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], axis=1)
    pairs = q.reshape(-1, 4, 2, 32)
    return np.concatenate([halves(d), halves(dmin), scales, (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)], axis=1)


def q6_k(x: np.ndarray) -> np.ndarray:
    x = x.reshape(-1, 16, 16)
    scale = np.abs(x).max(axis=2) / 31
    d = (scale.max(axis=1) / 127).astype(np.float16)
    s = np.rint(scale / np.maximum(d.astype(np.float32), 1e-12)[:, None]).clip(0, 127).astype(np.int8)
    unit = (d.astype(np.float32)[:, None] * s)[..., None]
    q = (np.rint(x / np.maximum(unit, 1e-12)).clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.stack([(q[:, :, i] & 15) | ((q[:, :, i + 2] & 15) << 4) for i in range(2)], axis=2).reshape(-1, 128)
    high = sum((q[:, :, i] >> 4) << (2 * i) for i in range(4)).astype(np.uint8).reshape(-1, 64)
    return np.concatenate([low, high, s.view(np.uint8), halves(d)], axis=1)


def wanted(name: str) -> Type:
    if name.startswith(("token_embd", "output.")) or ".attn_v." in name:
        return Type.Q6_K
    return Type.Q6_K if ".ffn_down." in name and int(name.split(".")[1]) % 2 == 0 else Type.Q4_K


def requantized(name: str, values: np.ndarray) -> tuple[np.ndarray, Type]:
    if values.ndim == 1:
        return values.astype(np.float32), Type.F32
    kind = wanted(name)
    if values.shape[1] % 256 != 0:
        kind = Type.Q8_0 if kind == Type.Q6_K else Type.Q5_0
        return gguf.quants.quantize(values, kind), kind
    return (q6_k if kind == Type.Q6_K else q4_k)(values.astype(np.float32)).reshape(values.shape[0], -1), kind


def main(source: str, output: str) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(output, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data, kind = requantized(tensor.name, values)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        error = np.linalg.norm(gguf.quants.dequantize(data, kind) - values) / max(float(np.linalg.norm(values)), 1e-12)
        assert error < 0.2, (tensor.name, error)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
