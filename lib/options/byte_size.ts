import { z } from 'zod';

const UNITS: Record<string, number> = { '': 1, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, KB: 1e3, MB: 1e6, GB: 1e9 };
const SIZE = /^(\d+(?:\.\d+)?) ?(|B|KiB|MiB|GiB|KB|MB|GB)$/;

const wanted = { error: "a number of bytes or a text like '512MiB' or '6GB'" };
/** A number of bytes, or a text like '512MiB' or '6 GB'; read as bytes. */
export const byteSize = z.union([z.int().min(1), z.string().regex(SIZE, wanted)], wanted).transform((value) => {
  if (typeof value === 'number') return value;
  const [, number, unit] = SIZE.exec(value)!;
  return Math.floor(Number(number) * UNITS[unit!]!);
});

/** The bytes that a value says; undefined where it is no size. */
export function parseByteSize(value: unknown): number | undefined {
  const parsed = byteSize.safeParse(value);
  return parsed.success && parsed.data > 0 ? parsed.data : undefined;
}
