import assert from 'node:assert/strict';
import { CausalLM, type Tensor } from '../lib/index.ts';
import { assertFails, largestDifference, tinyConfig } from './support/tiny_models.ts';

/** fp32 with another order of sums: rows alone or packed with others. */
const kSame = 1e-5;

function rowOf(logits: Tensor, row: number, from: number, to: number): Float32Array {
  const [, width = 0, vocabulary = 0] = logits.shape;
  return logits.data.subarray((row * width + from) * vocabulary, (row * width + to) * vocabulary);
}

describe('forward and loss over batches', () => {
  let model: CausalLM;
  before(async () => {
    model = await CausalLM.fromConfig(tinyConfig(), { seed: 3 });
  });
  after(() => model.dispose());

  it('gives every row the logits it has alone, whatever its neighbours and their lengths', async () => {
    const rows = [[1, 2, 3], [30], [4, 5, 6, 7, 8, 9, 10], [11, 12]];
    const logits = await model.forward({ inputIds: rows });
    assert.deepEqual(logits.shape, [4, 7, 37]);
    for (const [r, row] of rows.entries()) {
      const alone = await model.forward({ inputIds: [row] });
      assert.ok(largestDifference(rowOf(logits, r, 0, row.length), alone.data) < kSame);
      assert.ok(rowOf(logits, r, row.length, 7).every((value) => value === 0));
    }
  });

  it('leaves out padding on either side; its logits are zeros', async () => {
    const logits = await model.forward({
      inputIds: [
        [1, 2, 3, 0, 0],
        [0, 0, 1, 2, 3],
      ],
      attentionMask: [
        [1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1],
      ],
    });
    const alone = await model.forward({ inputIds: [[1, 2, 3]] });
    assert.ok(largestDifference(rowOf(logits, 0, 0, 3), alone.data) < kSame);
    // Only differences of positions count, so that a shift of all changes nothing but rounding.
    assert.ok(largestDifference(rowOf(logits, 1, 2, 5), alone.data) < 1e-4);
    assert.ok(rowOf(logits, 0, 3, 5).every((value) => value === 0) && rowOf(logits, 1, 0, 2).every((value) => value === 0));
  });

  it('takes a row without any token', async () => {
    const logits = await model.forward({ inputIds: [[], [1, 2]], attentionMask: [[], [1, 1]] });
    assert.deepEqual(logits.shape, [2, 2, 37]);
    await assertFails(() => model.forward({ inputIds: [[1, 2]], attentionMask: [[0, 0]] }), 'INVALID_OPTION', /no token/);
    await assertFails(() => model.forward({ inputIds: [] }), 'INVALID_OPTION', /no token/);
  });

  it('keeps positions of tokens around padding, and refuses that with sliding windows', async () => {
    const batch = { inputIds: [[1, 2, 9, 3]], attentionMask: [[1, 1, 0, 1]] };
    const gap = await model.forward(batch);
    const closed = await model.forward({ inputIds: [[1, 2, 3]] });
    assert.ok(largestDifference(rowOf(gap, 0, 0, 2), rowOf(closed, 0, 0, 2)) < kSame);
    assert.ok(largestDifference(rowOf(gap, 0, 3, 4), rowOf(closed, 0, 2, 3)) > 1e-3);
    const windowed = await CausalLM.fromConfig(tinyConfig({ architectures: ['MistralForCausalLM'], sliding_window: 3 }));
    await assertFails(() => windowed.forward(batch), 'INVALID_OPTION', /attentionMask\[0\].*column 2/);
  });

  it('gives the mean over labels that are not -100, shifted inside, equal to that of the logits', async () => {
    const inputIds = [
      [1, 2, 3, 4],
      [5, 6, 7],
    ];
    const labels = [
      [1, -100, 3, 4],
      [-100, 6, -100],
    ];
    const { loss, tokens } = await model.loss({ inputIds, labels });
    assert.equal(tokens, 3);
    const logits = await model.forward({ inputIds });
    const nll = (row: number, column: number, id: number) => {
      const values = Array.from(rowOf(logits, row, column, column + 1));
      return Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0)) - (values[id] as number);
    };
    const expected = (nll(0, 1, 3) + nll(0, 2, 4) + nll(1, 0, 6)) / 3;
    assert.ok(Math.abs(loss - expected) < 1e-5, `${loss} ${expected}`);
  });

  it('gives the gradient of every parameter of a model without adapters: finite differences agree', async () => {
    for (const tied of [false, true]) {
      const changes = {
        tie_word_embeddings: tied,
        attention_bias: true,
        vocab_size: 11,
        hidden_size: 6,
        intermediate_size: 8,
        num_hidden_layers: 2,
      };
      const small = await CausalLM.fromConfig(tinyConfig(changes), { seed: 9 });
      const batch = {
        inputIds: [
          [1, 2, 3, 4, 1],
          [5, 6, 7],
        ],
        labels: [
          [1, 2, 3, 4, 1],
          [5, 6, 7],
        ],
      };
      const { loss, gradients } = await small.lossAndGradients(batch);
      assert.ok(Math.abs(loss - (await small.loss(batch)).loss) < 1e-6);
      assert.deepEqual(
        [...gradients.keys()].sort(),
        small
          .parameters()
          .map(({ name }) => name)
          .sort(),
      );
      for (const [name, gradient] of gradients) {
        const values = await small.core.native.readParameter(name);
        const largest = gradient.data.reduce((best, value, i) => (Math.abs(value) > Math.abs(gradient.data[best] as number) ? i : best), 0);
        // The change of an fp32 loss is known to about 1e-7 / step.
        const step = 1e-2;
        const lossAt = async (value: number) => {
          const changed = values.slice();
          changed[largest] = value;
          await small.core.native.setTensor(name, changed);
          return (await small.loss(batch)).loss;
        };
        const at = values[largest] as number;
        const slope = ((await lossAt(at + step)) - (await lossAt(at - step))) / (2 * step);
        await small.core.native.setTensor(name, values);
        const analytic = gradient.data[largest] as number;
        assert.ok(
          Math.abs(slope - analytic) < 1e-4 + 0.02 * Math.abs(analytic),
          `${name}[${largest}]: ${analytic}, by differences ${slope}`,
        );
      }
      await small.dispose();
    }
  });

  const wrong: [string, object | undefined, string, RegExp][] = [
    ['an id beyond the vocabulary', { inputIds: [[1, 37]] }, 'INVALID_OPTION', /inputIds\[0\]\[1\] is 37.*0 to 36/],
    ['a negative id', { inputIds: [[-1]] }, 'INVALID_OPTION', /inputIds\[0\]\[0\] is -1/],
    ['a fraction', { inputIds: [[1.5]] }, 'INVALID_OPTION', /inputIds/],
    ['text', { inputIds: 'abc' }, 'INVALID_OPTION', /inputIds is "abc"/],
    ['one row that is no array', { inputIds: [1, 2] }, 'INVALID_OPTION', /inputIds/],
    [
      'a mask with fewer rows',
      { inputIds: [[1], [2]], attentionMask: [[1]] },
      'SHAPE_MISMATCH',
      /attentionMask has 1 rows; inputIds has 2/,
    ],
    ['a mask with shorter rows', { inputIds: [[1, 2]], attentionMask: [[1]] }, 'SHAPE_MISMATCH', /attentionMask\[0\] has 1 columns/],
    ['a mask of other values', { inputIds: [[1, 2]], attentionMask: [[1, 2]] }, 'INVALID_OPTION', /attentionMask\[0\]\[1\] is 2/],
    ['labels of another length', { inputIds: [[1, 2]], labels: [[1]] }, 'SHAPE_MISMATCH', /labels\[0\]/],
    ['nothing', undefined, 'INVALID_OPTION', /batch: found undefined/],
    [
      'a misspelt part',
      { inputIds: [[1, 2]], labels: [[1, 2]], attention_mask: [[1, 1]] },
      'UNKNOWN_OPTION',
      /did you mean 'attentionMask'/,
    ],
    ['no labels', { inputIds: [[1, 2]] }, 'INVALID_OPTION', /labels/],
    ['a label beyond the vocabulary', { inputIds: [[1, 2]], labels: [[1, 99]] }, 'INVALID_OPTION', /labels\[0\]\[1\] is 99/],
    ['labels that supervise nothing', { inputIds: [[1, 2]], labels: [[1, -100]] }, 'INVALID_OPTION', /supervise nothing/],
  ];
  for (const [what, batch, code, pattern] of wrong) {
    it(`refuses ${what}`, () => assertFails(() => model.loss(batch as Parameters<CausalLM['loss']>[0]), code, pattern));
  }

  it('runs operations that were started together one after the other', async () => {
    const batches = Array.from({ length: 8 }, (_, i) => ({ inputIds: [[i, i + 1, i + 2]] }));
    const together = await Promise.all(batches.map((batch) => model.forward(batch)));
    for (const [i, batch] of batches.entries()) assert.deepEqual(together[i]?.data, (await model.forward(batch)).data);
  });

  it('cannot be used after dispose(), which waits for what is running', async () => {
    const doomed = await CausalLM.fromConfig(tinyConfig());
    const running = doomed.forward({ inputIds: [[1, 2, 3]] });
    await doomed.dispose();
    await doomed.dispose();
    assert.deepEqual((await running).shape, [1, 3, 37]);
    await assertFails(() => doomed.forward({ inputIds: [[1]] }), 'INVALID_OPTION', /disposed/);
    await assertFails(() => doomed.parameters(), 'INVALID_OPTION', /disposed/);
    await assertFails(() => doomed.generate([1]), 'INVALID_OPTION', /disposed/);
  });
});
