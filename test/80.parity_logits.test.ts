import assert from 'node:assert/strict';
import { CausalLM } from '../lib/index.ts';
import { assertClose, maskedRows, parityGguf, parityGgufNames, parityModel, parityModelNames, valuesOf } from './support/parity.ts';

// fp32 here and there; the fixtures' own distance from fp64 is below 1e-5.
const kLogits = 1e-4;
const kLoss = 1e-5;

describe('parity with Transformers: logits and loss', () => {
  for (const name of parityModelNames()) {
    const fixture = parityModel(name);
    describe(`${name} (${fixture.about})`, () => {
      let model: CausalLM;
      before(async () => {
        model = await CausalLM.fromPretrained(fixture.folder);
      });
      after(() => model?.dispose());

      for (const [batchName, batch] of Object.entries(fixture.batches)) {
        it(`gives the logits of the batch '${batchName}'`, async () => {
          const logits = maskedRows(await model.forward(batch), batch.attentionMask);
          assertClose('logits', logits, valuesOf(fixture.expected, `logits.${batchName}`), kLogits);
        });

        it(`gives the loss of the batch '${batchName}', a mean over its supervised tokens`, async () => {
          const { loss, tokens } = await model.loss(batch);
          assert.equal(tokens, batch.tokens);
          assert.ok(Math.abs(loss / batch.loss - 1) <= kLoss, `loss ${loss}; expected ${batch.loss}`);
        });
      }
    });
  }
});

describe('parity with Transformers: GGUF files', () => {
  for (const name of parityGgufNames()) {
    it(`gives the logits of ${name}, computed on the weights as gguf-py unpacks them`, async () => {
      const { path, inputIds, expected } = parityGguf(name);
      const model = await CausalLM.fromPretrained(path);
      try {
        assertClose('logits', await model.forward({ inputIds }), valuesOf(expected, 'logits'), kLogits);
      } finally {
        await model.dispose();
      }
    });
  }
});
