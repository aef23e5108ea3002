import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import { assertClose, assertRefused, doubles, Random } from './kernels/support.ts';

describe('lowrank/kernels: gradNorm', () => {
  it('is the norm of all gradients together', () => {
    const random = new Random();
    for (let round = 0; round < 10; round++) {
      const gradients = Array.from({ length: random.below(5) }, () => random.normals(random.below(3000)));
      const want = Math.sqrt(gradients.reduce((sum, g) => sum + g.reduce((squares, x) => squares + x * x, 0), 0));
      assertClose([kernels.gradNorm(gradients)], [want], 1e-6, `round ${round}`);
    }
    assert.ok(Number.isNaN(kernels.gradNorm([Float32Array.from([1, Number.NaN])])));
    assertRefused(() => kernels.gradNorm([[1, 2]] as never), 'SHAPE_MISMATCH', 'gradients[0]', 'Float32Array');
    assertRefused(() => kernels.gradNorm(new Float32Array(2) as never), 'SHAPE_MISMATCH', 'gradients', 'array');
  });
});

describe('lowrank/kernels: adamW', () => {
  it('follows torch.optim.AdamW over several steps', () => {
    const random = new Random();
    for (let round = 0; round < 8; round++) {
      const n = random.below(300);
      const options = { learningRate: 1e-2, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: round % 2 ? 0.1 : 0, gradScale: 0.7 };
      const [p, m, v] = [random.normals(n), new Float32Array(n), new Float32Array(n)];
      const want = { p: doubles(p), m: doubles(m), v: doubles(v) };
      for (let step = 1; step <= 5; step++) {
        const g = random.normals(n);
        kernels.adamW({ p, m, v, g, step, ...options });
        for (let i = 0; i < n; i++) {
          const gradient = g[i]! * options.gradScale;
          want.p[i]! *= 1 - options.learningRate * options.weightDecay;
          want.m[i] = 0.9 * want.m[i]! + 0.1 * gradient;
          want.v[i] = 0.99 * want.v[i]! + 0.01 * gradient * gradient;
          const deviation = Math.sqrt(want.v[i]! / (1 - 0.99 ** step)) + options.epsilon;
          want.p[i]! -= (options.learningRate * (want.m[i]! / (1 - 0.9 ** step))) / deviation;
        }
      }
      assertClose(p, want.p, 5e-7, `round ${round} p`);
      assertClose(m, want.m, 1e-6, `round ${round} m`);
      assertClose(v, want.v, 1e-6, `round ${round} v`);
    }
  });

  it('never moves a parameter whose gradient has always been zero', () => {
    const [p, m, v, g] = [new Float32Array([1, -2]), new Float32Array(2), new Float32Array(2), new Float32Array(2)];
    for (let step = 1; step < 50; step++) kernels.adamW({ p, m, v, g, step, learningRate: 0.1 });
    assert.deepEqual(p, new Float32Array([1, -2]));
  });

  it('names what does not fit', () => {
    const good = {
      p: new Float32Array(2),
      m: new Float32Array(2),
      v: new Float32Array(2),
      g: new Float32Array(2),
      step: 1,
      learningRate: 1,
    };
    assertRefused(() => kernels.adamW({ ...good, v: new Float32Array(3) }), 'SHAPE_MISMATCH', 'v is', '3', '2');
    assertRefused(() => kernels.adamW({ ...good, step: 0 }), 'INVALID_OPTION', 'step is 0');
    assertRefused(() => kernels.adamW({ ...good, beta1: 1 }), 'INVALID_OPTION', 'beta1 is 1');
    assertRefused(() => kernels.adamW({ ...good, lr: 1 } as never), 'UNKNOWN_OPTION', 'lr');
  });
});
