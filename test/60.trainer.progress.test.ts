import assert from 'node:assert/strict';
import { Writable } from 'node:stream';
import tty from 'node:tty';
import { stripVTControlCharacters } from 'node:util';
import type { TrainingStep } from '../lib/train/callbacks.ts';
import { createProgress, type Progress } from '../lib/train/progress.ts';

/** A stream that keeps what is written. */
function stream(isTTY: boolean, columns = 80): tty.WriteStream & { text: string } {
  const kept = new Writable({
    decodeStrings: false,
    write(chunk: string, _encoding, done) {
      Object.assign(kept, { text: (kept as unknown as { text: string }).text + chunk });
      done();
    },
  });
  return Object.assign(kept, {
    isTTY,
    columns,
    text: '',
    getColorDepth: tty.WriteStream.prototype.getColorDepth,
  }) as unknown as tty.WriteStream & { text: string };
}

const step = (number: number): TrainingStep => ({
  step: number,
  epoch: number / 10,
  loss: 2.5,
  gradNorm: 1,
  learningRate: 1e-4,
  tokensPerSecond: 12_345.6,
  peakMemory: 0,
  skipped: false,
});

function run(progress: Progress): void {
  progress.message('hello');
  progress.begin(4, 0);
  for (const number of [1, 2, 3, 4]) {
    progress.step(step(number));
    if (number === 2) progress.log({ step: 2, epoch: 0.2, loss: 2.25, gradNorm: 1, learningRate: 1e-4, tokensPerSecond: 100 });
    if (number === 3) progress.log({ step: 3, epoch: 0.3, evalLoss: 2, evalPerplexity: Math.exp(2), evalAccuracy: 0.5 });
  }
  progress.warn('careful');
  progress.end();
}

describe('progress', () => {
  it('is a bar with loss, tokens/s and time left on a terminal', () => {
    const out = stream(true);
    run(createProgress('info', false, out));
    assert.match(out.text, /^hello\n/);
    assert.match(out.text, /▕.*█{24}.*▏ 4\/4 {2}loss 2\.5000 {2}12,346 tokens\/s {2}0:00 left/);
    assert.match(stripVTControlCharacters(out.text), /\rstep 3 {2}held-out loss 2\.0000 {2}perplexity 7\.39 {2}accuracy 50\.0%.*\n/);
    assert.match(out.text, /warning: careful\n/);
    assert.doesNotMatch(out.text, /2\.2500/, 'the loss is in the bar already');
    assert.ok(out.text.endsWith('\n'));
  });

  it('fits the width of the terminal', () => {
    for (const columns of [40, 60, 80, 200]) {
      const out = stream(true, columns);
      run(createProgress('info', false, out));
      for (const drawn of out.text.split(/[\r\n]/).filter((line) => line.includes('tokens/s'))) {
        const visible = stripVTControlCharacters(drawn);
        assert.ok(visible.length < Math.max(columns, 48), `${visible.length} in ${columns}: ${visible}`);
      }
    }
  });

  it('has no colour with NO_COLOR', () => {
    const before = process.env.NO_COLOR;
    process.env.NO_COLOR = '1';
    try {
      const out = stream(true);
      run(createProgress('info', false, out));
      assert.equal(out.text.replaceAll('\x1b[K', ''), stripVTControlCharacters(out.text));
    } finally {
      if (before === undefined) delete process.env.NO_COLOR;
      else process.env.NO_COLOR = before;
    }
  });

  it('is a line for each log where there is no terminal, or the bar is not wanted', () => {
    for (const [isTTY, plain] of [
      [false, false],
      [true, true],
    ] as const) {
      const out = stream(isTTY);
      run(createProgress('info', plain, out));
      assert.ok(!out.text.includes('\r') && !out.text.includes('\x1b'));
      const lines = out.text.trimEnd().split('\n');
      assert.equal(lines.length, 4);
      assert.match(
        lines[1] as string,
        /^step 2\/4 {2}loss 2\.2500 {2}grad norm 1\.00 {2}lr 1\.00e-4 {2}epoch 0\.20 {2}tokens\/s 100 {2}0:00 left$/,
      );
    }
  });

  it('is only warnings, or nothing, on the other levels', () => {
    for (const [level, expected] of [
      ['warning', 'warning: careful\n'],
      ['error', ''],
    ] as const) {
      const out = stream(true);
      run(createProgress(level, false, out));
      assert.equal(out.text, expected);
    }
  });
});
