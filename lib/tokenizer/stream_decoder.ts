/** Turns ids into text one by one; what is emitted is always whole characters, and all of it together is the text of all ids. */
export class StreamDecoder {
  readonly #decode: (ids: number[]) => string;
  /** Ids whose text is not all emitted, after those that the text of the next may depend on. */
  #ids: number[] = [];
  #settled = 0;
  #prefix = '';

  /** `decode`: ids to text, as a whole. */
  constructor(decode: (ids: number[]) => string) {
    this.#decode = decode;
  }

  /** The text that became certain by this id; often '', while a character or a byte sequence is incomplete. */
  push(id: number): string {
    this.#ids.push(id);
    const text = this.#decode(this.#ids);
    if (text.length <= this.#prefix.length || text.endsWith('\uFFFD')) return '';
    return this.#emit(text);
  }

  /** What is left, incomplete bytes as U+FFFD. */
  end(): string {
    const text = this.#decode(this.#ids);
    const rest = text.length > this.#prefix.length ? text.slice(this.#prefix.length) : '';
    this.#ids = [];
    this.#settled = 0;
    this.#prefix = '';
    return rest;
  }

  #emit(text: string): string {
    const fresh = text.slice(this.#prefix.length);
    // Keep the ids of the last emission: decoders treat the first token of a text apart.
    this.#ids = this.#ids.slice(this.#settled);
    this.#settled = this.#ids.length;
    this.#prefix = this.#decode(this.#ids);
    return fresh;
  }
}
