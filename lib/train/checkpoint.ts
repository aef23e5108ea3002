import { join } from 'node:path';
import { z } from 'zod';
import { LowrankError } from '../errors.ts';
import { deleteFolder, writeFolder } from '../files/atomic_folder.ts';
import { checksum, type FileSystem, hasCode, ioError, listFiles, nodeFiles, writeFileSynced } from '../files/file_system.ts';
import { type Fingerprint, hashJson } from './fingerprint.ts';
import { fromDiskEntry, type TrainerState, toDiskEntry } from './trainer_state.ts';

// checkpoint-N/    the adapter's folder as PEFT writes it, and
//   optimizer.safetensors    the optimizer's states
//   trainer_state.json       Transformers' keys
//   lowrank_state.json       what a resume needs beside them, and the checksums of all files; written last

const TRAINER_STATE = 'trainer_state.json';
const LOWRANK_STATE = 'lowrank_state.json';
const FORMAT = 1;
const CHECKPOINT_NAME = /^checkpoint-(\d+)$/;

/** The next micro-batch's place: pass over the data, and step within it, both from 0. */
export interface DataPosition {
  epoch: number;
  step: number;
}

export interface CheckpointRecord {
  state: TrainerState;
  position: DataPosition;
  fingerprint: Fingerprint;
}

export interface Checkpoint extends CheckpointRecord {
  folder: string;
}

/** What trainer_state.json says beside the state. */
export interface TrainerStateExtras {
  loggingSteps: number;
  evalSteps: number;
  saveSteps: number;
  trainBatchSize: number;
}

const lossSum = z.object({ sum: z.number(), steps: z.int().min(0) });
const part = z.record(z.string(), z.unknown());
const recordSchema = z.object({
  format: z.literal(FORMAT),
  savedAt: z.number(),
  state: z.object({
    globalStep: z.int().min(0),
    epoch: z.number().min(0),
    maxSteps: z.int().min(0),
    numTrainEpochs: z.int().min(0),
    numInputTokensSeen: z.int().min(0),
    bestMetric: z.number().nullable(),
    bestGlobalStep: z.int().min(0).nullable(),
    bestModelCheckpoint: z.string().nullable(),
    lossSinceLog: lossSum,
    lossTotal: lossSum,
    skippedSteps: z.int().min(0),
    skippedInARow: z.int().min(0),
  }),
  position: z.object({ epoch: z.int().min(0), step: z.int().min(0) }),
  fingerprint: z.object({
    required: z.object({ data: part, base: part, adapter: part, batch: part, length: part, seed: part }),
    noted: z.object({ schedule: part, machine: part }),
  }),
  files: z.record(z.string(), z.object({ bytes: z.int().min(0), sha256: z.string() })),
  sha256: z.string(),
});
const historySchema = z.object({ log_history: z.array(z.record(z.string(), z.unknown())) });

/** The checkpoints of one output folder. */
export class CheckpointStore {
  readonly outputDir: string;
  readonly #files: FileSystem;
  #lastSavedAt = 0;

  constructor(outputDir: string, files: FileSystem = nodeFiles) {
    this.outputDir = outputDir;
    this.#files = files;
  }

  folder(globalStep: number): string {
    return join(this.outputDir, `checkpoint-${globalStep}`);
  }

  /**
   * Writes checkpoint-N whole or not at all. `writeModel` puts the adapter and the optimizer into the folder it is given.
   *
   * @throws IO_ERROR naming the file
   */
  async save(record: CheckpointRecord, extras: TrainerStateExtras, writeModel: (folder: string) => Promise<void>): Promise<string> {
    const target = this.folder(record.state.globalStep);
    await writeFolder(
      target,
      async (folder) => {
        await writeModel(folder);
        await writeFileSynced(join(folder, TRAINER_STATE), trainerStateJson(record.state, extras), this.#files);
        await writeFileSynced(join(folder, LOWRANK_STATE), await this.#lowrankStateJson(record, folder), this.#files);
      },
      this.#files,
    );
    return target;
  }

  /** Deletes the oldest checkpoints until at most `limit` are left; never the newest and never `best`. */
  async rotate(limit: number, best: string | null): Promise<void> {
    const newestFirst = await this.#newestFirst();
    const kept = newestFirst.filter((folder, index) => index === 0 || folder === best);
    const others = newestFirst.filter((folder) => !kept.includes(folder));
    for (const folder of others.slice(Math.max(0, limit - kept.length))) await deleteFolder(folder, this.#files);
  }

  /**
   * The newest whole checkpoint. Damaged ones are passed over, each named by `warn`.
   *
   * @throws FILE_NOT_FOUND when there is none; CHECKPOINT_CORRUPT when all are damaged
   */
  async newest(warn: (message: string) => void): Promise<Checkpoint> {
    const folders = await this.#newestFirst();
    let damage: LowrankError | undefined;
    for (const folder of folders) {
      try {
        const checkpoint = await this.open(folder);
        if (damage) warn(`continuing from ${folder}`);
        return checkpoint;
      } catch (error) {
        if (!(error instanceof LowrankError) || error.code !== 'CHECKPOINT_CORRUPT') throw error;
        damage = error;
        warn(error.message);
      }
    }
    if (damage)
      throw new LowrankError('CHECKPOINT_CORRUPT', `every checkpoint in ${this.outputDir} is damaged; ${damage.message}`, {
        cause: damage,
      });
    throw new LowrankError(
      'FILE_NOT_FOUND',
      `args.resumeFromCheckpoint: there is no checkpoint in ${this.outputDir}; leave the option out to start from the beginning`,
    );
  }

  /**
   * Reads a checkpoint after comparing every file with its checksum.
   *
   * @throws FILE_NOT_FOUND, CHECKPOINT_CORRUPT naming the folder and the file
   */
  async open(folder: string): Promise<Checkpoint> {
    try {
      const present = await listFiles(folder, this.#files);
      const record = await this.#readRecord(folder, present);
      for (const [name, expected] of Object.entries(record.files)) {
        if (!present.includes(name)) throw corrupt(folder, `${name} is missing`);
        const found = await checksum(join(folder, name), this.#files);
        if (found.bytes !== expected.bytes) throw corrupt(folder, `${name} has ${found.bytes} bytes instead of ${expected.bytes}`);
        if (found.sha256 !== expected.sha256) throw corrupt(folder, `the content of ${name} has changed since it was written`);
      }
      const history = historySchema.safeParse(await this.#readJson(folder, TRAINER_STATE));
      if (!history.success) throw corrupt(folder, `${TRAINER_STATE} has no log_history`);
      const logHistory = history.data.log_history.map(fromDiskEntry);
      return { folder, state: { ...record.state, logHistory }, position: record.position, fingerprint: record.fingerprint };
    } catch (error) {
      if (hasCode(error, 'ENOENT', 'ENOTDIR'))
        throw new LowrankError('FILE_NOT_FOUND', `the checkpoint ${folder} does not exist`, { cause: error });
      throw ioError('reading', folder, error);
    }
  }

  /** Whether `folder` is a checkpoint's name in this output folder that exists. */
  async exists(folder: string): Promise<boolean> {
    return (await this.#newestFirst()).includes(folder);
  }

  async #lowrankStateJson(record: CheckpointRecord, folder: string): Promise<string> {
    const names = await listFiles(folder, this.#files);
    const sums: [string, { bytes: number; sha256: string }][] = [];
    for (const name of names) sums.push([name, await checksum(join(folder, name), this.#files)]);
    const { logHistory: _, ...state } = record.state;
    // Checkpoints are ordered by this, so two never have the same.
    this.#lastSavedAt = Math.max(Date.now(), this.#lastSavedAt + 1);
    const content = {
      format: FORMAT,
      savedAt: this.#lastSavedAt,
      state,
      position: record.position,
      fingerprint: record.fingerprint,
      files: Object.fromEntries(sums),
    };
    return `${JSON.stringify({ ...content, sha256: hashJson(content) }, null, 2)}\n`;
  }

  async #readRecord(folder: string, present: string[]): Promise<z.output<typeof recordSchema>> {
    if (!present.includes(LOWRANK_STATE)) throw corrupt(folder, `${LOWRANK_STATE} is missing`);
    const json = await this.#readJson(folder, LOWRANK_STATE);
    const parsed = recordSchema.safeParse(json);
    if (!parsed.success) {
      const path = parsed.error.issues[0]?.path.join('.') ?? '';
      throw corrupt(folder, `${LOWRANK_STATE} is not as it was written (${path || 'not an object'})`);
    }
    const { sha256, ...content } = json as Record<string, unknown>;
    if (hashJson(content) !== sha256) throw corrupt(folder, `the content of ${LOWRANK_STATE} has changed since it was written`);
    return parsed.data;
  }

  async #readJson(folder: string, name: string): Promise<unknown> {
    const text = await this.#files.readFile(join(folder, name), 'utf8');
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw corrupt(folder, `${name} is not JSON`, cause);
    }
  }

  /** By the time of saving, not by number: an earlier training in the same folder may have got farther. */
  async #newestFirst(): Promise<string[]> {
    const names = await this.#files.readdir(this.outputDir).catch((error: unknown) => {
      if (hasCode(error, 'ENOENT')) return [];
      throw ioError('reading', this.outputDir, error);
    });
    const found = await Promise.all(
      names.flatMap((name) => {
        const number = CHECKPOINT_NAME.exec(name)?.[1];
        const folder = join(this.outputDir, name);
        return number === undefined ? [] : [this.#savedAt(folder).then((savedAt) => ({ folder, savedAt, number: Number(number) }))];
      }),
    );
    return found.sort((a, b) => b.savedAt - a.savedAt || b.number - a.number).map(({ folder }) => folder);
  }

  async #savedAt(folder: string): Promise<number> {
    try {
      const json = (await this.#readJson(folder, LOWRANK_STATE)) as { savedAt?: unknown } | null;
      if (typeof json?.savedAt === 'number') return json.savedAt;
    } catch {
      // Damaged: its place in the order is by the folder's own time, and open() will say what is wrong.
    }
    return (await this.#files.stat(folder)).mtimeMs;
  }
}

function corrupt(folder: string, what: string, cause?: unknown): LowrankError {
  return new LowrankError('CHECKPOINT_CORRUPT', `the checkpoint ${folder} is damaged: ${what}`, { cause });
}

/** As Transformers' TrainerState.save_to_json writes it: sorted keys, two spaces. */
function trainerStateJson(state: TrainerState, extras: TrainerStateExtras): string {
  const content = {
    best_global_step: state.bestGlobalStep,
    best_metric: state.bestMetric,
    best_model_checkpoint: state.bestModelCheckpoint,
    epoch: state.epoch,
    eval_steps: extras.evalSteps,
    global_step: state.globalStep,
    is_hyper_param_search: false,
    is_local_process_zero: true,
    is_world_process_zero: true,
    log_history: state.logHistory.map(toDiskEntry),
    logging_steps: extras.loggingSteps,
    max_steps: state.maxSteps,
    num_input_tokens_seen: state.numInputTokensSeen,
    num_train_epochs: state.numTrainEpochs,
    save_steps: extras.saveSteps,
    stateful_callbacks: {},
    total_flos: 0,
    train_batch_size: extras.trainBatchSize,
    trial_name: null,
    trial_params: null,
  };
  return `${JSON.stringify(content, null, 2)}\n`;
}
