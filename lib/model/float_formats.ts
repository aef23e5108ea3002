// fp32 to the 16-bit formats of safetensors files, rounding to nearest, ties to even.

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);

/** Bits of bfloat16 values. */
export function toBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const result = new Uint16Array(values.length);
  for (let i = 0; i < values.length; ++i) {
    const word = bits[i] as number;
    const isNotANumber = (word & 0x7fffffff) > 0x7f800000;
    result[i] = isNotANumber ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return result;
}

/** Bits of IEEE half-precision values; what is beyond 65504 becomes infinite. */
export function toF16(values: Float32Array): Uint16Array {
  const result = new Uint16Array(values.length);
  for (let i = 0; i < values.length; ++i) result[i] = halfBits(values[i] as number);
  return result;
}

function halfBits(value: number): number {
  scratchFloat[0] = value;
  const word = scratchBits[0] as number;
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Subnormal: a whole multiple of 2^-24. Adding 2^23 to it in fp32 rounds it to the nearest one, ties to even.
    return sign | (Math.fround(Math.abs(value) * 2 ** 24 + 2 ** 23) - 2 ** 23);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}
