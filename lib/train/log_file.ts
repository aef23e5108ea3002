import { dirname } from 'node:path';
import { type FileSystem, ioError, nodeFiles } from './file_system.ts';
import { type LogEntry, toDiskEntry } from './trainer_state.ts';

/** runs/log.jsonl: every log entry as a line with Transformers' names and the time. A resumed training goes on in the same file. */
export class LogFile {
  readonly path: string;
  readonly #files: FileSystem;

  constructor(path: string, files: FileSystem = nodeFiles) {
    this.path = path;
    this.#files = files;
  }

  async append(entry: LogEntry): Promise<void> {
    try {
      await this.#files.mkdir(dirname(this.path), { recursive: true });
      await this.#files.appendFile(this.path, `${JSON.stringify({ time: new Date().toISOString(), ...toDiskEntry(entry) })}\n`);
    } catch (error) {
      throw ioError('writing', this.path, error);
    }
  }
}
