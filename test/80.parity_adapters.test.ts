import assert from 'node:assert/strict';
import { PeftModel } from '../lib/index.ts';
import { linePrinted } from './support/console.ts';
import { assertClose, maskedRows, type ParityAdapter, parityAdapter, parityAdapterNames, valuesOf } from './support/parity.ts';

const kLogits = 1e-4;
const kLoss = 1e-5;
const kGradient = 1e-3;

describe('parity with PEFT: adapters that PEFT wrote', () => {
  for (const [modelName, adapterName] of parityAdapterNames()) {
    describe(`${adapterName} on ${modelName}`, () => {
      let fixture: ParityAdapter;
      let model: PeftModel;
      before(async () => {
        fixture = parityAdapter(modelName, adapterName);
        model = await PeftModel.fromPretrained(fixture.model.folder, fixture.folder, { isTrainable: true });
      });
      after(() => model?.dispose());

      it('gives the logits and the loss of every batch', async () => {
        for (const [name, batch] of Object.entries(fixture.model.batches)) {
          const logits = maskedRows(await model.forward(batch), batch.attentionMask);
          assertClose(`logits of '${name}'`, logits, valuesOf(fixture.expected, `logits.${name}`), kLogits);
          const { loss } = await model.loss(batch);
          const expected = fixture.loss[name] as number;
          assert.ok(Math.abs(loss / expected - 1) <= kLoss, `loss of '${name}' ${loss}; expected ${expected}`);
        }
      });

      it('gives the gradient of everything trainable, under the names of the adapter file', async () => {
        const batch = fixture.model.batches[fixture.trainedBatch];
        assert.ok(batch);
        const { gradients, tokens } = await model.lossAndGradients(batch);
        assert.equal(tokens, batch.tokens);
        const expectedNames = [...fixture.expected.keys()]
          .filter((key) => key.startsWith('gradient.'))
          .map((key) => key.slice('gradient.'.length));
        assert.deepEqual([...gradients.keys()].sort(), expectedNames.sort());
        for (const [name, gradient] of gradients) {
          assertClose(`gradient of ${name}`, gradient, valuesOf(fixture.expected, `gradient.${name}`), kGradient);
        }
      });

      it('prints the line of print_trainable_parameters', () => {
        assert.equal(
          linePrinted(() => model.printTrainableParameters()),
          fixture.trainableParameters,
        );
      });
    });
  }
});
