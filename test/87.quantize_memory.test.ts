import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CausalLM, type QuantizationConfig } from '../lib/index.ts';
import { elementCount } from '../lib/model/tensor.ts';
import { deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const child = fileURLToPath(new URL('87.quantize_memory_child.ts', import.meta.url));
const nf4: QuantizationConfig = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true };
const int8: QuantizationConfig = { loadIn8bit: true };

// 201 million weights: 402 MB in bfloat16, the largest tensor 34 MB.
const kHidden = 2048;
const kWide = 8192;
const kLayers = 3;
const kVocabulary = 64;
const kLargest = 2 * kHidden * kWide;
const config = tinyConfig({
  vocab_size: kVocabulary,
  num_hidden_layers: kLayers,
  hidden_size: kHidden,
  intermediate_size: kWide,
  num_attention_heads: 16,
  num_key_value_heads: 16,
});

const shapes: Record<string, number[]> = {
  'model.embed_tokens.weight': [kVocabulary, kHidden],
  'model.norm.weight': [kHidden],
  'lm_head.weight': [kVocabulary, kHidden],
};
for (let layer = 0; layer < kLayers; ++layer) {
  const prefix = `model.layers.${layer}`;
  for (const norm of ['input_layernorm', 'post_attention_layernorm']) shapes[`${prefix}.${norm}.weight`] = [kHidden];
  for (const part of 'qkvo') shapes[`${prefix}.self_attn.${part}_proj.weight`] = [kHidden, kHidden];
  for (const part of ['gate', 'up']) shapes[`${prefix}.mlp.${part}_proj.weight`] = [kWide, kHidden];
  shapes[`${prefix}.mlp.down_proj.weight`] = [kHidden, kWide];
}

/** A folder with that model, its weights the same 8 MB over and over. */
function writeModel(): string {
  const folder = temporaryFolder();
  const header: Record<string, unknown> = {};
  let end = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const begin = end;
    end += 2 * elementCount(shape);
    header[name] = { dtype: 'BF16', shape, data_offsets: [begin, end] };
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text.padEnd(8 * Math.ceil(text.length / 8)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  // From 0.008 to 0.06, every other one negative.
  const weights = Uint16Array.from({ length: 1 << 22 }, (_, i) => 0x3c00 + ((i * 2654435761) % 0x180) + (i % 2) * 0x8000);
  const chunk = Buffer.from(weights.buffer);
  const file = openSync(join(folder, 'model.safetensors'), 'w');
  writeSync(file, length);
  writeSync(file, padded);
  for (let at = 0; at < end; at += chunk.length) writeSync(file, chunk, 0, Math.min(chunk.length, end - at));
  closeSync(file);
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  return folder;
}

interface Peak {
  before: number;
  after: number;
  quantized: number;
}

function load(folder: string, quantizationConfig: QuantizationConfig | null): Peak {
  const args = ['--import', 'tsx', child, folder, JSON.stringify(quantizationConfig)];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout) as Peak;
}

/** Weights are held as codes, beside one tensor that is being read. */
function assertStreams({ before, after, quantized }: Peak, what: string): void {
  const megabytes = (bytes: number) => `${Math.round(bytes / 1e6)} MB`;
  assert.ok(quantized > 1e8, `${what}: only ${megabytes(quantized)} are quantised`);
  const most = before + quantized + kLargest;
  assert.ok(
    after < most,
    `${what}: ${megabytes(after)} resident; expected less than ${megabytes(most)}, of which ${megabytes(before)} before`,
  );
}

describe('loading a quantised model', function () {
  this.timeout(300_000);
  before(function () {
    if (process.platform !== 'linux') this.skip();
  });
  after(deleteTemporaryFolders);

  it('takes the memory of the codes and of one tensor more, from floats and from codes', async () => {
    const folder = writeModel();
    for (const quantizationConfig of [nf4, int8]) {
      const what = JSON.stringify(quantizationConfig);
      assertStreams(load(folder, quantizationConfig), what);
      const packed = temporaryFolder();
      await using model = await CausalLM.fromPretrained(folder, { quantizationConfig });
      await model.savePretrained(packed);
      assertStreams(load(packed, null), `saved with ${what}`);
    }
  });
});
