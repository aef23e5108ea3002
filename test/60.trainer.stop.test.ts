import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { readdir, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import { lockFolder } from '../lib/train/lock.ts';
import { bytes, newFolder, randomRows, start, train } from './60.trainer.quadratic.ts';

const code =
  (expected: string, ...parts: string[]) =>
  (error: unknown) =>
    error instanceof LowrankError && error.code === expected && parts.every((part) => error.message.includes(part));

describe('stopping a training', () => {
  let outputDir: string;
  beforeEach(() => {
    outputDir = newFolder();
  });
  afterEach(() => rm(outputDir, { recursive: true, force: true }));
  const args = () => ({
    outputDir,
    numTrainEpochs: 3,
    perDeviceTrainBatchSize: 2,
    gradientAccumulationSteps: 3,
    loggingSteps: 3,
    weightDecay: 0.01,
    warmupSteps: 2,
  });
  const rows = randomRows(23, 20);

  it('stops after the micro-batch at hand when the signal fires, and resumes bit for bit, wherever that was', async () => {
    const whole = await train({ rows, dropout: 0.3, args: { ...args(), outputDir: newFolder() } });
    for (const [stopStep, stopMicro] of [
      [0, 0],
      [2, 1],
      [3, 2],
      [4, 0],
      [11, 1],
    ]) {
      await rm(outputDir, { recursive: true, force: true });
      const controller = new AbortController();
      const micros: string[] = [];
      const onMicro = (step: number, micro: number) => {
        micros.push(`${step}.${micro}`);
        if (step === stopStep && micro === stopMicro) controller.abort();
      };
      const first = await train({ rows, dropout: 0.3, args: args(), signal: controller.signal, onMicro });
      assert.equal(first.result.stopped, 'aborted');
      assert.equal(first.result.globalStep, stopStep);
      assert.equal(micros.at(-1), `${stopStep}.${stopMicro}`);
      assert.equal(first.result.folder, join(outputDir, `checkpoint-${stopStep}`));
      const second = await train({ rows, dropout: 0.3, args: { ...args(), resumeFromCheckpoint: true } });
      assert.deepEqual([...first.losses, ...second.losses], whole.losses);
      assert.ok(bytes(second.model.weights).equals(bytes(whole.model.weights)), `stopped at ${stopStep}.${stopMicro}`);
      assert.ok(bytes(second.model.v).equals(bytes(whole.model.v)));
      const logged = (history: typeof whole.result.logHistory) =>
        history
          .filter((entry) => entry.loss !== undefined)
          .map(({ step, loss, gradNorm, learningRate, epoch }) => ({ step, loss, gradNorm, learningRate, epoch }));
      assert.deepEqual(logged(second.result.logHistory), logged(whole.result.logHistory));
      assert.equal(second.result.trainingLoss, whole.result.trainingLoss);
      assert.equal(second.result.tokens, whole.result.tokens);
    }
  });

  it('stops at SIGINT, saves, and leaves no handler behind', async () => {
    const before = process.listenerCount('SIGINT');
    const { result } = await train({
      rows,
      args: args(),
      onMicro: (step, micro) => void (step === 2 && micro === 1 && process.kill(process.pid, 'SIGINT')),
    });
    assert.equal(result.stopped, 'interrupted');
    assert.equal(process.listenerCount('SIGINT'), before);
    assert.ok((await readdir(outputDir)).includes(`checkpoint-${result.globalStep}`));
  });

  it('is killed by a second SIGINT', () => {
    const script = `import { StopRequest } from ${JSON.stringify(new URL('../lib/train/stop_request.ts', import.meta.url).href)};
      new StopRequest(); process.kill(process.pid, 'SIGINT');
      setTimeout(() => { console.log('still here'); process.kill(process.pid, 'SIGINT'); setTimeout(() => console.log('too long'), 5000); }, 50);`;
    const { stdout, signal } = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], { encoding: 'utf8' });
    assert.equal(stdout, 'still here\n');
    assert.equal(signal, 'SIGINT');
  });

  it('refuses to begin when the signal has fired already', async () => {
    await assert.rejects(train({ args: args(), signal: AbortSignal.abort() }), code('ABORTED'));
    assert.deepEqual(await readdir(outputDir), []);
  });

  it('frees the folder and the handlers when the loop over steps() is left', async () => {
    const before = process.listenerCount('SIGINT');
    const { steps } = await start({ rows, args: args() });
    for await (const step of steps) if (step.step === 2) break;
    assert.equal(process.listenerCount('SIGINT'), before);
    assert.ok(!(await readdir(outputDir)).includes('.lowrank.lock'));
    await train({ rows, args: args() });
  });

  it('abandons an evaluation when it is to stop', async () => {
    const controller = new AbortController();
    const callbacks = [{ onStepEnd: () => controller.abort() }];
    const { result } = await train({
      rows,
      evalRows: randomRows(50, 21),
      callbacks,
      signal: controller.signal,
      args: { ...args(), evalStrategy: 'steps', evalSteps: 1, perDeviceEvalBatchSize: 1 },
    });
    assert.equal(result.globalStep, 1);
    assert.ok(result.logHistory.every((entry) => entry.evalLoss === undefined));
  });
});

describe('the lock of an output folder', () => {
  let folder: string;
  beforeEach(() => {
    folder = newFolder();
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));
  const owner = (change: Record<string, unknown>) =>
    JSON.stringify({ pid: process.pid, thread: 0, host: hostname(), started: startOf(process.pid), token: 'x', ...change });
  const startOf = (pid: number) => readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[19];

  it('keeps a second trainer out while the first runs', async () => {
    const unlock = await lockFolder(folder);
    await assert.rejects(lockFolder(folder), code('IO_ERROR', folder, `process ${process.pid}`));
    await unlock();
    await (await lockFolder(folder))();
    assert.deepEqual(await readdir(folder), []);
  });

  it('is taken over from a process that is gone, by one of several', async () => {
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    for (const change of [
      { pid: dead },
      { token: 'left behind by this process' },
      ...(process.platform === 'linux' ? [{ pid: 1, started: 'earlier' }] : []),
    ]) {
      await writeFile(join(folder, '.lowrank.lock'), owner(change));
      const results = await Promise.allSettled(Array.from({ length: 8 }, () => lockFolder(folder)));
      const won = results.filter((result) => result.status === 'fulfilled');
      assert.equal(won.length, 1, JSON.stringify(change));
      for (const result of results) if (result.status === 'rejected') assert.ok(code('IO_ERROR')(result.reason), String(result.reason));
      await won[0]?.value();
    }
    await writeFile(join(folder, '.lowrank.lock'), 'not a lock');
    await (await lockFolder(folder))();
  });

  it('of another machine is respected, and its file named', async () => {
    await writeFile(join(folder, '.lowrank.lock'), owner({ host: 'elsewhere' }));
    await assert.rejects(lockFolder(folder), code('IO_ERROR', '.lowrank.lock', 'elsewhere', 'delete the file'));
  });
});
