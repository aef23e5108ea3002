import { StreamDecoder } from '../tokenizer/stream_decoder.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { TokenRow } from '../types.ts';
import { IGNORED, supervisedTokens } from './batch.ts';

/**
 * A row for the eye: one line for each run of tokens that are trained on (▸) or not, tokens set apart by ¦. The first token of a row is
 * never a target.
 */
export function explainRow({ inputIds, labels }: TokenRow, tokenizer: Tokenizer | undefined): string {
  const lines = [`${inputIds.length} tokens, ${supervisedTokens(labels)} trained on (▸)`];
  const decoder = new StreamDecoder((ids) => (tokenizer ? tokenizer.decode(ids) : ids.map((id) => `${id} `).join('')));
  let run: string[] = [];
  let trained = false;
  const flush = () => {
    if (run.length > 0) lines.push(`${trained ? '▸' : ' '} ${run.join('¦')}`);
    run = [];
  };
  inputIds.forEach((id, t) => {
    const isTarget = t > 0 && labels[t] !== IGNORED;
    if (isTarget !== trained) flush();
    trained = isTarget;
    run.push(visible(decoder.push(id)));
  });
  run.push(visible(decoder.end()));
  run = run.filter((text, i) => text !== '' || i < run.length - 1);
  flush();
  return lines.join('\n');
}

const visible = (text: string) => text.replace(/\n/g, '\\n').replace(/\r/g, '\\r').replace(/\t/g, '\\t');
