import { totalmem } from 'node:os';
import { LowrankError, shown, suggestion } from '../errors.ts';
import { parseByteSize } from '../options/byte_size.ts';

/** What a plan is held against. */
export interface MemoryDevice {
  name: string;
  kind: 'cpu' | 'cuda';
  /** Its memory in bytes; this machine's within the limit of its control group. */
  memory: number;
}

const kGiB = 2 ** 30;

/** Memory of GPUs in GiB, as their makers state it. */
const kGpus: Readonly<Record<string, number>> = {
  'rtx-2060': 6,
  'rtx-2070': 8,
  'rtx-2080-ti': 11,
  'rtx-3050': 8,
  'rtx-3060': 12,
  'rtx-3070': 8,
  'rtx-3080': 10,
  'rtx-3090': 24,
  'rtx-4060': 8,
  'rtx-4060-ti-16gb': 16,
  'rtx-4070': 12,
  'rtx-4080': 16,
  'rtx-4090': 24,
  'rtx-5060-ti-16gb': 16,
  'rtx-5070': 12,
  'rtx-5070-ti': 16,
  'rtx-5080': 16,
  'rtx-5090': 32,
  'rtx-a6000': 48,
  'rtx-6000-ada': 48,
  t4: 16,
  v100: 16,
  a10: 24,
  l4: 24,
  l40s: 48,
  'a100-40gb': 40,
  a100: 80,
  h100: 80,
  h200: 141,
  b200: 180,
};

const GPU_NAMES = Object.keys(kGpus);

/** This machine: its memory, or the part of it that its control group may take. */
export function thisMachine(): MemoryDevice {
  const limit = process.constrainedMemory?.() ?? 0;
  const total = totalmem();
  return { name: 'this machine', kind: 'cpu', memory: limit > 0 && limit < total ? limit : total };
}

/**
 * The device that an option names: 'cpu' (this machine), a GPU such as 'rtx-4090', or a machine with so much memory, such as '8GiB'.
 *
 * @throws INVALID_OPTION
 */
export function parseDevice(device: unknown): MemoryDevice {
  if (device === undefined || device === 'cpu' || device === 'auto') return thisMachine();
  const size = parseByteSize(device);
  if (size !== undefined)
    return { name: `a machine with ${device}${typeof device === 'number' ? ' bytes' : ''}`, kind: 'cpu', memory: size };
  const fold = (text: string) => text.toLowerCase().replaceAll(/[ _-]/g, '');
  const name = GPU_NAMES.find((gpu) => typeof device === 'string' && fold(gpu) === fold(device));
  if (name !== undefined) return { name, kind: 'cuda', memory: (kGpus[name] as number) * kGiB };
  const near = suggestion(String(device), GPU_NAMES);
  throw new LowrankError(
    'INVALID_OPTION',
    `device: found ${shown(device)}, expected ${near === undefined ? '' : `'${near}' or another GPU, `}'cpu', a size such as '8GiB', or one of ${GPU_NAMES.join(', ')}`,
  );
}
