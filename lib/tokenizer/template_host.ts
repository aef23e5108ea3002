import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { entryUrl, sourceLoader } from './entry.ts';
import type { RenderReply, RenderRequest } from './template_process.ts';

// Chat templates come with models from anywhere, can loop for ever and can ask for any amount of memory. A worker thread is no wall
// against that: V8 ends the whole process when one allocation of a thread exceeds its heap limit. So they get a process of their own.

const HEAP_MEGABYTES = 128;
/** The process goes when it has had nothing to do for this long, in milliseconds. */
const IDLE = 20_000;

/** The process died while it rendered. */
export class RenderCrash extends Error {}

let child: ChildProcess | undefined;
let idle: NodeJS.Timeout | undefined;
let queue: Promise<unknown> = Promise.resolve();

/** Renders in the template process, one request at a time; rejects with {@link RenderCrash} when it dies of it. */
export function renderIsolated(request: RenderRequest): Promise<RenderReply> {
  const run = queue.then(() => send(request));
  queue = run.catch(() => undefined);
  return run;
}

function send(request: RenderRequest): Promise<RenderReply> {
  const renderer = start();
  clearTimeout(idle);
  renderer.ref();
  renderer.channel?.ref();
  return new Promise<RenderReply>((resolve, reject) => {
    // Inside, every job has its deadline; this one is for a process that cannot even be stopped from inside.
    const backstop = setTimeout(() => renderer.kill('SIGKILL'), 30_000 + 2 * request.deadline * (request.jobs.length + 1));
    const settle = () => {
      clearTimeout(backstop);
      renderer.off('message', onMessage).off('error', onError).off('exit', onExit);
      renderer.unref();
      renderer.channel?.unref();
      idle = setTimeout(stop, IDLE).unref();
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
      reject(error); // a value that cannot be sent, such as a function
    }
  });
}

function start(): ChildProcess {
  if (child?.connected && child.exitCode === null) return child;
  const loader = sourceLoader('tsx');
  child = fork(fileURLToPath(entryUrl('template_process')), {
    execArgv: [`--max-old-space-size=${HEAP_MEGABYTES}`, ...(loader ? ['--import', pathToFileURL(loader).href] : [])],
    env: { ...process.env, NODE_OPTIONS: '' },
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  // Between requests nobody else listens, and an error event without a listener would be thrown.
  child.on('error', () => undefined);
  return child;
}

function stop(): void {
  child?.kill('SIGKILL');
  child = undefined;
}

process.once('exit', stop);
