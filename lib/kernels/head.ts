import { Checks, run, type Weight } from './checks.ts';

export interface EmbeddingOptions {
  /** [rows, columns] in any storage type. */
  table: Weight;
  rows: number;
  columns: number;
  /** Rows to take, each in [0, rows). */
  ids: Int32Array;
}

/** The rows of a table that ids name: [ids.length, columns]. */
export function embedding(options: EmbeddingOptions): Float32Array {
  const checks = new Checks('embedding', options, ['table', 'rows', 'columns', 'ids']);
  const { table, rows, columns, ids } = options;
  checks.dimension('rows', rows);
  checks.dimension('columns', columns);
  const weight = checks.weight('table', table, rows, columns);
  checks.ints('ids', ids, ids?.length ?? 0);
  const x = checks.allocate(ids.length, columns);
  run('embedding', ...weight, ids, ids.length, x);
  return x;
}

/** Gradient [rows, columns] of the table of {@link embedding} from dx: [ids.length, columns]. */
export function embeddingBackward(options: { ids: Int32Array; dx: Float32Array; rows: number; columns: number }): Float32Array {
  const checks = new Checks('embeddingBackward', options, ['ids', 'dx', 'rows', 'columns']);
  const { ids, dx, rows, columns } = options;
  checks.dimension('rows', rows);
  checks.dimension('columns', columns);
  checks.ints('ids', ids, ids?.length ?? 0);
  checks.floats('dx', dx, ids.length, columns);
  for (const [place, id] of ids.entries()) {
    if (id < 0 || id >= rows) checks.fail(`ids[${place}] is ${id}; expected a row of the table, 0 to ${rows - 1}`);
  }
  const dTable = checks.allocate(rows, columns);
  run('embeddingBackward', ids, ids.length, dx, rows, columns, dTable);
  return dTable;
}

export interface LinearCrossEntropyOptions {
  /** [targets.length, channels]: hidden states of the supervised tokens. */
  h: Float32Array;
  /** The head [vocabulary, channels] in any storage type. */
  weight: Weight;
  vocabulary: number;
  channels: number;
  /** Each in [0, vocabulary). */
  targets: Int32Array;
  /** Multiplies the gradients; 1 / targets.length gives those of the mean. 1 by default. */
  gradScale?: number;
  /** What to return the gradient of besides the loss: 'none', 'input' (the default), or 'all', which adds the weight's. */
  gradients?: 'none' | 'input' | 'all';
}

export interface LinearCrossEntropyResult {
  /** Σ of the negative log-likelihoods of the targets. */
  nllSum: number;
  /** Rows whose largest logit is the target's. */
  correct: number;
  dh?: Float32Array;
  dWeight?: Float32Array;
}

/** Softmax cross-entropy of h·weightᵀ and its gradients, without the logits ever being held. */
export function linearCrossEntropy(options: LinearCrossEntropyOptions): LinearCrossEntropyResult {
  const checks = new Checks('linearCrossEntropy', options, ['h', 'weight', 'vocabulary', 'channels', 'targets', 'gradScale', 'gradients']);
  const { h, weight, vocabulary, channels, targets, gradScale = 1, gradients = 'input' } = options;
  checks.dimension('vocabulary', vocabulary, 1);
  checks.dimension('channels', channels, 1);
  checks.ints('targets', targets, targets?.length ?? 0);
  checks.floats('h', h, targets.length, channels);
  const head = checks.weight('weight', weight, vocabulary, channels);
  checks.number('gradScale', gradScale);
  checks.choice('gradients', gradients, ['none', 'input', 'all']);
  const dh = gradients === 'none' ? undefined : checks.allocate(targets.length, channels);
  const dWeight = gradients === 'all' ? checks.allocate(vocabulary, channels) : undefined;
  const loss = new Float64Array(2);
  run('linearCrossEntropy', h, ...head, targets, targets.length, gradScale, dh, dWeight, loss);
  return { nllSum: loss[0] as number, correct: loss[1] as number, ...(dh && { dh }), ...(dWeight && { dWeight }) };
}
