import { closeSync, existsSync, openSync, readSync } from 'node:fs';

// How long the main thread holds the event loop, on a machine that may be doing other things too: Linux counts the time that a thread has
// computed and the time that it waited for a processor, the second of which is not its own doing.

const kCounters = '/proc/self/schedstat';

/** Whether this system counts them. */
export const canMeasureHolds = existsSync(kCounters);

/** What the main thread did at most between two ticks of a timer of 1 ms, in milliseconds. */
export interface Holds {
  /** It computed. */
  computing: number;
  /** It slept outside the event loop's own waiting: on a lock, a disk, a helper of the garbage collector. */
  blocked: number;
}

/** The longest holds while `run` runs. */
export async function longestHolds(run: () => Promise<unknown>): Promise<Holds> {
  const counters = openSync(kCounters, 'r');
  const buffer = Buffer.alloc(128);
  const now = () => {
    const [computed = 0, waited = 0] = buffer
      .toString('latin1', 0, readSync(counters, buffer, 0, buffer.length, 0))
      .split(' ')
      .map((nanoseconds) => Number(nanoseconds) / 1e6);
    return { computed, waited, active: performance.eventLoopUtilization().active };
  };
  const longest: Holds = { computing: 0, blocked: 0 };
  let last = now();
  const tick = () => {
    const time = now();
    const computing = time.computed - last.computed;
    longest.computing = Math.max(longest.computing, computing);
    longest.blocked = Math.max(longest.blocked, time.active - last.active - computing - (time.waited - last.waited));
    last = time;
  };
  const timer = setInterval(tick, 1);
  try {
    await run();
    await new Promise((resolve) => setImmediate(resolve));
    tick();
    return longest;
  } finally {
    clearInterval(timer);
    closeSync(counters);
  }
}
