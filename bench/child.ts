import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** What one block of timed steps gives, ours or a peer's. */
export interface BlockResult {
  tokens_per_second: number;
  step_ms: { best: number; median: number };
  /** Clipping and the optimizer, of the best step. */
  update_ms: number;
  peak_rss_bytes: number;
}

/** A process that answers each line `run K` with one JSON line about K timed steps; so that several can be interleaved. */
export class BenchChild<Result = BlockResult> {
  readonly name: string;
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #interface: Interface;

  constructor(name: string, command: string, args: string[], env: NodeJS.ProcessEnv = process.env) {
    this.name = name;
    this.#process = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], env });
    this.#interface = createInterface({ input: this.#process.stdout! });
    this.#lines = this.#interface[Symbol.asyncIterator]();
  }

  async #answer(): Promise<Record<string, unknown>> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`${this.name} ended without an answer`);
    return JSON.parse(value) as Record<string, unknown>;
  }

  /** Waits until the model is loaded and warmed up. */
  async ready(): Promise<Record<string, unknown>> {
    return this.#answer();
  }

  async run(steps: number): Promise<Result> {
    this.#process.stdin!.write(`run ${steps}\n`);
    return (await this.#answer()) as unknown as Result;
  }

  /** Seconds of so many steps, and of each kind of op in them; ours only. */
  async profile(steps: number): Promise<{ seconds: number; ops: Record<string, number> }> {
    this.#process.stdin!.write(`profile ${steps}\n`);
    return (await this.#answer()) as { seconds: number; ops: Record<string, number> };
  }

  close(): void {
    this.#process.stdin!.end();
    this.#interface.close();
  }
}

/** One of our scripts here, on the compiled package, with so many threads. */
export function startOurs<Result = BlockResult>(name: string, script: string, threads: number, args: string[]): BenchChild<Result> {
  const [compiled, path] = ['../dist/index.js', `./${script}`].map((file) => fileURLToPath(new URL(file, import.meta.url)));
  return new BenchChild(name, process.execPath, [path!, compiled!, ...args], { ...process.env, LOWRANK_THREADS: String(threads) });
}
