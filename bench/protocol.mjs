// The line protocol of the benchmark's processes. Imports nothing that is not Node's: peers/llama runs a copy of it.
import { createInterface } from 'node:readline';

/** Says {"ready": true, ...about}, then answers each line `NAME K` with the JSON of `commands[NAME](K)`. */
export async function answerCommands(about, commands) {
  console.log(JSON.stringify({ ready: true, ...about }));
  for await (const line of createInterface({ input: process.stdin })) {
    const [, name, count] = /^(\w+) (\d+)$/.exec(line) ?? [];
    if (!Object.hasOwn(commands, name ?? '')) throw new Error(`found ${line}, expected one of ${Object.keys(commands).join(', ')} and a count`);
    console.log(JSON.stringify(await commands[name](Number(count))));
  }
}
