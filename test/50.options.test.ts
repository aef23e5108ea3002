import assert from 'node:assert/strict';
import { LowrankError } from '../lib/errors.ts';
import { parseGenerateOptions } from '../lib/options/generate_options.ts';
import { parseLoraConfig } from '../lib/options/lora_config.ts';
import { parseTrainerOptions } from '../lib/options/trainer_options.ts';

const base = { model: 'model.gguf', trainDataset: 'train.jsonl' };
const withArgs = (args: Record<string, unknown>) => parseTrainerOptions({ ...base, args });

function refused(run: () => unknown, code: string, ...parts: (string | RegExp)[]): void {
  assert.throws(run, (error: unknown) => {
    assert.ok(error instanceof LowrankError, String(error));
    assert.equal(error.code, code, error.message);
    for (const part of parts) assert.match(error.message, part instanceof RegExp ? part : new RegExp(part.replace(/[.[\]()|]/g, '\\$&')));
    return true;
  });
}

describe('options of full fine-tuning', () => {
  const full = (more: Record<string, unknown> = {}) => parseTrainerOptions({ ...base, peftConfig: null, ...more });

  it("has Transformers' learning rate for it, unless one is given", () => {
    assert.equal(full().peftConfig, null);
    assert.deepEqual(full().layers, {});
    assert.equal(full().args.learningRate, 2e-5);
    assert.equal(full({ args: { learningRate: undefined } }).args.learningRate, 2e-5);
    assert.equal(full({ args: { learningRate: 2e-4 } }).args.learningRate, 2e-4);
    refused(
      () => full({ args: { lrSchedulerType: 'polynomial', lrSchedulerKwargs: { lrEnd: 3e-5 } } }),
      'INVALID_OPTION',
      'less than args.learningRate (0.00002)',
    );
  });

  it('takes layers, which are for it alone', () => {
    const layers = { frozen: [0, -1, 'embed_tokens'], trained: ['model.layers.1', 'norm'] };
    assert.deepEqual(full({ layers }).layers, layers);
    refused(() => parseTrainerOptions({ ...base, layers }), 'INVALID_OPTION', 'layers: found', 'peftConfig: null');
    refused(() => parseTrainerOptions({ ...base, peftConfig: { r: 4 }, layers: {} }), 'INVALID_OPTION', 'layers: found {}');
    refused(() => full({ layers: { frozn: [0] } }), 'UNKNOWN_OPTION', 'layers.frozn', "did you mean 'frozen'");
    refused(() => full({ layers: { frozen: [0.5] } }), 'INVALID_OPTION', 'layers.frozen[0]: found 0.5');
    refused(() => full({ layers: { trained: [] } }), 'INVALID_OPTION', 'layers.trained', 'at least 1 element');
    refused(() => full({ layers: { frozen: ['norm', ''] } }), 'INVALID_OPTION', 'layers.frozen[1]: found ""');
  });

  it('refuses what only an adapter can be trained on', () => {
    refused(
      () => full({ quantizationConfig: { loadIn4bit: true } }),
      'UNSUPPORTED_QUANTIZATION',
      'quantizationConfig',
      'purely quantized',
      'adapter',
    );
    refused(() => full({ model: { generate() {}, peftConfig: {} } }), 'INVALID_OPTION', 'peftConfig: found null', 'PeftModel');
    assert.equal(full({ quantizationConfig: null }).quantizationConfig, undefined);
  });
});

describe('options of LoraTrainer', () => {
  it('needs only model and trainDataset', () => {
    const options = parseTrainerOptions(base);
    assert.equal(options.args.numTrainEpochs, 3);
    assert.equal(options.args.perDeviceTrainBatchSize, 8);
    assert.equal(options.args.optim, 'adamw_torch');
    assert.equal(options.args.packing, false);
    assert.equal(options.args.learningRate, 2e-4);
    assert.deepEqual([options.peftConfig?.r, options.peftConfig?.loraAlpha, options.peftConfig?.targetModules], [16, 32, 'all-linear']);
  });

  it("takes api.md's example but for what later versions bring", () => {
    const options = parseTrainerOptions({
      ...base,
      evalDataset: [{ text: 'x' }],
      peftConfig: { r: 16, loraAlpha: 32, targetModules: 'all-linear', loraDropout: 0.05, bias: 'none' },
      args: {
        outputDir: './lora_output',
        numTrainEpochs: 3,
        maxSteps: -1,
        perDeviceTrainBatchSize: 4,
        gradientAccumulationSteps: 4,
        learningRate: 2e-4,
        lrSchedulerType: 'linear',
        warmupRatio: 0.03,
        weightDecay: 0,
        maxGradNorm: 1,
        optim: 'adamw_torch',
        loggingSteps: 10,
        evalStrategy: 'epoch',
        saveStrategy: 'epoch',
        saveTotalLimit: 2,
        loadBestModelAtEnd: false,
        bf16: 'auto',
        gradientCheckpointing: true,
        maxSeqLength: 2048,
        packing: true,
        completionOnlyLoss: 'auto',
        seed: 42,
        resumeFromCheckpoint: undefined,
      },
      callbacks: [],
      signal: undefined,
    });
    assert.equal(options.args.warmupRatio, 0.03);
    assert.equal(options.peftConfig?.loraDropout, 0.05);
  });

  it('answers misspelt and snake_case options with the right name', () => {
    refused(
      () => parseTrainerOptions({ ...base, trian_dataset: 1 }),
      'UNKNOWN_OPTION',
      "trian_dataset is not an option; did you mean 'trainDataset'?",
    );
    refused(() => withArgs({ learning_rate: 1e-4 }), 'UNKNOWN_OPTION', 'args.learning_rate', "'learningRate'");
    refused(() => withArgs({ perDeviceTrainBatchsize: 1 }), 'UNKNOWN_OPTION', "'perDeviceTrainBatchSize'");
    refused(() => withArgs({ lrSchedulerKwargs: { num_cycles: 1 } }), 'UNKNOWN_OPTION', 'args.lrSchedulerKwargs.num_cycles', "'numCycles'");
    refused(
      () => parseTrainerOptions({ ...base, peftConfig: { lora_alpha: 1 } }),
      'UNKNOWN_OPTION',
      'peftConfig.lora_alpha',
      "'loraAlpha'",
    );
    class Misspelt {
      onLog() {}
      onStepend() {}
    }
    for (const callback of [{ on_step_end() {} }, { onLog() {}, onStepend() {} }, new Misspelt()])
      refused(
        () => parseTrainerOptions({ ...base, callbacks: [{ onLog() {} }, callback] }),
        'UNKNOWN_OPTION',
        'callbacks[1].on',
        "'onStepEnd'",
      );
    refused(() => parseTrainerOptions({ ...base, callbacks: [{ onLog() {}, onFoo() {} }] }), 'UNKNOWN_OPTION', 'callbacks[0].onFoo');
    refused(() => withArgs({ zzzzzzzzzz: 1 }), 'UNKNOWN_OPTION', 'the options there are', 'outputDir');
  });

  it('names the option, what was found and what was expected', () => {
    refused(() => parseTrainerOptions({}), 'INVALID_OPTION', 'model: found nothing');
    refused(() => parseTrainerOptions(undefined), 'INVALID_OPTION', 'found nothing, expected an object');
    refused(() => parseTrainerOptions({ ...base, args: 3 }), 'INVALID_OPTION', 'args: found 3, expected an object');
    refused(() => withArgs({ learningRate: 'fast' }), 'INVALID_OPTION', 'args.learningRate: found "fast", expected a number');
    refused(() => withArgs({ learningRate: Number.NaN }), 'INVALID_OPTION', 'args.learningRate: found NaN, expected a number');
    refused(() => withArgs({ learningRate: -1 }), 'INVALID_OPTION', 'args.learningRate: found -1, expected at least 0');
    refused(
      () => withArgs({ perDeviceTrainBatchSize: 1.5 }),
      'INVALID_OPTION',
      'args.perDeviceTrainBatchSize: found 1.5, expected an integer',
    );
    refused(
      () => withArgs({ gradientAccumulationSteps: 0 }),
      'INVALID_OPTION',
      'args.gradientAccumulationSteps: found 0, expected at least 1',
    );
    refused(() => withArgs({ adamBeta2: 1 }), 'INVALID_OPTION', 'args.adamBeta2: found 1, expected less than 1');
    refused(() => withArgs({ maxSteps: 0 }), 'INVALID_OPTION', 'args.maxSteps: found 0, expected -1 or a positive integer');
    refused(
      () => withArgs({ lrSchedulerType: 'cosin' }),
      'INVALID_OPTION',
      "args.lrSchedulerType: found \"cosin\", expected one of 'linear', 'cosine'",
    );
    refused(() => withArgs({ saveSteps: 1.5 }), 'INVALID_OPTION', 'args.saveSteps: found 1.5, expected an integer, or a share');
    refused(() => withArgs({ outputDir: '' }), 'INVALID_OPTION', 'args.outputDir: found "", expected a text that is not empty');
    refused(() => parseTrainerOptions({ ...base, callbacks: [{}] }), 'INVALID_OPTION', 'callbacks[0]');
    refused(() => parseTrainerOptions({ ...base, signal: 1 }), 'INVALID_OPTION', 'signal: found 1, expected an AbortSignal');
  });

  it('refuses by name what is not there yet', () => {
    for (const optim of ['muonclip', 'ademamix', 'rmsprop_bnb', 'adamw_8bits', 8]) {
      refused(() => withArgs({ optim }), 'INVALID_OPTION', `args.optim: found ${JSON.stringify(optim)}`, "'adamw_torch'");
    }
    refused(() => withArgs({ optimizerMemory: '64MiB' }), 'INVALID_OPTION', 'args.optimizerMemory', "'adamw_torch'", "'paged_adamw_8bit'");
    refused(() => withArgs({ optim: 'paged_adamw_8bit', optimizerMemory: '1MiB' }), 'INVALID_OPTION', 'args.optimizerMemory', '4MiB');
    refused(() => withArgs({ optimArgs: { momentum: 0.5 } }), 'INVALID_OPTION', 'args.optimArgs.momentum', "'sgd'");
    refused(() => withArgs({ optim: 'sgd', optimArgs: { momentum: 1 } }), 'INVALID_OPTION', 'args.optimArgs.momentum: found 1');
    refused(() => withArgs({ neftuneNoiseAlpha: 5 }), 'INVALID_OPTION', 'args.neftuneNoiseAlpha: found 5', 'not available yet');
    refused(
      () => parseTrainerOptions({ ...base, quantizationConfig: { loadIn4bit: true, loadIn8bit: true } }),
      'INVALID_OPTION',
      'quantizationConfig.loadIn4bit',
      'loadIn8bit',
    );
    refused(() => parseTrainerOptions({ ...base, peftConfig: { peftType: 'IA3' } }), 'INVALID_OPTION', 'peftConfig.peftType: found "IA3"');
  });

  it('refuses options that contradict each other', () => {
    refused(() => withArgs({ evalStrategy: 'steps' }), 'INVALID_OPTION', 'args.evalStrategy', 'evalDataset');
    const evaluated = (args: Record<string, unknown>) => parseTrainerOptions({ ...base, evalDataset: 'eval.jsonl', args });
    refused(() => evaluated({ loadBestModelAtEnd: true }), 'INVALID_OPTION', 'args.loadBestModelAtEnd', "'no' and 'steps'");
    refused(
      () => evaluated({ loadBestModelAtEnd: true, evalStrategy: 'steps', evalSteps: 10, saveSteps: 15 }),
      'INVALID_OPTION',
      'args.saveSteps',
      'multiple',
    );
    assert.ok(evaluated({ loadBestModelAtEnd: true, evalStrategy: 'steps', evalSteps: 0.1, saveSteps: 0.3 }));
    refused(
      () => withArgs({ lrSchedulerType: 'linear', lrSchedulerKwargs: { power: 2 } }),
      'INVALID_OPTION',
      'args.lrSchedulerKwargs.power',
      "'linear'",
    );
    refused(() => withArgs({ lrSchedulerType: 'polynomial', learningRate: 1e-8 }), 'INVALID_OPTION', 'args.lrSchedulerKwargs.lrEnd');
  });
});

describe('LoraConfig', () => {
  it("fills in PEFT's defaults", () => {
    const config = parseLoraConfig({});
    assert.deepEqual(
      [config.r, config.loraAlpha, config.loraDropout, config.bias, config.useRslora, config.initLoraWeights],
      [8, 8, 0, 'none', false, true],
    );
    assert.equal(config.targetModules, undefined);
  });

  it('checks types and ranges, down to the element', () => {
    refused(() => parseLoraConfig({ r: 0 }), 'INVALID_OPTION', 'peftConfig.r: found 0, expected at least 1');
    refused(() => parseLoraConfig({ loraDropout: 1 }), 'INVALID_OPTION', 'peftConfig.loraDropout: found 1, expected less than 1');
    refused(() => parseLoraConfig({ bias: 'some' }), 'INVALID_OPTION', "expected one of 'none', 'all', 'lora_only'");
    refused(
      () => parseLoraConfig({ targetModules: ['q_proj', 3] }),
      'INVALID_OPTION',
      'peftConfig.targetModules[1]: found 3, expected a string',
    );
    refused(() => parseLoraConfig({ targetModules: [] }), 'INVALID_OPTION', 'peftConfig.targetModules');
    refused(
      () => parseLoraConfig({ targetModules: 7 }),
      'INVALID_OPTION',
      'peftConfig.targetModules: found 7, expected an array or a string',
    );
    refused(() => parseLoraConfig({ rankPattern: { q_proj: 0 } }), 'INVALID_OPTION', 'peftConfig.rankPattern.q_proj: found 0');
    refused(() => parseLoraConfig({ layersPattern: 'h' }), 'INVALID_OPTION', 'peftConfig.layersPattern', 'layersToTransform');
  });

  it("refuses PEFT's other variants by name and takes them switched off", () => {
    refused(() => parseLoraConfig({ useDora: true }), 'INVALID_OPTION', 'peftConfig.useDora: found true', 'DoRA is not supported yet');
    refused(
      () => parseLoraConfig({ initLoraWeights: 'pissa' }),
      'INVALID_OPTION',
      'peftConfig.initLoraWeights: found "pissa"',
      'not supported yet',
    );
    refused(() => parseLoraConfig({ layerReplication: [[0, 4]] }), 'INVALID_OPTION', 'peftConfig.layerReplication');
    assert.ok(parseLoraConfig({ useDora: false, loftqConfig: {}, evaConfig: null, initLoraWeights: 'gaussian' }));
  });
});

describe('generate options', () => {
  it('has defaults and checks ranges', () => {
    assert.equal(parseGenerateOptions().doSample, false);
    refused(() => parseGenerateOptions({ temperature: 0 }), 'INVALID_OPTION', 'temperature: found 0, expected more than 0');
    refused(() => parseGenerateOptions({ top_p: 0.9 }), 'UNKNOWN_OPTION', "'topP'");
    refused(() => parseGenerateOptions({ stop: [''] }), 'INVALID_OPTION', 'stop[0]');
  });
});
