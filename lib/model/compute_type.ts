import { type NativeComputeType, native } from '../native.ts';

/** Types of a model's weights and of its arithmetic, by their names in PyTorch; 'auto': weights as they are stored. */
export const kDtypes = ['auto', 'float32', 'bfloat16', 'float16'] as const;
export type Dtype = (typeof kDtypes)[number];

/** Storage types by their names in PyTorch. */
export const kStorageTypes = { float32: 'F32', bfloat16: 'BF16', float16: 'F16' } as const;

/** What `dtype` lets a model compute in; undefined: what its use says. Warns where something else than was asked for runs. */
export function computeTypeOf(dtype: Dtype): NativeComputeType | undefined {
  switch (dtype) {
    case 'auto':
      return undefined;
    case 'float32':
      return 'f32';
    case 'float16':
      warn(
        'dtype: weights are kept in float16, but a CPU computes in no float16; float32 takes its place, in training the type of args.bf16',
      );
      return undefined;
    case 'bfloat16': {
      const { bf16, isa } = native().systemInfo();
      if (bf16) return 'bf16';
      warn(`dtype: weights are kept in bfloat16, but ${isa} has no bfloat16 products; float32 takes their place`);
      return 'f32';
    }
  }
}

function warn(message: string): void {
  process.emitWarning(message, 'LowrankWarning');
}
