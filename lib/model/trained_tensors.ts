import { LowrankError, shown, suggestion } from '../errors.ts';
import type { NativeModel } from '../native.ts';
import type { TrainedLayers } from '../options/trained_layers.ts';

const kEmbedding = 'model.embed_tokens.weight';
const kHead = 'lm_head.weight';

/** A tensor of the base by the names that a user may call it. */
interface NamedTensor {
  slot: string;
  /** Its safetensors name; of a tied embedding the head's too. */
  names: string[];
}

/**
 * The base's tensors that full fine-tuning changes, by their safetensors names. A tied head is the embedding.
 *
 * @throws INVALID_OPTION naming the entry that means nothing with the nearest right name, or where nothing is left
 */
export function trainedTensors(model: NativeModel, layers: TrainedLayers): string[] {
  const tensors = namedTensors(model);
  const select = (option: 'trained' | 'frozen') =>
    new Set((layers[option] ?? []).flatMap((entry, i) => selected(tensors, entry, model.config.layers, `layers.${option}[${i}]`)));
  const trained = layers.trained === undefined ? undefined : select('trained');
  const frozen = select('frozen');
  const chosen = tensors.map(({ slot }) => slot).filter((slot) => (trained?.has(slot) ?? true) && !frozen.has(slot));
  if (chosen.length > 0) return chosen;
  throw new LowrankError('INVALID_OPTION', `layers: found ${shown(layers)}, which leaves nothing to train`);
}

function namedTensors(model: NativeModel): NamedTensor[] {
  const { tiedHead } = model.config;
  return model
    .slots()
    .map(({ name }) => name)
    .filter((name) => !(tiedHead && name === kHead))
    .map((slot) => ({ slot, names: tiedHead && slot === kEmbedding ? [slot, kHead] : [slot] }));
}

function selected(tensors: NamedTensor[], entry: number | string, layers: number, option: string): string[] {
  if (typeof entry === 'number' && (entry < -layers || entry >= layers)) {
    throw new LowrankError(
      'INVALID_OPTION',
      `${option}: found ${entry}, expected the number of a decoder block, from ${-layers} to ${layers - 1}`,
    );
  }
  const name = typeof entry === 'number' ? `model.layers.${entry < 0 ? layers + entry : entry}` : entry;
  const found = tensors.filter(({ names }) => names.some((full) => `.${full}.`.includes(`.${name}.`)));
  if (found.length > 0) return found.map(({ slot }) => slot);
  const all = tensors.flatMap(({ names }) => names);
  const near = suggestion(name, candidates(all, name.split('.').length));
  const advice = near ? `did you mean '${near}'?` : `its parts are ${wordParts(all).join(', ')}`;
  throw new LowrankError('INVALID_OPTION', `${option}: found ${shown(entry)}, which names no part of the model; ${advice}`);
}

/** Runs of `length` parts of the names. */
function candidates(names: string[], length: number): string[] {
  const runs = names.flatMap((full) => {
    const parts = full.split('.');
    return parts.slice(0, Math.max(0, parts.length - length + 1)).map((_, begin) => parts.slice(begin, begin + length).join('.'));
  });
  return [...new Set(runs)];
}

function wordParts(names: string[]): string[] {
  return candidates(names, 1).filter((part) => !/^\d+$/.test(part));
}
