import { z } from 'zod';
import { TRUNCATIONS } from '../data/truncation.ts';
import { byteSize } from './byte_size.ts';
import { optimizerName } from './optimizers.ts';

const text = z.string().min(1);
const count = z.int().min(1);
const flag = z.boolean();
/** Every so many steps; below 1: that share of all steps, as in Transformers. */
const interval = z
  .number()
  .positive()
  .refine((value) => value < 1 || Number.isInteger(value), { error: 'an integer, or a share of all steps below 1' });

const gradientCheckpointing = z.union(
  [flag, z.enum(['full', 'selective', 'offload']), z.strictObject({ every: count }), z.strictObject({ budget: byteSize })],
  { error: "true, false, 'full', 'selective', 'offload', { every: layers } or { budget: '6GiB' }" },
);
/** `args.gradientCheckpointing`, with a budget in bytes. */
export type GradientCheckpointing = z.output<typeof gradientCheckpointing>;

export const SCHEDULERS = [
  'linear',
  'cosine',
  'cosine_with_restarts',
  'polynomial',
  'constant',
  'constant_with_warmup',
  'inverse_sqrt',
] as const;

/** TrainingArguments: Transformers' and TRL's names in camelCase, and their values and defaults, except where the text says otherwise. */
export const trainingArgumentsSchema = z.strictObject({
  outputDir: text.default('./lora_output').describe('Folder for the adapter or the model, the checkpoints and the logs.'),

  numTrainEpochs: z.number().positive().default(3).describe('Passes over the data; may be a fraction.'),
  maxSteps: z
    .int()
    .refine((steps) => steps === -1 || steps > 0, { error: '-1 or a positive integer' })
    .default(-1)
    .describe('Number of steps in place of numTrainEpochs; -1: by epochs.'),
  perDeviceTrainBatchSize: count.default(8).describe('Rows (with packing: packed rows) in a micro-batch.'),
  perDeviceEvalBatchSize: count.default(8).describe('Rows evaluated at a time; makes no difference to the result.'),
  gradientAccumulationSteps: count.default(1).describe('Micro-batches in a step.'),

  learningRate: z.number().min(0).default(2e-4).describe('Peak learning rate; 2e-4 with an adapter, 2e-5 without.'),
  lrSchedulerType: z.enum(SCHEDULERS).default('linear').describe('How the learning rate goes from its peak.'),
  lrSchedulerKwargs: z
    .strictObject({
      numCycles: z.number().positive().optional().describe('cosine: waves, 0.5; cosine_with_restarts: restarts, 1.'),
      power: z.number().positive().optional().describe('polynomial: 1.'),
      lrEnd: z.number().min(0).optional().describe('polynomial: learning rate at the end, 1e-7.'),
      timescale: z.number().positive().optional().describe('inverse_sqrt: warm-up steps, or 10000 without any.'),
    })
    .optional()
    .describe("The scheduler's own options."),
  warmupRatio: z.number().min(0).max(1).default(0).describe('Share of all steps in which the learning rate rises from 0.'),
  warmupSteps: z.number().min(0).default(0).describe('Steps of warm-up in place of warmupRatio; below 1: a share of all steps.'),
  weightDecay: z.number().min(0).default(0).describe('Decoupled weight decay; biases and norms have none.'),
  maxGradNorm: z.number().min(0).default(1).describe('Gradients are scaled down to this norm; 0: never.'),
  optim: optimizerName
    .default('adamw_torch')
    .describe(
      'The optimizer. AdamW: adamw_torch (and adamw_torch_fused, the same), adamw_8bit (and adamw_bnb_8bit), paged_adamw_32bit, paged_adamw_8bit; Lion: lion_32bit, lion_8bit, paged_lion_32bit, paged_lion_8bit; sgd; adafactor; muon.',
    ),
  optimizerMemory: byteSize
    .refine((bytes) => bytes >= 4 * 2 ** 20, { error: "at least '4MiB'" })
    .optional()
    .describe("paged_…: most bytes of the optimizer's states in memory, '512MiB' when left out; the others lie in a file in outputDir."),
  optimArgs: z
    .strictObject({
      momentum: z
        .number()
        .min(0)
        .lt(1)
        .optional()
        .describe('sgd: share of the last update in the next one, 0.9; muon: decay of the momentum, 0.95.'),
      adjustLrFn: z
        .enum(['original', 'match_rms_adamw', 'spectral_unclamped'])
        .optional()
        .describe("muon: what multiplies the learning rate of a matrix, as torch's adjust_lr_fn; 'match_rms_adamw'."),
    })
    .optional()
    .describe("The optimizer's own options."),
  adamBeta1: z.number().min(0).lt(1).default(0.9).describe('Decay of the first moment.'),
  adamBeta2: z.number().min(0).lt(1).default(0.999).describe('Decay of the second moment.'),
  adamEpsilon: z.number().min(0).default(1e-8).describe('Added to the root of the second moment.'),

  maxSeqLength: z.int().min(2).default(1024).describe("Longest row in tokens; TRL's max_length."),
  packing: flag.default(false).describe('Put several rows into one of up to maxSeqLength tokens; they do not see each other.'),
  completionOnlyLoss: z
    .union([flag, z.literal('auto')], { error: "true, false or 'auto'" })
    .default('auto')
    .describe('Train on completions and assistant turns only; auto: where the format tells them apart.'),
  dataloaderDropLast: flag.default(false).describe("Leave out an epoch's last micro-batch when it is not full."),
  truncation: z.enum(TRUNCATIONS).default('right').describe('What becomes of rows longer than maxSeqLength.'),
  onBadRow: z.enum(['error', 'skip']).default('error').describe('What a malformed row does.'),

  loggingStrategy: z.enum(['no', 'steps', 'epoch']).default('steps').describe('When to log.'),
  loggingSteps: interval.default(10).describe("Steps between logs; below 1: a share of all steps. TRL's default."),
  loggingFirstStep: flag.default(false).describe('Log the first step too.'),
  logLevel: z.enum(['error', 'warning', 'info']).default('info').describe('What is written to stderr: nothing, warnings, or all.'),
  disableTqdm: flag.optional().describe('No progress bar; left out: a bar where stderr is a terminal.'),

  evalStrategy: z.enum(['no', 'steps', 'epoch']).default('no').describe('When to evaluate.'),
  evalSteps: interval.optional().describe('Steps between evaluations; loggingSteps when left out.'),
  evalOnStart: flag.default(false).describe('Evaluate before the first step.'),

  saveStrategy: z.enum(['no', 'steps', 'epoch', 'best']).default('steps').describe('When to write a checkpoint.'),
  saveSteps: interval.default(500).describe('Steps between checkpoints; below 1: a share of all steps.'),
  saveTotalLimit: count.optional().describe('Most checkpoints kept; the best is kept always.'),
  onSaveError: z.enum(['error', 'warn']).default('error').describe('Whether a checkpoint that cannot be written ends the training.'),
  loadBestModelAtEnd: flag.default(false).describe('End with the weights of the best checkpoint.'),
  metricForBestModel: z
    .enum(['loss', 'eval_loss', 'perplexity', 'eval_perplexity', 'accuracy', 'eval_accuracy'])
    .default('loss')
    .describe('What makes a checkpoint the best.'),
  greaterIsBetter: flag.optional().describe('Whether more of it is better; left out: for accuracy.'),

  resumeFromCheckpoint: z
    .union([flag, text], { error: 'true, false or the folder of a checkpoint' })
    .optional()
    .describe("Continue from a checkpoint, bit for bit; true: outputDir's newest whole one."),
  resumeIgnoreMismatch: flag
    .default(false)
    .describe('Continue though data, base model, adapter, batch or length are others than the checkpoint was made with.'),

  bf16: z
    .union([flag, z.literal('auto')], { error: "true, false or 'auto'" })
    .default('auto')
    .describe(
      "true: the large products take bfloat16 operands where the CPU can (systemInfo().bf16; elsewhere fp32, which the log says), and so they do in the model afterwards; false: fp32; 'auto': the model's dtype where it was given one, else whichever is faster (systemInfo().computeType).",
    ),
  fp16: flag.default(false).describe('A CPU trains in no fp16: the type that bf16 says is used, and the log names it.'),
  gradientCheckpointing: gradientCheckpointing
    .optional()
    .describe(
      "false when left out, true for a quantised model that prepareModelForKbitTraining prepared. Compute activations again in the backward pass instead of keeping them; gradients have the same bits. true or 'full': keep each layer's input only, a third more work; 'selective': what attention made too; 'offload': inputs wait for the backward in a file in outputDir; { every: n }: the inputs of every n-th layer; { budget: '6GiB' }: layer by layer, the cheapest mix whose plan (trainer.plan()) fits.",
    ),
  neftuneNoiseAlpha: z
    .union([z.literal(0), z.null()], { error: 'nothing (NEFTune is not available yet)' })
    .optional()
    .describe('Not available yet.'),
  seed: z.int().min(0).default(42).describe('Dropout, initial adapter, order of the data, and stochastic rounding.'),
  dataSeed: z.int().min(0).optional().describe('Order of the data; seed when left out.'),
});

/** TrainingArguments as a user writes them. Everything has a default. */
export type TrainingArguments = z.input<typeof trainingArgumentsSchema>;
/** TrainingArguments with their defaults filled in. */
export type ResolvedTrainingArguments = z.output<typeof trainingArgumentsSchema>;
