// What the figures were measured on, and the name that results/ keeps them under.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { type NativeComputeType, native } from '../lib/native.ts';

interface Peaks {
  flopsPerSecond: number;
  bf16FlopsPerSecond?: number;
  /** Reading, over a working set that this level holds, all threads. */
  bytesPerSecond: { level2?: number; level3?: number; memory: number };
}

export interface Machine {
  /** For a file: CPU, cores, and the instruction set where it is not the best that the machine has. */
  name: string;
  cpu: string;
  threads: number;
  isa: string;
  /** Whether the level computes in bf16. */
  bf16: boolean;
  /** The type that training computes in where it is not told. */
  compute: NativeComputeType;
  /** Bytes: of a core's level 2, of the shared level 3; 0 where unknown. */
  caches: { level2: number; level3: number };
  node: string;
  peaks: Peaks;
}

const kMemoryBytes = 2 ** 28;

/** AMD's server parts call themselves by one name whatever their core: Zen's generation is told by the family. */
function zenGeneration(): string {
  if (!existsSync('/proc/cpuinfo')) return '';
  const info = readFileSync('/proc/cpuinfo', 'utf8');
  if (!info.includes('AuthenticAMD')) return '';
  const family = Number(/cpu family\s*:\s*(\d+)/.exec(info)?.[1]);
  const model = Number(/model\s*:\s*(\d+)/.exec(info)?.[1]);
  if (family === 26) return '-zen5';
  if (family === 25) return (model >= 16 && model < 32) || model >= 96 ? '-zen4' : '-zen3';
  return family === 23 ? (model >= 48 ? '-zen2' : '-zen1') : '';
}

/** As Linux tells them of the first core; 0 elsewhere. */
function cacheSizes(): Machine['caches'] {
  const sizes = { level2: 0, level3: 0 };
  const folder = '/sys/devices/system/cpu/cpu0/cache';
  if (!existsSync(folder)) return sizes;
  for (const index of readdirSync(folder).filter((entry) => entry.startsWith('index'))) {
    const read = (file: string) => readFileSync(join(folder, index, file), 'utf8').trim();
    const level = `level${read('level')}`;
    if (level === 'level2' || level === 'level3') sizes[level] = Number.parseInt(read('size'), 10) * 1024;
  }
  return sizes;
}

function nameOf(cpu: string, threads: number, isa: string, levels: string[]): string {
  const words = cpu
    .toLowerCase()
    .replace(/\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b/g, ' ')
    .match(/[a-z0-9.]+/g);
  const held = isa === levels.at(-1) ? '' : `-${isa}`;
  return `${(words ?? ['cpu']).join('-')}${zenGeneration()}-${threads}-cores${held}`;
}

/** Measures the peaks too: they belong to this run. */
export async function thisMachine(): Promise<Machine> {
  const { threads, isa, isaLevels, bf16, computeType: compute } = native().systemInfo();
  const caches = cacheSizes();
  const readSpeed = async (bytes: number) => bytes / (await native().timeTraffic(Math.round(bytes), 0, 0));
  const speeds: Peaks['bytesPerSecond'] = { memory: await readSpeed(Math.max(kMemoryBytes, 8 * caches.level3)) };
  if (caches.level2) speeds.level2 = await readSpeed((threads * caches.level2) / 2);
  if (caches.level3) speeds.level3 = await readSpeed(Math.max((caches.level3 + threads * caches.level2) / 3, 2 * threads * caches.level2));
  const cpu = cpus()[0]?.model.trim() ?? 'unknown CPU';
  const peaks = { ...(await native().measurePeaks()), bytesPerSecond: speeds };
  const name = nameOf(cpu, threads, isa, isaLevels);
  return { name, cpu, threads, isa, bf16, compute, caches, node: process.versions.node, peaks };
}

/** The types that the level computes in. */
export function computeTypes(machine: Machine): NativeComputeType[] {
  return machine.bf16 ? ['f32', 'bf16'] : ['f32'];
}

/** The nearest level that holds a working set of all threads. */
export function levelOf(machine: Machine, bytes: number): 'L2' | 'L3' | 'memory' | 'bytes' {
  if (!machine.caches.level3) return 'bytes';
  if (bytes <= machine.threads * machine.caches.level2) return 'L2';
  return bytes <= machine.caches.level3 ? 'L3' : 'memory';
}
