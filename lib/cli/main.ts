#!/usr/bin/env node
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import { LowrankError } from '../errors.ts';
import type { EstimateFlags } from './estimate.ts';

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
  .command('estimate')
  .description('print what a training will hold in memory, whether that fits, and if not, what makes it fit')
  .argument('<model>', 'config.json, folder, .gguf file or hub id')
  .option('--batch <rows>', 'rows of a micro-batch', positiveInteger)
  .option('--length <tokens>', 'tokens of the longest row', positiveInteger)
  .option('--rank <r>', 'rank of the adapter', positiveInteger)
  .option('--targets <names>', "linear layers with an adapter: names with commas between them, or 'all-linear'")
  .option('--full', 'no adapter: the model itself is trained')
  .option('--qlora', 'a base of 4 bits (NF4, double quantisation)')
  .option('--checkpointing <what>', 'none, selective, full, offload, every:<layers> or budget:<size>')
  .option('--optim <name>', 'the optimizer, as in args.optim')
  .option('--optimizer-memory <size>', 'most bytes of paged optimizer states in memory')
  .option('--data <file>', 'the data: its longest rows count instead of --length')
  .option('--device <device>', 'cpu (this machine), a size such as 8GiB, or a GPU such as rtx-4090', 'cpu')
  .option('--task <task>', 'train, evaluate or generate', 'train')
  .option('--options <file>', "LoraTrainer's other options, as JSON")
  .option('--json', 'print the plan as JSON')
  .action(async (model: string, flags: EstimateFlags) =>
    run(async () => {
      const { estimate } = await import('./estimate.ts');
      await estimate(model, flags);
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
