import type { NativeLoss, NativeSession, NativeTrainBatch } from '../native.ts';
import type { FingerprintPart } from './fingerprint.ts';

/** A model under training, as the loop sees it. */
export interface Trainable extends Pick<NativeSession, 'accumulate' | 'update' | 'zeroGradients'> {
  /** Loss without gradients, dropout off. */
  evaluate(batch: NativeTrainBatch): Promise<NativeLoss>;
  /** Writes the trained weights as users load them: PEFT's folder, or Transformers'. What was there stays whole until then; other files stay. */
  saveWeights(folder: string): Promise<void>;
  /** Where in `folder` saveWeights puts the files that load them. */
  weightsFolder(folder: string): string;
  /** Sets the trained weights to those of such a folder. */
  loadWeights(folder: string): Promise<void>;
  saveOptimizer(folder: string): Promise<void>;
  loadOptimizer(folder: string): Promise<void>;
  /** What the base and the adapter are, for checkpoints. */
  identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }>;
  /** Instruction set and number format computed with. */
  machine(): FingerprintPart;
}

/** Data ready for training, divided into units: rows, or packed rows. */
export interface TrainingData {
  readonly units: number;
  /** The tokens of some units, with targets shifted. */
  batch(units: readonly number[]): NativeTrainBatch;
  /** The order of the units in a pass over the data: a function of the seed and the pass. */
  order(seed: number, epoch: number): ArrayLike<number>;
  /** SHA-256 of the rows, and their number. */
  readonly identity: FingerprintPart;
}
