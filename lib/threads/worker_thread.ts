import { fileURLToPath } from 'node:url';
import { type TransferListItem, Worker, type WorkerOptions } from 'node:worker_threads';
import { entryUrl, sourceLoader } from './entry.ts';

interface Pending {
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

/** What a worker answers: a value, or an error's message with whatever else tells its kind. */
export interface WorkerReply {
  id: number;
  value?: unknown;
  error?: { message: string; kind?: string };
}

/** An error thrown inside a worker. */
export class WorkerFailure extends Error {
  readonly kind: string | undefined;

  constructor(message: string, kind?: string) {
    super(message);
    this.kind = kind;
  }
}

/**
 * A worker thread that answers requests, started at the first one and again after it has died. It keeps the process alive only while
 * requests are open. Entries are named by their path in lib without the ending: `.ts` when run from source, `.js` when compiled.
 */
export class WorkerThread {
  #worker: Worker | undefined;
  #pending = new Map<number, Pending>();
  #nextId = 1;
  readonly #entry: URL;
  readonly #heapMegabytes: number;
  readonly #data: unknown;

  constructor(entry: string, options: { heapMegabytes: number; data?: unknown }) {
    this.#entry = entryUrl(entry);
    this.#heapMegabytes = options.heapMegabytes;
    this.#data = options.data;
  }

  /** Sends a request; rejects with {@link WorkerFailure} when the worker throws, dies (kind 'died') or outgrows its heap (kind 'heap'). */
  request<T>(message: Record<string, unknown>, transfer: readonly TransferListItem[] = []): Promise<T> {
    const worker = this.#start();
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      worker.ref();
      this.#pending.set(id, { resolve: resolve as (value: unknown) => void, reject });
      try {
        worker.postMessage({ ...message, id }, transfer);
      } catch (error) {
        this.#settle(id)?.reject(error);
      }
    });
  }

  /** Sends a message that has no answer; ignored when the worker does not run. */
  notify(message: Record<string, unknown>): void {
    this.#worker?.postMessage(message);
  }

  /** Kills the worker; open requests reject with `reason`. */
  kill(reason: WorkerFailure): void {
    const worker = this.#worker;
    this.#fail(reason);
    void worker?.terminate();
  }

  #start(): Worker {
    if (this.#worker) return this.#worker;
    const options: WorkerOptions = {
      workerData: this.#data,
      resourceLimits: { maxOldGenerationSizeMb: this.#heapMegabytes, maxYoungGenerationSizeMb: 16 },
    };
    const worker = startWorker(this.#entry, options);
    worker.unref();
    worker.on('message', (reply: WorkerReply) => {
      const pending = this.#settle(reply.id);
      if (reply.error) pending?.reject(new WorkerFailure(reply.error.message, reply.error.kind));
      else pending?.resolve(reply.value);
    });
    const gone = (failure: WorkerFailure) => {
      if (this.#worker === worker) this.#fail(failure);
    };
    worker.on('error', (error: Error & { code?: string }) =>
      gone(new WorkerFailure(error.message, error.code === 'ERR_WORKER_OUT_OF_MEMORY' ? 'heap' : 'died')),
    );
    worker.on('exit', (code) => gone(new WorkerFailure(`a worker thread ended with code ${code}`, 'died')));
    this.#worker = worker;
    return worker;
  }

  #settle(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    if (this.#pending.size === 0) this.#worker?.unref();
    return pending;
  }

  #fail(reason: WorkerFailure): void {
    const open = [...this.#pending.values()];
    this.#pending.clear();
    this.#worker?.unref();
    this.#worker = undefined;
    for (const pending of open) pending.reject(reason);
  }
}

/** Node 20 does not hand a loader on to worker threads, so from source the worker registers it itself. */
function startWorker(entry: URL, options: WorkerOptions): Worker {
  const loader = sourceLoader('tsx/cjs/api');
  if (loader === undefined) return new Worker(entry, options);
  return new Worker(`require(${JSON.stringify(loader)}).register(); require(${JSON.stringify(fileURLToPath(entry))});`, {
    ...options,
    eval: true,
  });
}
