import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import * as reference from './kernels/reference.ts';
import { assertClose, assertGradients, assertRefused, dot, Random } from './kernels/support.ts';

describe('lowrank/kernels: embedding', () => {
  it('takes rows, and adds their gradients up', () => {
    const random = new Random();
    for (let round = 0; round < 20; round++) {
      const [rows, columns] = [1 + random.below(30), random.below(70)];
      const ids = random.ints(random.below(60), rows);
      const table = random.normals(rows * columns);
      const x = kernels.embedding({ table, rows, columns, ids });
      assertClose(x, reference.embedding(table, ids, columns), 0, `round ${round}`);
      const dx = random.normals(x.length);
      const dTable = kernels.embeddingBackward({ ids, dx, rows, columns });
      assertGradients(`round ${round}`, { table }, { table: dTable }, (moved) => dot(reference.embedding(moved.table, ids, columns), dx));
    }
  });

  it('reads a table in a storage type', () => {
    const random = new Random();
    const table = { dtype: 'Q8_0', data: random.bytes(5 * 2 * 34, 0x40) };
    const ids = Int32Array.from([4, 0, 4]);
    const values = kernels.dequantize({ weight: table, rows: 5, columns: 64 });
    assertClose(kernels.embedding({ table, rows: 5, columns: 64, ids }), reference.embedding(values, ids, 64), 0, 'Q8_0');
  });

  it('names what does not fit', () => {
    const table = new Float32Array(6);
    const ids = Int32Array.from([0, 3]);
    assertRefused(() => kernels.embedding({ table, rows: 3, columns: 2, ids }), 'SHAPE_MISMATCH', '3');
    assertRefused(() => kernels.embedding({ table, rows: 3, columns: 2, ids: Int32Array.from([-1]) }), 'SHAPE_MISMATCH', '-1');
    assertRefused(() => kernels.embedding({ table, rows: 4, columns: 2, ids }), 'SHAPE_MISMATCH', 'table', '6', '8');
    assertRefused(() => kernels.embedding({ table, rows: 3, columns: 2, ids: [0] as never }), 'SHAPE_MISMATCH', 'ids', 'Int32Array');
    const options = { ids, dx: new Float32Array(4), rows: 3, columns: 2 };
    assertRefused(() => kernels.embeddingBackward(options), 'SHAPE_MISMATCH', 'ids[1] is 3');
  });
});

describe('lowrank/kernels: linearCrossEntropy', () => {
  it('agrees with softmax cross-entropy and has its gradients', () => {
    const random = new Random();
    for (let round = 0; round < 16; round++) {
      const [rows, channels, vocabulary] = [random.below(20), 1 + random.below(40), 1 + random.below(300)];
      const [h, weight] = [random.normals(rows * channels), random.normals(vocabulary * channels)];
      const targets = random.ints(rows, vocabulary);
      const options = { h, weight, vocabulary, channels, targets, gradScale: 0.5 };
      const got = kernels.linearCrossEntropy({ ...options, gradients: 'all' });
      const want = reference.crossEntropy(h, weight, targets, channels, vocabulary);
      const what = `${rows} rows, ${channels} channels, vocabulary ${vocabulary}`;
      assertClose([got.nllSum], [want.nllSum], 2e-6, what);
      assert.equal(got.correct, want.correct, what);
      assertGradients(
        what,
        { h, weight },
        { h: got.dh!, weight: got.dWeight! },
        (moved) => 0.5 * reference.crossEntropy(moved.h, moved.weight, targets, channels, vocabulary).nllSum,
      );
      assertClose(kernels.linearCrossEntropy(options).dh!, got.dh!, 1e-6, `${what}, without the weight's gradient`);
      const loss = kernels.linearCrossEntropy({ ...options, gradients: 'none' });
      assert.deepEqual(Object.keys(loss), ['nllSum', 'correct']);
      assertClose([loss.nllSum], [want.nllSum], 2e-6, `${what}, loss only`);
    }
  });

  it('names what does not fit', () => {
    const good = { h: new Float32Array(6), weight: new Float32Array(12), vocabulary: 4, channels: 3, targets: Int32Array.from([0, 3]) };
    const withTargets = (...targets: number[]) => ({ ...good, targets: Int32Array.from(targets) });
    assertRefused(() => kernels.linearCrossEntropy(withTargets(0, 4)), 'SHAPE_MISMATCH', '4');
    assertRefused(() => kernels.linearCrossEntropy(withTargets(0, -100)), 'SHAPE_MISMATCH', '-100');
    assertRefused(() => kernels.linearCrossEntropy(withTargets(0)), 'SHAPE_MISMATCH', 'h is', '6', '3');
    assertRefused(() => kernels.linearCrossEntropy({ ...good, vocabulary: 5 }), 'SHAPE_MISMATCH', 'weight', '12', '15');
    assertRefused(() => kernels.linearCrossEntropy({ ...good, gradients: 'some' as never }), 'INVALID_OPTION', 'gradients', 'some');
  });
});
