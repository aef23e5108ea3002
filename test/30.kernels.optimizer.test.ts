import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as kernels from '../lib/kernels.ts';
import { native } from '../lib/native.ts';
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

describe('lowrank/kernels: optimizerUpdate8bitBlockwise', () => {
  /** Any map: the quantiles of random numbers, with zero and the ends. */
  const anyMap = (random: Random, low: number) =>
    Float32Array.from([low, 0, 1, ...Array.from({ length: 253 }, () => low + (1 - low) * random.uniform())]).sort();
  const nearest = (map: Float32Array, x: number) =>
    map.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(map[best]! - x) ? i : best), 0);

  it('keeps the nearest codes, whatever the map', () => {
    const random = new Random();
    for (let round = 0; round < 6; round++) {
      const n = 1 + random.below(700);
      const blocks = Math.ceil(n / 256);
      const [qmap1, qmap2] = [anyMap(random, -1), anyMap(random, 0)];
      const param = random.normals(n);
      const codes = () => ({ state1: new Uint8Array(n).fill(nearest(qmap1, 0)), state2: new Uint8Array(n).fill(nearest(qmap2, 0)) });
      const options = { optimizer: 'adamw', param, qmap1, qmap2, lr: 1e-2, beta2: 0.99, weightDecay: round % 2 ? 0.1 : 0 } as const;
      const states = { ...codes(), absmax1: new Float32Array(blocks), absmax2: new Float32Array(blocks) };
      const start = param.slice();
      for (let step = 1; step <= 4; step++) {
        const grad = random.normals(n).map((value, i) => (i % 5 === 0 ? 0 : value));
        const of = (state: Uint8Array, absmax: Float32Array, map: Float32Array) =>
          Float64Array.from(state, (value, i) => map[value]! * absmax[Math.floor(i / 256)]!);
        const m = of(states.state1, states.absmax1, qmap1).map((value, i) => 0.9 * value + 0.1 * grad[i]!);
        const v = of(states.state2, states.absmax2, qmap2).map((value, i) => 0.99 * value + 0.01 * grad[i]! * grad[i]!);
        const p = Float64Array.from(param, (value, i) => {
          const update = m[i]! / (1 - 0.9 ** step) / (Math.sqrt(v[i]! / (1 - 0.99 ** step)) + 1e-8);
          return value * (1 - options.lr * options.weightDecay) - options.lr * update;
        });
        kernels.optimizerUpdate8bitBlockwise({ ...options, ...states, grad, step });
        assertClose(param, p, 1e-6, `round ${round} param`);
        for (const [state, absmax, map, want] of [
          [states.state1, states.absmax1, qmap1, m],
          [states.state2, states.absmax2, qmap2, v],
        ] as const) {
          for (let i = 0; i < n; i++) {
            const begin = i - (i % 256);
            const largest = want.slice(begin, begin + 256).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
            assert.ok(Math.abs(absmax[begin / 256]! - largest) <= 1e-6 * largest);
            const x = want[i]! / largest;
            const distance = Math.abs(map[state[i]!]! - x);
            assert.ok(distance <= Math.abs(map[nearest(map, x)]! - x) + 2e-6, `round ${round} [${i}]: ${x} is stored as ${map[state[i]!]}`);
          }
        }
      }
      for (let i = 0; i < n && options.weightDecay === 0; i += 5) assert.equal(param[i], start[i], 'moved without a gradient');
    }
  });

  it('names what does not fit, and changes nothing for a gradient that is not finite', () => {
    const map = Float32Array.from({ length: 256 }, (_, i) => (i - 127) / 128);
    const good = {
      optimizer: 'lion' as const,
      param: Float32Array.of(1, 2),
      grad: Float32Array.of(1, 1),
      state1: new Uint8Array(2),
      absmax1: new Float32Array(1),
      qmap1: map,
      step: 1,
      lr: 0.5,
    };
    const update = (change: object) => () => kernels.optimizerUpdate8bitBlockwise({ ...good, ...change });
    assertRefused(update({ grad: Float32Array.of(1, Number.NaN) }), 'NON_FINITE', 'gradient');
    assert.deepEqual([...good.param, ...good.state1, ...good.absmax1], [1, 2, 0, 0, 0]);
    assertRefused(update({ optimizer: 'momentum' }), 'INVALID_OPTION', 'optimizer', 'adamw');
    assertRefused(update({ optimizer: 'adamw' }), 'SHAPE_MISMATCH', 'state2', 'Uint8Array');
    assertRefused(update({ state1: new Uint8Array(3) }), 'SHAPE_MISMATCH', 'state1', '2');
    assertRefused(update({ absmax1: new Float32Array(2) }), 'SHAPE_MISMATCH', 'absmax1', '1');
    assertRefused(update({ qmap1: map.slice().reverse() }), 'SHAPE_MISMATCH', 'qmap1', 'ascend');
    assertRefused(update({ state2: new Uint8Array(2) }), 'SHAPE_MISMATCH', 'state2', 'lion');
    assertRefused(update({ percentile: 1 }), 'UNKNOWN_OPTION', 'percentile');
    update({})();
    assert.deepEqual([...good.param], [0.5, 1.5]);
  });
});

describe('lowrank/kernels: muon', () => {
  const { cases, steps } = JSON.parse(readFileSync(new URL('./fixtures/muon/muon.json', import.meta.url), 'utf8')) as {
    cases: { rows: number; columns: number; adjust: kernels.MuonOptions['adjustLrFn']; lr: number; weight_decay: number }[];
    steps: number;
  };

  it('follows torch.optim.Muon, but for the roundings of its bfloat16', async () => {
    const file = native().openTensorFile(fileURLToPath(new URL('./fixtures/muon/muon.safetensors', import.meta.url)));
    const read = (name: string) => file.read(name) as Float32Array;
    for (const [i, { rows, columns, adjust, lr, weight_decay: weightDecay }] of cases.entries()) {
      const [p, momentum] = [read(`${i}.start`), new Float32Array(rows * columns)];
      for (let step = 0; step < steps; step++) {
        const before = p.slice();
        kernels.muon({ rows, columns, p, momentum, g: read(`${i}.gradient.${step}`), learningRate: lr, weightDecay, adjustLrFn: adjust });
        const want = read(`${i}.weight.${step}`);
        const moved = Math.hypot(...p.map((value, j) => value - (before[j] as number)));
        const apart = Math.hypot(...p.map((value, j) => value - (want[j] as number)));
        // Torch iterates in bfloat16, whose roundings (2^-9) grow in five rounds: a few hundredths of what a step moves.
        assert.ok(apart < 0.04 * moved, `case ${i}, step ${step}: ${apart / moved} of the step`);
      }
      assertClose(momentum, doubles(read(`${i}.momentum`)), 1e-6, `momentum of case ${i}`);
    }
    file.close();
  });

  it('names what does not fit', () => {
    const good = { rows: 2, columns: 3, p: new Float32Array(6), momentum: new Float32Array(6), g: new Float32Array(6), learningRate: 0.02 };
    kernels.muon(good);
    assertRefused(() => kernels.muon({ ...good, g: new Float32Array(5) }), 'SHAPE_MISMATCH', 'g is', '6');
    assertRefused(() => kernels.muon({ ...good, rows: 0 }), 'SHAPE_MISMATCH', 'rows is 0');
    assertRefused(() => kernels.muon({ ...good, beta: 1 }), 'INVALID_OPTION', 'beta is 1');
    assertRefused(() => kernels.muon({ ...good, adjustLrFn: 'other' as never }), 'INVALID_OPTION', 'adjustLrFn', 'match_rms_adamw');
    assertRefused(() => kernels.muon({ ...good, nesterov: true } as never), 'UNKNOWN_OPTION', 'nesterov');
  });
});
