import type { NativeLoss, NativeTrainBatch } from '../native.ts';

/** Over all supervised tokens of the data, so that the batch size makes no difference. */
export interface EvaluationMetrics {
  /** Mean negative log-likelihood of a supervised token, in nats. */
  loss: number;
  /** exp(loss) */
  perplexity: number;
  /** Supervised tokens. */
  tokens: number;
  /** Share of them whose likeliest prediction was right. */
  accuracy: number;
}

/** Evaluates batch after batch: nothing is held beyond one of them. Undefined when `isStopped` said so in between. */
export async function evaluateBatches(
  batches: Iterable<NativeTrainBatch>,
  evaluate: (batch: NativeTrainBatch) => Promise<NativeLoss>,
  isStopped: () => boolean = () => false,
): Promise<EvaluationMetrics | undefined> {
  let nllSum = 0;
  let tokens = 0;
  let correct = 0;
  for (const batch of batches) {
    if (isStopped()) return undefined;
    const loss = await evaluate(batch);
    nllSum += loss.nllSum;
    tokens += loss.tokens;
    correct += loss.correct;
  }
  const loss = nllSum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens, accuracy: correct / tokens };
}
