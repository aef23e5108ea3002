import type { CausalLM } from '../model/causal_lm.ts';
import type { FingerprintPart } from './fingerprint.ts';

/** What a training changes: an adapter, or the model itself. */
export interface TrainedWeights {
  readonly model: CausalLM;
  /** Makes these the weights that receive gradients, also after another training on the same model. */
  activate(): Promise<void>;
  /** Their names in the native model. */
  names(): string[];
  /** Trained parameters, and all of them. */
  count(): { trainable: number; all: number };
  /** What the log says about them. */
  readonly notes: readonly string[];
  /** Writes them as users load them. What was there stays whole until then; other files stay. */
  save(folder: string): Promise<void>;
  /** Where in `folder` save() puts the files that load them. */
  folder(folder: string): string;
  /** Sets them to those of such a folder. */
  load(folder: string): Promise<void>;
  /** What they and the weights beside them are, for checkpoints. */
  identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }>;
}
