import { z } from 'zod';
import { suggestion } from '../errors.ts';

/** An optimizer as native code knows it. */
export interface OptimizerSpec {
  kind: 'adamw' | 'lion' | 'sgd' | 'adafactor' | 'muon';
  /** Of an element's states. */
  bits: 32 | 8;
  /** Whether the states may lie in a file. */
  paged: boolean;
}

/** `args.optim`: Transformers' names. */
export const OPTIMIZERS = {
  adamw_torch: { kind: 'adamw', bits: 32, paged: false },
  adamw_torch_fused: { kind: 'adamw', bits: 32, paged: false },
  adamw_8bit: { kind: 'adamw', bits: 8, paged: false },
  adamw_bnb_8bit: { kind: 'adamw', bits: 8, paged: false },
  paged_adamw_32bit: { kind: 'adamw', bits: 32, paged: true },
  paged_adamw_8bit: { kind: 'adamw', bits: 8, paged: true },
  lion_32bit: { kind: 'lion', bits: 32, paged: false },
  lion_8bit: { kind: 'lion', bits: 8, paged: false },
  paged_lion_32bit: { kind: 'lion', bits: 32, paged: true },
  paged_lion_8bit: { kind: 'lion', bits: 8, paged: true },
  sgd: { kind: 'sgd', bits: 32, paged: false },
  adafactor: { kind: 'adafactor', bits: 32, paged: false },
  muon: { kind: 'muon', bits: 32, paged: false },
} as const satisfies Record<string, OptimizerSpec>;

export type OptimizerName = keyof typeof OPTIMIZERS;

const NAMES = Object.keys(OPTIMIZERS) as OptimizerName[];

export const optimizerName = z.enum(NAMES as [OptimizerName, ...OptimizerName[]], {
  error: ({ input }) => {
    const near = typeof input === 'string' ? suggestion(input, NAMES) : undefined;
    return `${near === undefined ? '' : `'${near}' or another `}one of ${NAMES.map((name) => `'${name}'`).join(', ')} (there are no others)`;
  },
});

/** What a checkpoint calls the states: paged or not, they are the same. */
export function stateFormat({ kind, bits }: Pick<OptimizerSpec, 'kind' | 'bits'>): string {
  return bits === 8 ? `${kind}_8bit` : kind;
}
