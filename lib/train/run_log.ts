import { hostname } from 'node:os';
import { join } from 'node:path';
import { type FileSystem, ioError, makeFolder, nodeFiles } from '../files/file_system.ts';
import { scalarRecord, versionRecord } from './tensorboard.ts';
import { type LogEntry, toDiskEntry } from './trainer_state.ts';

/**
 * The log in a folder: log.jsonl, a line for each entry with Transformers' names and the time, in which a resumed training goes on; and a
 * TensorBoard event file for each run with Transformers' tags (train/loss, eval/loss, …).
 */
export class RunLog {
  readonly #folder: string;
  readonly #eventsName: string;
  readonly #files: FileSystem;
  #isBegun = false;

  constructor(folder: string, files: FileSystem = nodeFiles) {
    this.#folder = folder;
    this.#eventsName = `events.out.tfevents.${Math.floor(Date.now() / 1000)}.${hostname()}.${process.pid}`;
    this.#files = files;
  }

  async append(entry: LogEntry): Promise<void> {
    const now = new Date();
    const line = toDiskEntry(entry);
    const seconds = now.getTime() / 1000;
    try {
      await makeFolder(this.#folder, this.#files);
      await this.#files.appendFile(join(this.#folder, 'log.jsonl'), `${JSON.stringify({ time: now.toISOString(), ...line })}\n`);
      const scalars = scalarRecord(seconds, entry.step, tagged(line));
      const events = this.#isBegun ? scalars : Buffer.concat([versionRecord(seconds), scalars]);
      await this.#files.appendFile(join(this.#folder, this.#eventsName), events);
      this.#isBegun = true;
    } catch (error) {
      throw ioError('writing', this.#folder, error);
    }
  }
}

/** As Transformers' TensorBoardCallback names them: eval_loss is eval/loss, anything else is under train/. */
function tagged(line: Record<string, unknown>): Record<string, number> {
  const numbers = Object.entries(line).filter((pair): pair is [string, number] => typeof pair[1] === 'number' && pair[0] !== 'step');
  return Object.fromEntries(
    numbers.map(([key, value]) => [key.startsWith('eval_') ? key.replace('eval_', 'eval/') : `train/${key}`, value]),
  );
}
