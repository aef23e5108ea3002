// Our side of the generation benchmark: greedy tokens of SmolLM2-135M through the compiled package, as its users call it.
//   node bench/generate_ours.mjs dist/index.js MODEL [bf16]
import { pathToFileURL } from 'node:url';
import { kNewTokens, serve } from './generation_work.mjs';

const [compiled, path, compute] = process.argv.slice(2);
const index = pathToFileURL(compiled);
const { CausalLM } = await import(index.href);
const { native } = await import(new URL('./native.js', index).href);
const model = await CausalLM.fromPretrained(path);
if (compute) model.core.native.setCompute(compute);
model.core.eosIds.length = 0; // as many tokens as are asked for

/** Seconds until every prompt has grown by `maxNewTokens`. */
async function seconds(prompts, maxNewTokens) {
  const begin = performance.now();
  const answers = await model.generateBatch(prompts, { maxNewTokens });
  const elapsed = (performance.now() - begin) / 1000;
  for (const { ids } of answers) if (ids.length !== maxNewTokens) throw new Error(`${ids.length} tokens where ${maxNewTokens} were wanted`);
  return elapsed;
}

const { isa, threads } = native().systemInfo();
await serve({
  first: (prompt) => seconds([prompt], 1),
  decode: async (prompts) => {
    const first = await seconds(prompts, 1);
    return (await seconds(prompts, kNewTokens)) - first;
  },
  about: { isa, threads },
});
