import { setImmediate } from 'node:timers/promises';
import { LowrankError, throwIfAborted } from '../errors.ts';
import { call, type NativeModel } from '../native.ts';
import { placeCodes } from './bitsandbytes_tensors.ts';
import { listed, type TensorLocation, type TensorMap } from './tensor_source.ts';

const kEmbedding = 'model.embed_tokens.weight';
const kHead = 'lm_head.weight';

/** Buffers that old versions of Transformers saved; they follow from the configuration. */
const kIgnored = /(^|\.)rotary_emb\.inv_freq$/;

/**
 * Settles what a file of a model with a tied head may hold, as Transformers does: both tensors, when they are equal; both and not equal,
 * then they are not tied; the head alone, then it is the embedding too. Returns whether the head is tied.
 */
export async function settleTying(tensors: TensorMap, tied: boolean): Promise<boolean> {
  const head = tensors.get(kHead);
  const embedding = tensors.get(kEmbedding);
  if (!tied || !head) return tied;
  if (embedding && !(await haveEqualBytes(head, embedding))) return false;
  if (!embedding) tensors.set(kEmbedding, head);
  tensors.delete(kHead);
  return true;
}

/** Bytes compared before the event loop gets its turn: some milliseconds when they come from the disk. */
const kChunk = 1 << 20;

async function haveEqualBytes(a: TensorLocation, b: TensorLocation): Promise<boolean> {
  if (a.info.dtype !== b.info.dtype || a.info.bytes !== b.info.bytes) return false;
  for (let begin = 0; begin < a.info.bytes; begin += kChunk) {
    const [left, right] = call(() => [a, b].map(({ file, info }) => file.readRaw(info.name, begin, begin + kChunk)));
    if (Buffer.compare(left as Uint8Array, right as Uint8Array) !== 0) return false;
    await setImmediate();
  }
  return true;
}

/** How a tensor gets into its slot; the default keeps it in the file, in its storage type. */
export type Place = (model: NativeModel, slot: string, location: TensorLocation) => Promise<void>;

export const bindInPlace: Place = (model, slot, { file, info, unpermuteHeads }) => model.bind(slot, file, info.name, unpermuteHeads);

/**
 * Gives every slot of the model its tensor. Throws INVALID_CONFIG listing missing and unexpected tensors, and SHAPE_MISMATCH naming the
 * tensor, its shape and the expected one.
 */
export async function bindTensors(
  model: NativeModel,
  tensors: TensorMap,
  source: string,
  signal?: AbortSignal,
  place: Place = bindInPlace,
): Promise<void> {
  const slots = model.slots().filter((slot) => !(slot.name === kHead && model.config.tiedHead));
  const known = new Set(slots.map((slot) => slot.name));
  const missing = slots.filter((slot) => !tensors.has(slot.name)).map((slot) => slot.name);
  const unexpected = [...tensors.keys()].filter((name) => !known.has(name) && !kIgnored.test(name));
  if (missing.length > 0 || unexpected.length > 0) {
    const parts = [
      missing.length > 0 ? `lacks ${listed(missing)}` : '',
      unexpected.length > 0 ? `has the unexpected ${listed(unexpected)}` : '',
    ];
    throw new LowrankError(
      'INVALID_CONFIG',
      `${source} does not hold the tensors that its configuration describes: it ${parts.filter(Boolean).join(' and ')}`,
    );
  }
  for (const slot of slots) {
    const location = tensors.get(slot.name) as TensorLocation;
    const { file, info } = location;
    if (info.shape.length !== slot.shape.length || info.shape.some((size, axis) => size !== slot.shape[axis])) {
      throw new LowrankError(
        'SHAPE_MISMATCH',
        `${file.path}: tensor ${info.name} has shape [${info.shape.join(', ')}]; expected [${slot.shape.join(', ')}]`,
      );
    }
  }
  for (const slot of slots) {
    throwIfAborted(signal);
    const location = tensors.get(slot.name) as TensorLocation;
    const { codes } = location;
    await call(() => (codes === undefined ? place(model, slot.name, location) : placeCodes(model, slot.name, location, codes)));
  }
  call(() => model.ready());
}
