// Loads a folder with a quantizationConfig and prints { before, after, quantized }: the most resident bytes of the process, before loading and after,
// and what the weights take; test/87.quantize_memory.test.ts runs it.
import { readFileSync } from 'node:fs';
import { CausalLM } from '../lib/index.ts';
import { systemInfo } from '../lib/system.ts';

const kBytesPerWeight: Record<string, number> = { NF4: 36 / 64, FP4: 36 / 64, INT8: 68 / 64 };

function mostResident(): number {
  const [, kilobytes = ''] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return 1024 * Number(kilobytes);
}

const [folder = '', quantizationConfig = 'null'] = process.argv.slice(2);
systemInfo();
const before = mostResident();
const model = await CausalLM.fromPretrained(folder, { quantizationConfig: JSON.parse(quantizationConfig) });
const quantized = model.parameters().reduce((sum, { dtype, shape }) => {
  return sum + (kBytesPerWeight[dtype] ?? 0) * shape.reduce((product, size) => product * size, 1);
}, 0);
process.stdout.write(JSON.stringify({ before, after: mostResident(), quantized }));
await model.dispose();
