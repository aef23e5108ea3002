/** Why a training ends early. */
export type StopReason = 'aborted' | 'interrupted';

/**
 * Listens for the abort signal and for SIGINT while a training runs. The first SIGINT asks for a stop; a second one, which finds no
 * handler any more, ends the process as it would have without us.
 */
export class StopRequest implements Disposable {
  reason: StopReason | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort = () => this.#request('aborted');
  readonly #onInterrupt = () => {
    process.removeListener('SIGINT', this.#onInterrupt);
    this.#request('interrupted');
  };

  constructor(signal?: AbortSignal) {
    this.#signal = signal;
    if (signal?.aborted) this.#request('aborted');
    signal?.addEventListener('abort', this.#onAbort, { once: true });
    process.on('SIGINT', this.#onInterrupt);
  }

  [Symbol.dispose](): void {
    this.#signal?.removeEventListener('abort', this.#onAbort);
    process.removeListener('SIGINT', this.#onInterrupt);
  }

  #request(reason: StopReason): void {
    this.reason ??= reason;
  }
}
