import { readFileSync } from 'node:fs';
import { call, type NativeComputeType, native } from './native.ts';

/** What a compute type is called where users see it. */
export type ComputeTypeName = 'float32' | 'bfloat16';

export function computeTypeName(type: NativeComputeType): ComputeTypeName {
  return type === 'bf16' ? 'bfloat16' : 'float32';
}

export interface SystemInfo {
  /** Instruction-set level that the kernels run at. */
  isa: string;
  /** Levels that this machine has. */
  isaLevels: string[];
  /** Whether the level in use computes in bfloat16 where it is asked to (`args.bf16: true`). */
  bf16: boolean;
  /** What training computes in where neither `args.bf16` nor the model's `dtype` says: bfloat16 where its products outrun fp32's. */
  computeType: ComputeTypeName;
  threads: number;
  /** The CUDA device; null: the CPU computes. */
  cuda: null;
  /** Peak resident bytes of this process so far. */
  peakMemory: number;
  versions: { lowrank: string; node: string; napi: string; compiler: string };
}

/** What this package runs on. Throws NATIVE_NOT_FOUND. */
export function systemInfo(): SystemInfo {
  const { isa, isaLevels, bf16, computeType, threads, peakMemory, compiler } = call(() => native().systemInfo());
  const versions = { lowrank: packageVersion(), node: process.versions.node, napi: process.versions.napi ?? '', compiler };
  return { isa, isaLevels, bf16, computeType: computeTypeName(computeType), threads, cuda: null, peakMemory, versions };
}

/** This package's version. */
function packageVersion(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
