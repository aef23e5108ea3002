// The line protocol of the benchmark's processes. Imports nothing that is not Node's: peers/llama runs a copy of it.
import { createInterface } from 'node:readline';

/** Says {"ready": true, ...about}, then answers each line `run K` with the JSON of `run(K)`. */
export async function answerRuns(about, run) {
  console.log(JSON.stringify({ ready: true, ...about }));
  for await (const line of createInterface({ input: process.stdin })) {
    const count = /^run (\d+)$/.exec(line)?.[1];
    if (count === undefined) throw new Error(`found ${line}, expected 'run K'`);
    console.log(JSON.stringify(await run(Number(count))));
  }
}
