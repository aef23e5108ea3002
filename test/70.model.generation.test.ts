import assert from 'node:assert/strict';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM } from '../lib/index.ts';
import { StopStrings } from '../lib/model/stop_strings.ts';
import { assertFails, tinyConfig } from './support/tiny_models.ts';

/** Greedy tokens without a cache: the whole sequence for every token. */
async function greedy(model: CausalLM, prompt: number[], count: number): Promise<number[]> {
  const ids = [...prompt];
  for (let i = 0; i < count; ++i) {
    const { data, shape } = await model.forward({ inputIds: [ids] });
    const last = data.subarray(data.length - (shape[2] as number));
    ids.push(last.indexOf(Math.max(...last)));
  }
  return ids.slice(prompt.length);
}

describe('generation on token ids', () => {
  const architectures: [string, Record<string, unknown>][] = [
    ['Llama', {}],
    ['Mistral with a window', { architectures: ['MistralForCausalLM'], sliding_window: 4 }],
    ['Qwen2, tied', { architectures: ['Qwen2ForCausalLM'], tie_word_embeddings: true }],
  ];
  for (const [name, changes] of architectures) {
    it(`${name}: greedy tokens with the cache are those without it`, async () => {
      const model = await CausalLM.fromConfig(tinyConfig(changes), { seed: 21 });
      const { ids, finishReason, text } = await model.generate([3, 1, 4], { maxNewTokens: 20 });
      assert.deepEqual(ids, await greedy(model, [3, 1, 4], 20));
      assert.equal(finishReason, 'length');
      assert.equal(text, '');
    });
  }

  it('grows several prompts together, each as if alone', async () => {
    const model = await CausalLM.fromConfig(tinyConfig(), { seed: 22 });
    const prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 9]];
    const together = await model.generateBatch(prompts, { maxNewTokens: 12 });
    for (const [i, prompt] of prompts.entries()) assert.deepEqual(together[i], await model.generate(prompt, { maxNewTokens: 12 }));
    assert.deepEqual(await model.generateBatch([]), []);
  });

  it('runs prompts longer than a piece of the prefill', async () => {
    const model = await CausalLM.fromConfig(tinyConfig({ max_position_embeddings: 4096 }), { seed: 23 });
    const long = Array.from({ length: 1100 }, (_, i) => (i * 7) % 37);
    const together = await model.generateBatch([[4, 2], long, long.slice(0, 512)], { maxNewTokens: 3 });
    assert.deepEqual(together[1]?.ids, await greedy(model, long, 3));
    assert.deepEqual(together[0]?.ids, await greedy(model, [4, 2], 3));
    assert.deepEqual(together[2]?.ids, await greedy(model, long.slice(0, 512), 3));
  });

  it('takes dynamic rotary frequencies from a row alone, and from the whole of its prompt', async () => {
    const rope = { max_position_embeddings: 16, rope_scaling: { rope_type: 'dynamic', factor: 4 }, rope_theta: 30 };
    const model = await CausalLM.fromConfig(tinyConfig({ ...rope, initializer_range: 0.4 }), { seed: 28 });
    const prompts = [5, 700, 12, 40].map((length, row) => Array.from({ length }, (_, i) => (i * i + row) % 37));
    const together = await model.generateBatch(prompts, { maxNewTokens: 12 });
    for (const [i, prompt] of prompts.entries()) {
      assert.deepEqual(together[i], await model.generate(prompt, { maxNewTokens: 12 }));
      for await (const { id, logprob } of model.stream(prompt, { maxNewTokens: 1 })) {
        const { data, shape } = await model.forward({ inputIds: [prompt] });
        const last = data.subarray(data.length - (shape[2] as number));
        const expected = (last[id] as number) - Math.log(last.reduce((sum, value) => sum + Math.exp(value), 0));
        assert.ok(Math.abs(logprob - expected) < 1e-4, `prompt of ${prompt.length}: ${logprob}; expected ${expected}`);
      }
    }
  });

  it('ends at any end token of the configuration, which is among the ids', async () => {
    const plain = await CausalLM.fromConfig(tinyConfig(), { seed: 21 });
    const { ids } = await plain.generate([3, 1, 4], { maxNewTokens: 20 });
    const end = ids[7] as number;
    const first = ids.indexOf(end);
    for (const eos of [end, [36, end]]) {
      const ended = await CausalLM.fromConfig(tinyConfig({ eos_token_id: eos }), { seed: 21 });
      const answer = await ended.generate([3, 1, 4], { maxNewTokens: 20 });
      assert.deepEqual(answer.ids, ids.slice(0, first + 1));
      assert.equal(answer.finishReason, 'stop');
    }
  });

  it('draws the same for the same seed, other tokens for another, and greedy ones with topK 1', async () => {
    const model = await CausalLM.fromConfig(tinyConfig(), { seed: 24 });
    const draw = async (options: object) => (await model.generate([1, 2], { maxNewTokens: 24, doSample: true, ...options })).ids;
    assert.deepEqual(await draw({ seed: 5 }), await draw({ seed: 5 }));
    assert.notDeepEqual(await draw({ seed: 5 }), await draw({ seed: 6 }));
    assert.deepEqual(await draw({ topK: 1 }), await greedy(model, [1, 2], 24));
  });

  it('streams the tokens that generate() gives, with their log-probabilities', async () => {
    const model = await CausalLM.fromConfig(tinyConfig(), { seed: 25 });
    const { ids } = await model.generate([1, 2], { maxNewTokens: 6 });
    const streamed: number[] = [];
    for await (const { id, logprob } of model.stream([1, 2], { maxNewTokens: 6 })) {
      const { data, shape } = await model.forward({ inputIds: [[1, 2, ...streamed]] });
      const last = data.subarray(data.length - (shape[2] as number));
      const expected = (last[id] as number) - Math.log(last.reduce((sum, value) => sum + Math.exp(value), 0));
      assert.ok(Math.abs(logprob - expected) < 1e-4, `${logprob} ${expected}`);
      streamed.push(id);
    }
    assert.deepEqual(streamed, ids);
  });

  it('takes other work on the same model while a stream is open, and a stream that is left', async () => {
    const model = await CausalLM.fromConfig(tinyConfig(), { seed: 26 });
    const expected = (await model.generate([7], { maxNewTokens: 10 })).ids;
    for await (const _ of model.stream([1], { maxNewTokens: 50 })) break;
    const answers = await Promise.all(Array.from({ length: 4 }, () => model.generate([7], { maxNewTokens: 10 })));
    for (const answer of answers) assert.deepEqual(answer.ids, expected);
  });

  it('ends with what there is when the signal fires', async () => {
    const model = await CausalLM.fromConfig(tinyConfig(), { seed: 27 });
    const controller = new AbortController();
    const running = model.generate([1], { maxNewTokens: 100_000, signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    const { ids, finishReason } = await running;
    assert.equal(finishReason, 'abort');
    assert.ok(ids.length < 100_000);
    assert.deepEqual(await model.generate([1], { signal: AbortSignal.abort() }), { text: '', ids: [], finishReason: 'abort' });
  });

  it('refuses prompts and options that mean nothing', async () => {
    const model = await CausalLM.fromConfig(tinyConfig());
    await assertFails(() => model.generate([]), 'INVALID_OPTION', /no tokens/);
    await assertFails(() => model.generate([1, 99]), 'INVALID_OPTION', /prompt\[1\] is 99/);
    await assertFails(() => model.generate(3 as never), 'INVALID_OPTION', /prompt is 3/);
    await assertFails(() => model.generate('text'), 'INVALID_TOKENIZER', /no tokenizer/);
    await assertFails(() => model.generate([1], { stop: 'x' }), 'INVALID_TOKENIZER', /no tokenizer/);
    await assertFails(() => model.generate([1], { max_new_tokens: 3 } as object), 'UNKNOWN_OPTION', /maxNewTokens/);
    await assertFails(() => model.generate([1], { temperature: -1 }), 'INVALID_OPTION', /temperature/);
  });
});

describe('stop strings', () => {
  it('hold back what may be the beginning of one', () => {
    const stops = new StopStrings(['<end>', 'STOP']);
    assert.deepEqual(stops.push('Hello <e'), { text: 'Hello ', stopped: false });
    assert.deepEqual(stops.push('n'), { text: '', stopped: false });
    assert.deepEqual(stops.push('t>'), { text: '<ent>', stopped: false });
    assert.deepEqual(stops.push('a ST'), { text: 'a ', stopped: false });
    assert.deepEqual(stops.push('OP more'), { text: '', stopped: true });
  });

  it('cut at the first of several and give back what was held', () => {
    assert.deepEqual(new StopStrings(['c', 'b']).push('abc'), { text: 'a', stopped: true });
    const stops = new StopStrings(['xyz']);
    stops.push('abxy');
    assert.equal(stops.end(), 'xy');
    assert.deepEqual(new StopStrings([]).push('abc'), { text: 'abc', stopped: false });
  });
});

describe('generation of text by a real model', () => {
  let model: CausalLM;
  before(async () => {
    model = await CausalLM.fromPretrained(await fetchSmolLm2());
  });
  after(() => model?.dispose());

  it('answers through the chat template and ends by itself', async () => {
    const { text, finishReason } = await model.generate([{ role: 'user', content: 'What is the capital of France?' }], {
      maxNewTokens: 32,
    });
    assert.match(text, /Paris/);
    assert.equal(finishReason, 'stop');
    assert.ok(!text.includes('<|im_end|>'));
  });

  it('streams whole characters whose sum is the text of generate()', async () => {
    const prompt = 'Repeat: 你好，世界 🙂 你好，世界 🙂 你好，';
    const { text } = await model.generate(prompt, { maxNewTokens: 16 });
    const parts: string[] = [];
    for await (const token of model.stream(prompt, { maxNewTokens: 16 })) parts.push(token.text);
    assert.equal(parts.join(''), text);
    for (const part of parts.slice(0, -1)) assert.ok(!part.includes('\uFFFD'), JSON.stringify(parts));
  });

  it('ends before a stop string that spans tokens', async () => {
    const whole = await model.generate('The three primary colors are', { maxNewTokens: 24 });
    const stop = whole.text.slice(10, 16);
    const { text, finishReason } = await model.generate('The three primary colors are', {
      maxNewTokens: 24,
      stop: ['never to be seen', stop],
    });
    assert.equal(text, whole.text.slice(0, whole.text.indexOf(stop)));
    assert.equal(finishReason, 'stop');
  });
});
