import { WorkerFailure, WorkerThread } from '../threads/worker_thread.ts';
import type { RenderReply, RenderRequest } from './template_process.ts';
import type { TemplateThreadData } from './template_thread.ts';

// Chat templates come with models from anywhere, can loop for ever and can ask for any amount of memory. A worker thread is no wall
// against that: V8 ends the whole process when one allocation of a thread exceeds its heap limit. So they get a process of their own,
// which a thread starts and looks after.

/** Conversations pass through the thread. */
const HEAP_MEGABYTES = 2048;

/** The process died while it rendered. */
export class RenderCrash extends Error {}

const data: TemplateThreadData = { pid: new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT) };
const thread = new WorkerThread('tokenizer/template_thread', { heapMegabytes: HEAP_MEGABYTES, data });

/** Renders in the template process, one request at a time; rejects with {@link RenderCrash} when it dies of it. */
export async function renderIsolated(request: RenderRequest): Promise<RenderReply> {
  try {
    return await thread.request<RenderReply>({ ...request });
  } catch (error) {
    // Other errors are about values that cannot be sent.
    if (error instanceof WorkerFailure && error.kind !== undefined) throw new RenderCrash(error.message);
    throw error;
  }
}

/** Starts the template process, for a render that is to come soon. */
export function startRenderer(): void {
  const nothing: RenderRequest = {
    source: '',
    jobs: [],
    addGenerationPrompt: false,
    variables: {},
    spans: undefined,
    outputLimit: 0,
    deadline: 1000,
  };
  renderIsolated(nothing).catch(() => undefined); // the render itself will say what is wrong
}

// The thread ends with this process, without a word; the template process would go on to the end of what it renders.
process.once('exit', () => {
  const pid = Atomics.load(new Int32Array(data.pid), 0);
  if (pid === 0) return;
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone already.
  }
});
