// llama.cpp as a peer, by way of node-llama-cpp: installed from peers/llama/package-lock.json into the user's cache when it is first asked
// for, as this package does not need it.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheFolder } from '../lib/hub/user_cache.ts';
import { BenchChild } from './child.ts';

const kBench = fileURLToPath(new URL('.', import.meta.url));
const kPackages = ['package.json', 'package-lock.json', '.npmrc'];

/** The builds of llama.cpp's CPU kernels that a machine held to AVX2 may use; it loads the best one that it finds. */
const kAvx2Kernels = /^libggml-cpu-(x64|sse42|sandybridge|ivybridge|piledriver|haswell)\.so$/;

function sameFile(a: string, b: string): boolean {
  return existsSync(b) && readFileSync(a).equals(readFileSync(b));
}

function keepAvx2Kernels(folder: string): void {
  const binaries = join(folder, 'node_modules', '@node-llama-cpp', 'linux-x64', 'bins', 'linux-x64');
  for (const file of readdirSync(binaries)) {
    if (file.startsWith('libggml-cpu-') && !kAvx2Kernels.test(file)) rmSync(join(binaries, file));
  }
}

/** The folder with llama.cpp and the script that times it. */
function installedLlama(isa: string): string {
  const folder = join(userCacheFolder(), 'peers', isa === 'avx2' ? 'llama-avx2' : 'llama');
  const source = join(kBench, 'peers', 'llama');
  mkdirSync(folder, { recursive: true });
  for (const script of [join(source, 'generate.mjs'), join(kBench, 'generation_work.mjs'), join(kBench, 'protocol.mjs')]) {
    copyFileSync(script, join(folder, basename(script)));
  }
  const lock = kPackages[1]!;
  if (sameFile(join(source, lock), join(folder, lock)) && existsSync(join(folder, 'node_modules'))) return folder;
  rmSync(join(folder, 'node_modules'), { recursive: true, force: true });
  for (const file of kPackages) copyFileSync(join(source, file), join(folder, file));
  const { status } = spawnSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], {
    cwd: folder,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (status !== 0) {
    rmSync(join(folder, lock), { force: true });
    throw new Error(`npm ci in ${folder} failed`);
  }
  if (isa === 'avx2') keepAvx2Kernels(folder);
  return folder;
}

export interface LlamaOptions {
  gguf: string;
  threads: number;
  /** Holds llama.cpp to the level that we run at. */
  isa: string;
}

/** llama.cpp in a process of its own; answers as generation_work.mjs says. */
export function startLlama<Result>({ gguf, threads, isa }: LlamaOptions): BenchChild<Result> {
  // With more than one libuv thread every token is computed on another one, which costs llama.cpp half of its speed.
  const env = { ...process.env, UV_THREADPOOL_SIZE: '1' };
  return new BenchChild('llama.cpp', process.execPath, [join(installedLlama(isa), 'generate.mjs'), gguf, String(threads)], env);
}
