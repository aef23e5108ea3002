import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { appendFile, cp, mkdir, readdir, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import { type FileSystem, makeFolder, nodeFiles } from '../lib/files/file_system.ts';
import { CheckpointStore } from '../lib/train/checkpoint.ts';
import { bytes, newFolder, Quadratic, Recorder, random, randomRows, type Setup, train } from './60.trainer.quadratic.ts';

const code =
  (expected: string, ...parts: string[]) =>
  (error: unknown) =>
    error instanceof LowrankError && error.code === expected && parts.every((part) => error.message.includes(part));

describe('checkpoints', () => {
  let outputDir: string;
  beforeEach(() => {
    outputDir = newFolder();
  });
  afterEach(() => rm(outputDir, { recursive: true, force: true }));
  const args = (change: Setup['args'] = {}) => ({
    outputDir,
    numTrainEpochs: 2,
    perDeviceTrainBatchSize: 2,
    saveSteps: 5,
    loggingSteps: 3,
    ...change,
  });
  const checkpoints = async () => (await readdir(outputDir)).filter((name) => name.startsWith('checkpoint-')).sort();

  it('resume bit for bit from any of them, also in the middle of an epoch', async () => {
    const rows = randomRows(23, 30);
    const whole = await train({ rows, dropout: 0.2, args: args() });
    assert.deepEqual(await checkpoints(), ['checkpoint-10', 'checkpoint-15', 'checkpoint-20', 'checkpoint-24', 'checkpoint-5']);
    for (const name of await checkpoints()) {
      const other = newFolder();
      const resumed = await train({ rows, dropout: 0.2, args: args({ outputDir: other, resumeFromCheckpoint: join(outputDir, name) }) });
      assert.ok(bytes(resumed.model.weights).equals(bytes(whole.model.weights)), name);
      assert.ok(bytes(resumed.model.m).equals(bytes(whole.model.m)), name);
      assert.deepEqual(resumed.losses, whole.losses.slice(24 - resumed.losses.length));
      assert.ok(readFileSync(join(other, 'adapter_model.bin')).equals(readFileSync(join(outputDir, 'adapter_model.bin'))));
      await rm(other, { recursive: true });
    }
  });

  it("hold Transformers' trainer_state.json", async () => {
    await train({ args: args({ maxSteps: 5 }) });
    const state = JSON.parse(readFileSync(join(outputDir, 'checkpoint-5', 'trainer_state.json'), 'utf8'));
    assert.equal(state.global_step, 5);
    assert.equal(state.max_steps, 5);
    assert.deepEqual(
      state.log_history.map((entry: { step: number }) => entry.step),
      [3],
    );
    assert.ok('grad_norm' in state.log_history[0] && 'learning_rate' in state.log_history[0]);
    for (const key of [
      'best_metric',
      'best_model_checkpoint',
      'epoch',
      'eval_steps',
      'is_world_process_zero',
      'logging_steps',
      'num_train_epochs',
      'save_steps',
      'stateful_callbacks',
      'train_batch_size',
      'trial_params',
    ]) {
      assert.ok(key in state, key);
    }
  });

  it('are kept up to saveTotalLimit, by time of saving, not by number', async () => {
    await train({ args: args({ saveTotalLimit: 2 }) });
    assert.deepEqual(await checkpoints(), ['checkpoint-20', 'checkpoint-24']);
    await train({ args: args({ saveTotalLimit: 2, maxSteps: 9, saveSteps: 4 }) });
    assert.deepEqual(await checkpoints(), ['checkpoint-8', 'checkpoint-9']);
    await train({ args: args({ saveTotalLimit: 2, maxSteps: 9, saveSteps: 4, resumeFromCheckpoint: true }) });
    assert.deepEqual(await checkpoints(), ['checkpoint-8', 'checkpoint-9']);
  });

  it('that are damaged are named and passed over', async () => {
    const damages: [string, string, (folder: string) => Promise<void>][] = [
      ['truncated weights', 'adapter_model.bin', (folder) => truncate(join(folder, 'adapter_model.bin'), 3)],
      ['a changed byte', 'optimizer.bin', (folder) => writeFile(join(folder, 'optimizer.bin'), Buffer.alloc(132, 1))],
      ['a missing file', 'adapter_config.json', (folder) => rm(join(folder, 'adapter_config.json'))],
      ['no state', 'lowrank_state.json', (folder) => rm(join(folder, 'lowrank_state.json'))],
      ['half a state', 'lowrank_state.json', (folder) => truncate(join(folder, 'lowrank_state.json'), 100)],
      [
        'an edited state',
        'lowrank_state.json',
        async (folder) => {
          const path = join(folder, 'lowrank_state.json');
          await writeFile(path, readFileSync(path, 'utf8').replace('"globalStep": 24', '"globalStep": 23'));
        },
      ],
      [
        'an empty folder',
        'lowrank_state.json',
        async (folder) => {
          await rm(folder, { recursive: true });
          await mkdir(folder);
        },
      ],
    ];
    const whole = await train({ args: args() });
    const copy = newFolder();
    await cp(outputDir, copy, { recursive: true });
    for (const [what, file, damage] of damages) {
      await rm(outputDir, { recursive: true });
      await cp(copy, outputDir, { recursive: true });
      await damage(join(outputDir, 'checkpoint-24'));
      const progress = new Recorder();
      const resumed = await train({ progress, args: args({ resumeFromCheckpoint: true }) });
      const warnings = progress.messages.join('\n');
      assert.ok(
        warnings.includes('checkpoint-24') &&
          warnings.includes(file) &&
          warnings.includes('continuing from') &&
          warnings.includes('checkpoint-20'),
        `${what}: ${warnings}`,
      );
      assert.ok(bytes(resumed.model.weights).equals(bytes(whole.model.weights)), what);
      await rm(join(outputDir, 'checkpoint-24'), { recursive: true });
      await cp(join(copy, 'checkpoint-24'), join(outputDir, 'checkpoint-24'), { recursive: true });
      await damage(join(outputDir, 'checkpoint-24'));
      await assert.rejects(
        train({ args: args({ resumeFromCheckpoint: join(outputDir, 'checkpoint-24') }) }),
        code('CHECKPOINT_CORRUPT', 'checkpoint-24', file),
        what,
      );
    }
    await rm(copy, { recursive: true });
  });

  it('that are all damaged, or not there, are an error', async () => {
    await assert.rejects(train({ args: args({ resumeFromCheckpoint: true }) }), code('FILE_NOT_FOUND', outputDir));
    await assert.rejects(
      train({ args: args({ resumeFromCheckpoint: join(outputDir, 'checkpoint-3') }) }),
      code('FILE_NOT_FOUND', 'checkpoint-3'),
    );
    await mkdir(join(outputDir, 'checkpoint-3'));
    await assert.rejects(train({ args: args({ resumeFromCheckpoint: true }) }), code('CHECKPOINT_CORRUPT', 'checkpoint-3'));
  });

  it('may hold files of the user', async () => {
    await train({ args: args() });
    await appendFile(join(outputDir, 'checkpoint-24', 'notes.txt'), 'good');
    assert.equal((await train({ args: args({ resumeFromCheckpoint: true }) })).result.globalStep, 24);
  });

  it('of another training are refused, naming what differs, unless told to go on', async () => {
    const rows = randomRows(23, 31);
    await train({ rows, args: args({ maxSteps: 5 }) });
    const resume = (setup: Setup) =>
      train({ rows, ...setup, args: args({ maxSteps: 8, resumeFromCheckpoint: join(outputDir, 'checkpoint-5'), ...setup.args }) });
    const changed: [Setup, string][] = [
      [{ rows: randomRows(23, 32) }, 'data.sha256'],
      [{ rows: randomRows(24, 31) }, 'data.rows was 23 and is 24'],
      [{ base: 1.1 }, 'base.probe'],
      [{ r: 8 }, 'adapter.r was 4 and is 8'],
      [{ args: { perDeviceTrainBatchSize: 4 } }, 'batch.perDeviceTrainBatchSize was 2 and is 4'],
      [{ args: { gradientAccumulationSteps: 2 } }, 'batch.gradientAccumulationSteps was 1 and is 2'],
      [{ args: { maxSeqLength: 512 } }, 'length.maxSeqLength was 1024 and is 512'],
      [{ args: { seed: 7 } }, 'seed.seed was 42 and is 7'],
    ];
    for (const [setup, text] of changed)
      await assert.rejects(resume(setup), code('INVALID_OPTION', 'args.resumeFromCheckpoint', text, 'resumeIgnoreMismatch'), text);
    const progress = new Recorder();
    const { result } = await resume({ progress, args: { perDeviceTrainBatchSize: 4, resumeIgnoreMismatch: true } });
    assert.equal(result.globalStep, 8);
    assert.ok(progress.messages.some((text) => text.includes('batch.perDeviceTrainBatchSize')));
  });

  it('made with another instruction set or schedule are taken with a warning; rounding of the base is no difference', async () => {
    await train({ args: args({ maxSteps: 5 }) });
    const progress = new Recorder();
    await train({ progress, isa: 'avx512', base: 1 + 1e-6, args: args({ maxSteps: 8, resumeFromCheckpoint: true }) });
    const text = progress.messages.join('\n');
    assert.ok(text.includes('machine.isa was "avx2" and is "avx512"') && text.includes('schedule.totalSteps was 5 and is 8'), text);
  });

  it('survive a former checkpoint of the same number being replaced at any moment', async () => {
    await train({ args: args({ maxSteps: 5 }) });
    await rename(join(outputDir, 'checkpoint-5'), join(outputDir, '.checkpoint-5.old-0123456789ab'));
    await mkdir(join(outputDir, '.checkpoint-5.new-0123456789ab'));
    const { result } = await train({ args: args({ maxSteps: 5, resumeFromCheckpoint: true }) });
    assert.equal(result.globalStep, 5);
    assert.deepEqual(
      (await readdir(outputDir)).filter((name) => name.startsWith('.')),
      [],
    );
  });
});

describe('saving when the file system fails', () => {
  let outputDir: string;
  beforeEach(() => {
    outputDir = newFolder();
  });
  afterEach(() => rm(outputDir, { recursive: true, force: true }));

  /** A file system whose nth call fails; counts the calls. */
  function failingAt(nth: number, errno: string): FileSystem & { calls: number; failed: boolean } {
    const counter = { calls: 0, failed: false };
    const counted = <F extends (...values: never[]) => Promise<unknown>>(name: string, run: F): F =>
      (async (...values: Parameters<F>) => {
        counter.calls += 1;
        if (counter.calls === nth) {
          counter.failed = true;
          throw Object.assign(new Error(`${errno}: injected, ${name}`), {
            code: errno,
            path: name.startsWith('handle.') ? undefined : values[0],
          });
        }
        return await run(...values);
      }) as F;
    const wrapped = Object.fromEntries(
      (['mkdir', 'readdir', 'readFile', 'rename', 'rm', 'link', 'stat', 'appendFile'] as const).map((name) => [
        name,
        counted(name, nodeFiles[name] as never),
      ]),
    );
    const open = counted('open', (async (...values: Parameters<FileSystem['open']>) => {
      const handle = await nodeFiles.open(...values);
      return new Proxy(handle, {
        get(target, name) {
          const value = Reflect.get(target, name, target);
          if (typeof value !== 'function') return value;
          const bound = value.bind(target);
          // A failed close would leak the descriptor in the test, not in the code under test.
          return name === 'close' ? bound : counted(`handle.${String(name)}`, bound);
        },
      });
    }) as never);
    return Object.assign(counter, wrapped, { open }) as never;
  }

  it('names a file system that is read-only, and a folder that takes no folders', async () => {
    const readOnly = { ...nodeFiles, mkdir: () => Promise.reject(Object.assign(new Error('EROFS'), { code: 'EROFS' })) };
    await assert.rejects(makeFolder(join(outputDir, 'a/b'), readOnly), { code: 'EROFS' });
    await makeFolder(outputDir, readOnly);
    const closed = { ...nodeFiles, mkdir: () => Promise.reject(Object.assign(new Error('ENOENT'), { code: 'ENOENT' })) };
    await assert.rejects(makeFolder(join(outputDir, 'a/b'), closed), { code: 'ENOENT' });
    await makeFolder(join(outputDir, 'a/b/c'), nodeFiles);
    await makeFolder(join(outputDir, 'a/b/c'), nodeFiles);
    await writeFile(join(outputDir, 'file'), '');
    await assert.rejects(makeFolder(join(outputDir, 'file'), nodeFiles), { code: 'EEXIST' });
    await assert.rejects(makeFolder(join(outputDir, 'file/a'), nodeFiles), { code: 'ENOTDIR' });
  });

  it('at the nth call it is an IO_ERROR, and the checkpoint before is whole, for every n', async () => {
    const errnos = ['ENOSPC', 'EIO', 'EMFILE', 'EROFS'];
    const rows = randomRows(8, 40);
    const args = {
      outputDir,
      perDeviceTrainBatchSize: 4,
      maxSteps: 4,
      saveSteps: 2,
      saveTotalLimit: 1,
      loggingSteps: 100,
      lrSchedulerType: 'constant' as const,
    };
    const whole = await train({ rows, args });
    const prepared = newFolder();
    await rm(outputDir, { recursive: true });
    await train({ rows, args: { ...args, maxSteps: 2 } });
    await cp(outputDir, prepared, { recursive: true });
    let failures = 0;
    for (let nth = 1; ; ++nth) {
      await rm(outputDir, { recursive: true });
      await cp(prepared, outputDir, { recursive: true });
      const errno = errnos[nth % errnos.length] as string;
      const files = failingAt(nth, errno);
      const resumed = await train({ rows, files, args: { ...args, resumeFromCheckpoint: true } }).catch((error: unknown) => error);
      if (!files.failed) break;
      failures += 1;
      if (resumed instanceof Error)
        assert.ok(code('IO_ERROR')(resumed) && resumed.message.includes(outputDir), `${errno} at call ${nth}: ${resumed}`);
      // The adapter of the first training, or the new one: whole in any case.
      assert.ok(
        existsSync(join(outputDir, 'adapter_config.json')) && existsSync(join(outputDir, 'adapter_model.bin')),
        `${errno} at call ${nth}`,
      );
      const checkpoint = await new CheckpointStore(outputDir)
        .newest(() => assert.fail(`${errno} at call ${nth}: a damaged checkpoint`))
        .catch((error: unknown) => error);
      assert.ok(!(checkpoint instanceof Error), `${errno} at call ${nth}: ${checkpoint}`);
      const again = await train({ rows, args: { ...args, resumeFromCheckpoint: true } });
      assert.ok(bytes(again.model.weights).equals(bytes(whole.model.weights)), `${errno} at call ${nth}`);
      assert.deepEqual(
        (await readdir(outputDir)).filter((name) => name.startsWith('.')),
        [],
        `${errno} at call ${nth}`,
      );
    }
    assert.ok(failures > 40, `only ${failures} calls`);
    await rm(prepared, { recursive: true });
  });

  it("goes on with a warning when onSaveError is 'warn'", async () => {
    const progress = new Recorder();
    const model = new Quadratic();
    const saveWeights = model.saveWeights.bind(model);
    let saves = 0;
    model.saveWeights = async (folder) => {
      saves += 1;
      if (saves === 1) throw Object.assign(new Error('full'), { code: 'ENOSPC', path: join(folder, 'x') });
      await saveWeights(folder);
    };
    const { result } = await train({ model, progress, args: { outputDir, maxSteps: 4, saveSteps: 2, onSaveError: 'warn' } });
    assert.equal(result.globalStep, 4);
    assert.ok(
      progress.messages.some((text) => text.startsWith('warning: writing') && text.includes('no space left')),
      progress.messages.join('\n'),
    );
    assert.ok(existsSync(join(outputDir, 'checkpoint-4')) && !existsSync(join(outputDir, 'checkpoint-2')));
  });
});

describe('a training killed at any moment', () => {
  it('resumes from a whole checkpoint and ends with the same bits', async () => {
    const seed = Number(process.env.LOWRANK_TEST_SEED ?? Date.now() % 1e6);
    const next = random(seed);
    const [expected, outputDir] = [newFolder(), newFolder()];
    assert.equal(await run(expected, 'start'), null);
    let kills = 0;
    for (let signal: string | null = 'SIGKILL'; signal !== null && kills < 5; ) {
      signal = await run(outputDir, kills === 0 ? 'start' : 'resume', next() * 80);
      if (signal !== null) kills += 1;
      await new CheckpointStore(outputDir).newest((message) => assert.fail(`seed ${seed}: ${message}`));
    }
    assert.ok(kills >= 2, `seed ${seed}: only ${kills} kills`);
    assert.equal(await run(outputDir, 'resume'), null);
    for (const file of ['adapter_model.safetensors', 'checkpoint-40/optimizer.safetensors']) {
      assert.ok(readFileSync(join(outputDir, file)).equals(readFileSync(join(expected, file))), `seed ${seed}: ${file}`);
    }
    await rm(expected, { recursive: true });
    await rm(outputDir, { recursive: true });
  });

  /** Trains in a process of its own, which is killed so many milliseconds after its first save; the signal that ended it, or null. */
  function run(outputDir: string, mode: 'start' | 'resume', killAfter?: number): Promise<string | null> {
    const path = new URL('./61.checkpoint.crash_child.ts', import.meta.url).pathname;
    const child = spawn(process.execPath, ['--import', 'tsx', path, outputDir, mode], { stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.once('data', () => killAfter !== undefined && setTimeout(() => child.kill('SIGKILL'), killAfter));
    child.stdout.resume();
    return new Promise((resolve) => child.on('exit', (_, signal) => resolve(signal)));
  }
});
