// From nothing to the first optimizer step, through the compiled package, in a process of its own that ends with it.
//   node bench/startup_ours.mjs dist/index.js MODEL ROWS OUTPUT_FOLDER whole|phases
// Prints milliseconds as JSON: `whole` as a user writes it, `phases` one after the other, which start-up does side by side where it can.
import { pathToFileURL } from 'node:url';

const [compiled, model, rows, outputDir, mode] = process.argv.slice(2);
const phases = {};
let since = performance.now();
/** Ends the phase that has run since the last call. */
function ended(name) {
  const now = performance.now();
  phases[name] = now - since;
  since = now;
}

const { CausalLM, LoraTrainer, loadDataset } = await import(pathToFileURL(compiled).href);
ended('import');
const maxSeqLength = 256;
const trainerOf = (model, trainDataset) =>
  new LoraTrainer({
    model,
    trainDataset,
    args: { outputDir, maxSteps: 2, perDeviceTrainBatchSize: 4, maxSeqLength, packing: true, saveStrategy: 'no', logLevel: 'error', disableTqdm: true },
  });

let trainer;
if (mode === 'whole') {
  trainer = trainerOf(model, rows);
} else {
  const loaded = await CausalLM.fromPretrained(model);
  ended('model');
  // Cut where the trainer cuts, without a word about it.
  const dataset = await loadDataset(rows, { tokenizer: loaded.tokenizer, maxSeqLength, onWarning: () => undefined });
  ended('rows');
  trainer = trainerOf(loaded, dataset);
  await trainer.plan();
  ended('prepare');
}
const steps = trainer.steps();
await steps.next();
ended('firstStep');
await steps.next();
ended('secondStep');
console.log(JSON.stringify(phases));
process.exit();
