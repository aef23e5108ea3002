import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheFolder } from '../lib/hub/user_cache.ts';
import { BenchChild } from './child.ts';

const kFolder = fileURLToPath(new URL('./peers', import.meta.url));

/** A Python with the pinned PyTorch, Transformers and PEFT: LOWRANK_PYTHON, or a virtual environment made once in the cache. */
export function peersPython(): string {
  if (process.env.LOWRANK_PYTHON) return process.env.LOWRANK_PYTHON;
  const venv = join(userCacheFolder(), 'peers-venv');
  const python = join(venv, 'bin', 'python');
  if (!existsSync(python)) {
    const run = (command: string, args: string[]) => {
      if (spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] }).status !== 0)
        throw new Error(`${command} ${args.join(' ')} failed`);
    };
    run('python3', ['-m', 'venv', venv]);
    run(python, ['-m', 'pip', 'install', '--quiet', '-r', join(kFolder, 'requirements.txt')]);
  }
  return python;
}

export interface PeerOptions {
  gguf: string;
  threads: number;
  dtype: 'fp32' | 'bf16';
  compile: boolean;
  /** Holds PyTorch to the level that we run at. */
  isa: string;
}

/** PEFT in a process of its own. */
export function startPeft(options: PeerOptions): BenchChild {
  const args = [join(kFolder, 'peft_train.py'), '--gguf', options.gguf, '--cache', join(userCacheFolder(), 'peers')];
  args.push('--threads', String(options.threads), '--dtype', options.dtype);
  if (options.compile) args.push('--compile');
  const held = options.isa === 'avx2' ? { ATEN_CPU_CAPABILITY: 'avx2', DNNL_MAX_CPU_ISA: 'AVX2', MKL_ENABLE_INSTRUCTIONS: 'AVX2' } : {};
  return new BenchChild(`PEFT ${options.dtype}${options.compile ? ' + torch.compile' : ''}`, peersPython(), args, {
    ...process.env,
    ...held,
  });
}
