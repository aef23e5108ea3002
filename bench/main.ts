// npm run bench [-- --only ops,shares,training,lengths,generation,startup] [--peers] [--isa LEVEL] [--blocks N] [--steps N]
// Prints every op's share of its floor on this machine and of a training step, whole steps in tokens/s and peak memory, what long
// sequences cost, what trains in little memory, generation, and how long the first step is in coming. With --peers also PEFT's,
// Transformers', bitsandbytes' and llama.cpp's on the same work, interleaved block by block, and all of it goes to
// results/<machine>.{json,md}.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { userCacheFolder } from '../lib/hub/user_cache.ts';
import { CausalLM } from '../lib/index.ts';
import { timeGeneration } from './generation.ts';
import { type Machine, thisMachine } from './machine.ts';
import { timeMemory } from './memory.ts';
import { timeOps } from './ops.ts';
import { generationTable, lengthsTable, machineText, memoryTable, opsTable, sharesTable, startupTable, trainingTable } from './report.ts';
import { timeStartup } from './startup.ts';
import { timeLengths, timeShares, timeTraining, type Weights } from './training.ts';

const { values } = parseArgs({
  options: {
    peers: { type: 'boolean', default: false },
    isa: { type: 'string' },
    only: { type: 'string' },
    blocks: { type: 'string' },
    steps: { type: 'string' },
  },
});

interface Section {
  title: string;
  /** Its results, for the JSON file, and as a table. */
  run(machine: Machine): Promise<{ results: unknown; text: string }>;
}

let weights: Promise<Weights> | undefined;
/** SmolLM2's weights as a GGUF and, made from it for the first section that asks, as bf16 safetensors. */
function smolLm2(): Promise<Weights> {
  weights ??= makeWeights();
  return weights;
}

async function makeWeights(): Promise<Weights> {
  const gguf = await fetchSmolLm2();
  const folder = join(userCacheFolder(), 'models', 'SmolLM2-135M-Instruct-bf16');
  const model = await CausalLM.fromPretrained(gguf);
  await model.savePretrained(folder, { dtype: 'bfloat16' });
  await model.dispose();
  return { gguf, folder };
}

function positive(option: 'blocks' | 'steps', fallback: number): number {
  const value = Number(values[option] ?? fallback);
  if (!Number.isInteger(value) || value < 1) throw new RangeError(`--${option} is ${values[option]}; expected a whole number from 1 on`);
  return value;
}

const sections: Record<string, Section> = {
  ops: {
    title: 'Ops against their floors',
    async run(machine) {
      const results = await timeOps(machine, ({ op, shape, compute, milliseconds }) => {
        process.stderr.write(`${op} ${shape} ${compute}: ${milliseconds.toFixed(3)} ms\n`);
      });
      return { results, text: opsTable(results) };
    },
  },
  shares: {
    title: 'Where a training step goes',
    async run(machine) {
      const results = await timeShares(machine, await smolLm2());
      return { results, text: sharesTable(results) };
    },
  },
  training: {
    title: 'Training steps: SmolLM2-135M, LoRA r=16 on all linear layers',
    async run(machine) {
      const results = await timeTraining({
        machine,
        weights: await smolLm2(),
        peers: values.peers,
        blocks: positive('blocks', values.peers ? 4 : 3),
        steps: positive('steps', values.peers ? 3 : 2),
      });
      return { results, text: trainingTable(results) };
    },
  },
  memory: {
    title: 'Little memory: SmolLM2-135M, r=16 on all linear layers, or all weights',
    async run(machine) {
      const results = await timeMemory({
        machine,
        weights: await smolLm2(),
        peers: values.peers,
        blocks: positive('blocks', 3),
        steps: positive('steps', values.peers ? 3 : 2),
      });
      return { results, text: memoryTable(results) };
    },
  },
  lengths: {
    title: 'One long sequence',
    async run(machine) {
      const results = await timeLengths(machine, await smolLm2());
      return { results, text: lengthsTable(results) };
    },
  },
  generation: {
    title: 'Generation: SmolLM2-135M, Q4_1',
    async run(machine) {
      const results = await timeGeneration({ machine, gguf: await fetchSmolLm2(), peers: values.peers });
      return { results, text: generationTable(results) };
    },
  },
  startup: {
    title: 'From new LoraTrainer(…) to the first step',
    async run() {
      const results = await timeStartup(await smolLm2());
      return { results, text: startupTable(results) };
    },
  },
};

const chosen = values.only?.split(',') ?? Object.keys(sections);
const unknown = chosen.filter((name) => !(name in sections));
if (unknown.length) throw new RangeError(`--only names ${unknown.join(', ')}; expected ${Object.keys(sections).join(', ')}`);
// Read when the addon is first loaded, here and in the processes that are started.
if (values.isa) process.env.LOWRANK_ISA = values.isa;

const machine = await thisMachine();
const texts = [machineText(machine)];
console.log(texts[0]);
const results: Record<string, unknown> = {};
for (const name of chosen) {
  const { title, run } = sections[name]!;
  const section = await run(machine);
  results[name] = section.results;
  texts.push(`## ${title}\n\n${section.text}`);
  console.log(`\n${texts.at(-1)}`);
}
if (values.peers) {
  const folder = fileURLToPath(new URL('./results', import.meta.url));
  mkdirSync(folder, { recursive: true });
  const file = join(folder, machine.name);
  const { name, ...about } = machine;
  writeFileSync(`${file}.json`, `${JSON.stringify({ date: new Date().toISOString(), machine: about, ...results }, null, 2)}\n`);
  writeFileSync(`${file}.md`, `# ${name}\n\n${texts.join('\n\n')}\n`);
  console.log(`\nWritten to ${file}.json and ${name}.md`);
}
