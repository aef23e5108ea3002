import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { learningRateAt, type ScheduleOptions, warmupLength } from '../lib/train/schedulers.ts';

// Learning rates of Transformers 5.24 (test/reference/make_scheduler_fixture.py).
interface Case {
  type: ScheduleOptions['type'];
  kwargs: { num_cycles?: number; power?: number; lr_end?: number; timescale?: number };
  learningRate: number;
  warmupSteps: number;
  totalSteps: number;
  rates: number[];
}
const cases = JSON.parse(readFileSync(new URL('./fixtures/schedulers/schedulers.json', import.meta.url), 'utf8')) as Case[];

describe('learning-rate schedulers', () => {
  for (const type of new Set(cases.map((entry) => entry.type))) {
    it(`${type} gives Transformers' learning rates`, () => {
      for (const entry of cases.filter((candidate) => candidate.type === type)) {
        const { num_cycles: numCycles, power, lr_end: lrEnd, timescale } = entry.kwargs;
        const options: ScheduleOptions = { ...entry, numCycles, power, lrEnd, timescale };
        entry.rates.forEach((expected, step) => {
          const found = learningRateAt(step, options);
          // The two libraries' cosines may differ in the last bit.
          assert.ok(
            Math.abs(found - expected) <= 1e-15 * entry.learningRate + 1e-13 * expected,
            `${JSON.stringify(entry.kwargs)} step ${step}: ${found} is not ${expected}`,
          );
        });
      }
    });
  }

  it('warms up for warmupSteps where given, else for the ratio rounded up', () => {
    assert.equal(warmupLength(100, 0, 0), 0);
    assert.equal(warmupLength(101, 0, 0.03), 4);
    assert.equal(warmupLength(100, 7, 0.5), 7);
    assert.equal(warmupLength(101, 0.1, 0.5), 11);
  });
});
