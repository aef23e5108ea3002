#!/usr/bin/env node
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import { LowrankError } from '../errors.ts';

function positiveInteger(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('expected a whole number of at least 1');
  return value;
}

/** Runs a command and turns a LowrankError into one line and an exit code; anything else is a fault of ours and keeps its stack. */
async function run(command: () => Promise<void>): Promise<void> {
  try {
    await command();
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error;
    process.stderr.write(`lowrank: ${error.message} [${error.code}]\n`);
    process.exitCode = 1;
  }
}

const program = new Command('lowrank').description('Fine-tune language models with LoRA, from Node.js');

program
  .command('quickstart')
  .description('fine-tune SmolLM2-135M-Instruct on this CPU in two or three minutes, and show what changed')
  .option('--data <file>', 'train on your own JSONL or JSON (messages, prompt and completion, instruction and output, or text)')
  .option('--output <folder>', 'where the adapter goes', './lora_output')
  .option('--steps <n>', 'optimizer steps', positiveInteger, 60)
  .option('--seed <n>', 'seed of data order and adapter', positiveInteger, 42)
  .action(async (options: { data?: string; output: string; steps: number; seed: number }) =>
    run(async () => {
      const { quickstart } = await import('./quickstart.ts');
      await quickstart(options);
    }),
  );

program
  .command('info')
  .description('print what this machine and this binary can do')
  .action(async () =>
    run(async () => {
      const { systemInfo } = await import('../system.ts');
      process.stdout.write(`${JSON.stringify(systemInfo(), null, 2)}\n`);
    }),
  );

program
  .command('build')
  .description('build the native binary for this machine (needs CMake and a C++20 compiler)')
  .action(() => {
    const script = fileURLToPath(new URL('../../scripts/build.cjs', import.meta.url));
    process.exitCode = spawnSync(process.execPath, [script], { stdio: 'inherit' }).status ?? 1;
  });

await program.parseAsync();
