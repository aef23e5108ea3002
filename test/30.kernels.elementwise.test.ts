import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import * as reference from './kernels/reference.ts';
import { assertClose, assertGradients, assertRefused, dot, Random } from './kernels/support.ts';

describe('lowrank/kernels: rmsNorm', () => {
  it('agrees with its formula and has its gradients', () => {
    const random = new Random();
    for (let round = 0; round < 30; round++) {
      const [tokens, channels] = [random.below(20), 1 + random.below(150)];
      const [x, weight] = [random.normals(tokens * channels), random.normals(channels)];
      const eps = channels > 3 && random.coin() ? 1e-6 : 1e-2; // of few channels the norm turns too sharply for differences
      const { y, invRms } = kernels.rmsNorm({ x, weight, tokens, channels, eps });
      assertClose(y, reference.rmsNorm(x, weight, eps, tokens, channels), 1e-6, `round ${round}`);
      const dy = random.normals(y.length);
      const { dx, dWeight } = kernels.rmsNormBackward({ x, weight, invRms, dy, tokens, channels });
      assertGradients(`round ${round}`, { x, weight }, { x: dx, weight: dWeight }, (moved) =>
        dot(reference.rmsNorm(moved.x, moved.weight, eps, tokens, channels), dy),
      );
    }
  });

  it('names what does not fit', () => {
    const good = { x: new Float32Array(6), weight: new Float32Array(3), tokens: 2, channels: 3 };
    assertRefused(() => kernels.rmsNorm({ ...good, weight: new Float32Array(2) }), 'SHAPE_MISMATCH', 'weight', '2', '3');
    assertRefused(() => kernels.rmsNorm({ ...good, channels: 0 }), 'SHAPE_MISMATCH', 'channels is 0');
    assertRefused(() => kernels.rmsNorm({ ...good, eps: -1 }), 'INVALID_OPTION', 'eps', '-1');
    assertRefused(() => kernels.rmsNorm(null as never), 'INVALID_OPTION', 'null');
    const backward = { ...good, invRms: new Float32Array(1), dy: good.x };
    assertRefused(() => kernels.rmsNormBackward(backward), 'SHAPE_MISMATCH', 'invRms', '1', '2');
  });
});

describe('lowrank/kernels: swiglu', () => {
  it('agrees with its formula and has its gradients', () => {
    const random = new Random();
    for (let round = 0; round < 20; round++) {
      const [tokens, channels] = [random.below(20), random.below(100)];
      const [gate, up] = [random.normals(tokens * channels, 3), random.normals(tokens * channels)];
      const h = kernels.swiglu({ gate, up, tokens, channels });
      assertClose(h, reference.swiglu(gate, up), 1e-6, `round ${round}`);
      const dh = random.normals(h.length);
      const { dGate, dUp } = kernels.swigluBackward({ gate, up, dh, tokens, channels });
      assertGradients(`round ${round}`, { gate, up }, { gate: dGate, up: dUp }, (moved) => dot(reference.swiglu(moved.gate, moved.up), dh));
    }
  });

  it('keeps large gates finite, and names what does not fit', () => {
    const gate = Float32Array.from([-1e4, -100, 0, 100, 1e4]);
    const up = new Float32Array(5).fill(1);
    assertClose(kernels.swiglu({ gate, up, tokens: 1, channels: 5 }), [0, 0, 0, 100, 1e4], 1e-6, 'saturated');
    assertRefused(() => kernels.swiglu({ gate, up, tokens: 2, channels: 5 }), 'SHAPE_MISMATCH', 'gate', '5', '10');
    const options = { gate, up, dh: new Float32Array(4), tokens: 1, channels: 5 };
    assertRefused(() => kernels.swigluBackward(options), 'SHAPE_MISMATCH', 'dh', '4', '5');
  });
});

describe('lowrank/kernels: dropout', () => {
  it('keeps what Philox keeps, scaled', () => {
    const random = new Random();
    for (let round = 0; round < 12; round++) {
      const [tokens, channels] = [random.below(9), random.below(70)];
      const [seed, module, p] = [random.below(2 ** 31), random.below(2 ** 31), round === 0 ? 0 : Math.fround(random.uniform() * 0.9)];
      const x = random.normals(tokens * channels);
      const mask = reference.dropoutMask(x.length, p, seed, module);
      assertClose(
        kernels.dropout({ x, tokens, channels, p, seed, module }),
        x.map((value, i) => value * mask[i]!),
        2e-7,
        `p ${p}`,
      );
    }
  });

  it('drops the share it is told, another for each seed and module', () => {
    const x = new Float32Array(100_000).fill(1);
    const draw = (seed: number, module: number) => kernels.dropout({ x, tokens: 100, channels: 1000, p: 0.25, seed, module });
    const first = draw(1, 0);
    const dropped = first.filter((value) => value === 0).length;
    assert.ok(Math.abs(dropped - 25_000) < 700, `${dropped} of 100000 dropped`); // five standard deviations
    for (const other of [draw(2, 0), draw(1, 1)]) {
      const same = other.filter((value, i) => (value === 0) === (first[i] === 0)).length;
      assert.ok(Math.abs(same - 62_500) < 800, `${same} of 100000 agree`);
    }
    assert.deepEqual(draw(1, 0), first);
    assertRefused(() => kernels.dropout({ x, tokens: 100, channels: 1000, p: 1, seed: 0 }), 'INVALID_OPTION', 'p is 1');
    assertRefused(() => kernels.dropout({ x, tokens: 100, channels: 1000, p: 0.1, seed: 0.5 }), 'INVALID_OPTION', 'seed is 0.5');
    assertRefused(() => kernels.dropout({ x, tokens: 1, channels: 1, p: 0.1, seed: 0 }), 'SHAPE_MISMATCH', 'x is');
  });
});
