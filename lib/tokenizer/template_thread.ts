import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parentPort, workerData } from 'node:worker_threads';
import { entryUrl, sourceLoader } from '../threads/entry.ts';
import type { WorkerReply } from '../threads/worker_thread.ts';
import type { RenderReply, RenderRequest } from './template_process.ts';

// The thread that starts the template process and passes requests on to it. To start a process takes as long as it takes to copy the page
// tables of this one, tens of milliseconds beside a loaded model, which must not hold the event loop.

/** What the template process may hold. */
const HEAP_MEGABYTES = 128;
/** The process goes when it has had nothing to do for this long, in milliseconds. */
const IDLE = 20_000;

export interface TemplateThreadData {
  /** One 32-bit number: the template process's id, 0 while there is none. */
  pid: SharedArrayBuffer;
}

/** The process died while it rendered. */
class RenderCrash extends Error {}

const pid = new Int32Array((workerData as TemplateThreadData).pid);
let child: ChildProcess | undefined;
let idle: NodeJS.Timeout | undefined;
let queue: Promise<unknown> = Promise.resolve();

/** Renders in the template process, one request at a time; rejects with {@link RenderCrash} when it dies of it. */
function render(request: RenderRequest): Promise<RenderReply> {
  const run = queue.then(() => send(request));
  queue = run.catch(() => undefined);
  return run;
}

function send(request: RenderRequest): Promise<RenderReply> {
  const renderer = start();
  clearTimeout(idle);
  return new Promise<RenderReply>((resolve, reject) => {
    // Inside, every job has its deadline; this one is for a process that cannot even be stopped from inside.
    const backstop = setTimeout(() => renderer.kill('SIGKILL'), 30_000 + 2 * request.deadline * (request.jobs.length + 1));
    const settle = () => {
      clearTimeout(backstop);
      renderer.off('message', onMessage).off('error', onError).off('exit', onExit);
      idle = setTimeout(stop, IDLE);
    };
    const onMessage = (reply: unknown) => {
      settle();
      resolve(reply as RenderReply);
    };
    const onError = (error: Error) => {
      settle();
      stop();
      reject(new RenderCrash(error.message));
    };
    const onExit = (code: number | null, signal: string | null) => {
      // V8 aborts when the heap is full; Node gives that as a signal or as 128 plus its number.
      const isHeap = ['SIGABRT', 'SIGTRAP', 'SIGILL'].includes(signal ?? '') || code === 134;
      onError(
        new Error(isHeap ? `it needs more than ${HEAP_MEGABYTES} MiB of memory` : `its process ended by ${signal ?? `code ${code}`}`),
      );
    };
    renderer.on('message', onMessage).on('error', onError).on('exit', onExit);
    try {
      renderer.send(request, (error) => error && onError(error));
    } catch (error) {
      settle();
      reject(error); // a value that cannot be sent
    }
  });
}

function start(): ChildProcess {
  if (child?.connected && child.exitCode === null) return child;
  const loader = sourceLoader('tsx');
  child = fork(fileURLToPath(entryUrl('tokenizer/template_process')), {
    execArgv: [`--max-old-space-size=${HEAP_MEGABYTES}`, ...(loader ? ['--import', pathToFileURL(loader).href] : [])],
    env: { ...process.env, NODE_OPTIONS: '' },
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  Atomics.store(pid, 0, child.pid ?? 0);
  // Between requests nobody else listens, and an error event without a listener would be thrown.
  child.on('error', () => undefined);
  return child;
}

function stop(): void {
  Atomics.store(pid, 0, 0);
  child?.kill('SIGKILL');
  child = undefined;
}

parentPort?.on('message', ({ id, ...request }: RenderRequest & { id: number }) => {
  const reply = (answer: Omit<WorkerReply, 'id'>) => parentPort?.postMessage({ ...answer, id } satisfies WorkerReply);
  render(request).then(
    (value) => reply({ value }),
    (error: Error) => reply({ error: { message: error.message, ...(error instanceof RenderCrash && { kind: 'crash' }) } }),
  );
});
