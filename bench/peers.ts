import { spawnSync } from 'node:child_process';
import { existsSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheFolder } from '../lib/hub/user_cache.ts';
import { BenchChild } from './child.ts';

const kFolder = fileURLToPath(new URL('./peers', import.meta.url));

/** A Python with the pinned PyTorch, Transformers, PEFT and bitsandbytes: LOWRANK_PYTHON, or a virtual environment made once in the cache. */
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

/** The model in the types of llama.cpp's Q4_K_M, made once. */
export function q4KMFile(gguf: string): string {
  const file = join(userCacheFolder(), 'peers', 'SmolLM2-135M-Instruct.Q4_K_M.gguf');
  if (existsSync(file)) return file;
  const unfinished = `${file}.${process.pid}.part`;
  const { status } = spawnSync(peersPython(), [join(kFolder, 'q4_k_m.py'), gguf, unfinished], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0) throw new Error(`q4_k_m.py ended with ${status}`);
  renameSync(unfinished, file);
  return file;
}

export interface PeerOptions {
  gguf: string;
  threads: number;
  dtype: 'fp32' | 'bf16';
  compile: boolean;
  /** Holds PyTorch to the level that we run at. */
  isa: string;
  /** LoRA and QLoRA by PEFT, the latter on bitsandbytes' NF4 with double quantisation; or all weights by Transformers. */
  method: 'lora' | 'qlora' | 'full';
  optim: 'adamw' | 'adamw_8bit';
  checkpointing: boolean;
}

/** PEFT or Transformers in a process of its own. */
export function startHuggingFace(options: PeerOptions): BenchChild {
  const { gguf, threads, dtype, compile, isa, method, optim, checkpointing } = options;
  const args = [join(kFolder, 'huggingface_train.py'), '--gguf', gguf, '--cache', join(userCacheFolder(), 'peers')];
  args.push('--threads', String(threads), '--dtype', dtype, '--method', method, '--optim', optim);
  if (compile) args.push('--compile');
  if (checkpointing) args.push('--checkpointing');
  const held = isa === 'avx2' ? { ATEN_CPU_CAPABILITY: 'avx2', DNNL_MAX_CPU_ISA: 'AVX2', MKL_ENABLE_INSTRUCTIONS: 'AVX2' } : {};
  return new BenchChild(`Hugging Face ${method} ${dtype}${compile ? ' + torch.compile' : ''}`, peersPython(), args, {
    ...process.env,
    ...held,
  });
}
