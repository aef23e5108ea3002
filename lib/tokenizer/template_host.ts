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
  const process = start();
  clearTimeout(idle);
  process.ref();
  process.channel?.ref();
  return new Promise<RenderReply>((resolve, reject) => {
    // Inside, every job has its deadline; this one is for a process that cannot even be stopped from inside.
    const backstop = setTimeout(() => process.kill('SIGKILL'), 30_000 + 2 * request.deadline * (request.jobs.length + 1));
    const settle = () => {
      clearTimeout(backstop);
      process.removeAllListeners();
      process.unref();
      process.channel?.unref();
      idle = setTimeout(stop, IDLE).unref();
    };
    const died = (reason: string) => {
      settle();
      stop();
      reject(new RenderCrash(reason));
    };
    process.once('message', (reply) => {
      settle();
      resolve(reply as RenderReply);
    });
    process.once('error', (error) => died(error.message));
    process.once('exit', () => died(`it needs more than ${HEAP_MEGABYTES} MiB of memory`));
    process.send(request, (error) => {
      if (!error) return;
      settle();
      reject(error);
    });
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
  return child;
}

function stop(): void {
  child?.kill('SIGKILL');
  child = undefined;
}

process.once('exit', stop);
