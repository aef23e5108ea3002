// Trains until it is killed; test/61.checkpoint.test.ts runs it. Arguments: folder, whether to resume.
import { train } from './60.trainer.quadratic.ts';

const [outputDir, resume] = process.argv.slice(2);
const args = {
  outputDir,
  numTrainEpochs: 40,
  perDeviceTrainBatchSize: 2,
  saveSteps: 1,
  saveTotalLimit: 2,
  resumeFromCheckpoint: resume === 'resume',
};
const callbacks = [{ onSave: () => void process.stdout.write('saved\n') }];
await train({ args, callbacks, dropout: 0.2 });
