import { type NativeTensorData, native } from '../../lib/native.ts';

/** Rewrites a safetensors file after changing its list of tensors. */
export async function rewriteSafetensors(path: string, change: (tensors: NativeTensorData[]) => NativeTensorData[]): Promise<void> {
  const file = native().openTensorFile(path);
  const tensors = file
    .tensors()
    .map(({ name, dtype, shape }): NativeTensorData => ({ name, dtype, shape, data: file.readRaw(name).slice() }));
  file.close();
  await native().writeSafetensors(path, change(tensors), { format: 'pt' });
}
