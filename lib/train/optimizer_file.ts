import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { openTensorFile } from '../model/tensor_source.ts';
import type { NativeSession } from '../native.ts';

const OPTIMIZER_FILE = 'optimizer.safetensors';

/** Writes the optimizer's states into `folder`; `format` names the optimizer. */
export async function writeOptimizer(session: NativeSession, folder: string, format: string): Promise<void> {
  await session.saveOptimizer(join(folder, OPTIMIZER_FILE), { optimizer: format, step: String(session.optimizerStep) });
}

/**
 * Sets the optimizer's states to a checkpoint's, byte for byte.
 *
 * @throws INVALID_OPTION where another optimizer made it; CHECKPOINT_CORRUPT
 */
export async function readOptimizer(session: NativeSession, folder: string, format: string): Promise<void> {
  const path = join(folder, OPTIMIZER_FILE);
  const file = await openTensorFile(path);
  try {
    const { optimizer, step } = file.metadata();
    if (optimizer !== format) {
      throw new LowrankError(
        'INVALID_OPTION',
        `args.optim: ${path} has states of the optimizer ${shown(optimizer)}, expected ${shown(format)}; resume with the optimizer that the checkpoint was made with`,
      );
    }
    const updates = Number(step);
    if (!Number.isSafeInteger(updates) || updates < 0)
      throw new LowrankError('CHECKPOINT_CORRUPT', `${path}: found step ${step}, expected the number of updates`);
    const present = new Map(file.tensors().map((tensor) => [tensor.name, tensor]));
    for (const { name, dtype, shape } of session.optimizerStates()) {
      const found = present.get(name);
      if (found?.dtype !== dtype || String(found.shape) !== String(shape)) {
        const is = found ? `${found.dtype} [${found.shape}]` : 'nothing';
        throw new LowrankError('CHECKPOINT_CORRUPT', `${path}: ${name}: found ${is}, expected ${dtype} [${shape}]`);
      }
      await session.loadOptimizer(name, file);
    }
    session.optimizerStep = updates;
  } finally {
    file.close();
  }
}
